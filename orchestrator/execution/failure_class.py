"""Assigns each failed attempt a class."""

from __future__ import annotations

import errno
import re

from orchestrator.storage.store import StorageError

# Full, over a quota or limit, read-only, broken.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def classify(error: BaseException) -> str:
    """Return the failure class of an exception, which decides whether and how to retry."""
    import torch

    from trainables.data.dataset import DatasetError
    from trainables.training.checkpoint import CheckpointError

    text = f"{type(error).__name__}: {error}"
    words = r"out of memory|not enough memory|can't allocate memory|OutOfMemory"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(words, text):
        return "out_of_memory"
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return "disk"
    if isinstance(error, DatasetError):
        return "data"
    return "disk" if isinstance(error, CheckpointError | StorageError) else "bug"


def is_process_unusable(error: BaseException) -> bool:
    """Return whether no other attempt should run in the process that raised this error.

    A CUDA error other than out of memory makes the whole context unusable. After the host ran out
    of memory, the C library keeps the freed memory in pieces, so the next attempt may not fit.
    """
    text = str(error)
    if "CUDA error" in text and "out of memory" not in text:
        return True
    is_on_device = "CUDA" in text or "HIP" in text
    return classify(error) == "out_of_memory" and not is_on_device


def classify_death(text: str) -> str:
    """Return the failure class of a worker process that died, from Ray's message about it.

    Ray adds a list of common causes to every such message, out of memory and preemption among
    them. The list is ignored, because it is the same for every death.
    """
    causes = r"Some common causes include|There are some potential root causes|This can happen if"
    text = re.split(causes, text)[0]
    if re.search(r"OutOfMemory|out of memory|low on memory|memory pressure", text):
        return "out_of_memory"
    if re.search(r"preempt", text, re.IGNORECASE):
        return "preempted"
    if re.search(r"node.{0,40}(died|dead|crashed|terminated|removed)", text, re.IGNORECASE):
        return "node"
    return "killed"
