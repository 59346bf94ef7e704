"""Assigns each failed attempt a class."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.search.retry_policy import FailureClass

# Full, over a quota or limit, read-only, broken.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def classify(error: BaseException) -> str:
    """Return the class of a failure that was raised: what kind of thing to do about it."""
    import torch

    from orchestrator.storage.store import StorageError
    from trainables.data.dataset import DatasetError
    from trainables.training.checkpoint import CheckpointError

    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text
        for words in ("out of memory", "not enough memory", "can't allocate memory", "OutOfMemory")
    ):
        return "out_of_memory"
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return "disk"
    if isinstance(error, DatasetError):
        return "data"
    if isinstance(error, CheckpointError | StorageError):
        return "disk"
    return "bug"


def is_process_unusable(error: BaseException) -> bool:
    """Return whether an error leaves a process that no other attempt should run in.

    After a CUDA error other than running out of memory the whole context is unusable. Of the host's
    memory the C library keeps what was freed, in pieces: what did not fit may not fit again.
    """
    text = str(error)
    if "CUDA error" in text and "out of memory" not in text:
        return True
    is_of_device = "CUDA" in text or "HIP" in text
    return classify(error) == "out_of_memory" and not is_of_device


def classify_death(text: str) -> FailureClass:
    """Return the class of a worker that died without a word, from what Ray says of it.

    Of every death Ray adds what its cause might be, out of memory and preemption among them;
    that says nothing of this one.
    """
    text = re.sub(
        r"(Some common causes include|There are some potential root causes"
        r"|This can happen if).*",
        "",
        text,
        flags=re.DOTALL,
    )
    if re.search(r"OutOfMemory|out of memory|low on memory|memory pressure", text):
        return "out_of_memory"
    if re.search(r"preempt", text, re.IGNORECASE):
        return "preempted"
    if re.search(r"node.{0,40}(died|dead|crashed|terminated|removed)", text, re.IGNORECASE):
        return "node"
    return "killed"
