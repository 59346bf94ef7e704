"""Calls to a storage that are repeated when they fail, for a bounded time."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TypeVar

from orchestrator.clock import Clock

TRY_S = 60.0  # seconds that one try may take, besides the time its bytes need
SLOWEST_BYTES_PER_S = 8_000  # a slower transfer counts as failed
KEEP_TRYING_S = 60.0  # seconds after the first try during which further ones begin
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0  # seconds between tries; doubles, with a random part

# A repeated call would fail with these as well.
_FINAL_WORDS = (
    *("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"),
    *("INVALID_CLIENT_TOKEN_ID", "UNRECOGNIZED_CLIENT", "EXPIRED_TOKEN", "PERMANENT_REDIRECT"),
)
_FINAL_ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
)

Result = TypeVar("Result")


class GaveUpError(Exception):
    """A call failed for good, or for too long."""

    def __init__(self, error: OSError, tries: int, passed_s: float) -> None:
        super().__init__(str(error))
        self.error, self.tries, self.passed_s = error, tries, passed_s


def retried(
    call: Callable[[], Result], size: int, keep_trying_s: float | None, clock: Clock
) -> Result:
    """Return the result of a call, repeated while it fails.

    Args:
        call: raises an OSError when it fails.
        size: bytes that it transfers.
        keep_trying_s: seconds after the first try during which further ones begin; None: as
            `KEEP_TRYING_S` says.
        clock: gives time, pauses and their random part.

    Raises:
        GaveUpError: it failed for good, or for too long.
    """
    began_s, pause_s, tries = clock.monotonic_s(), FIRST_PAUSE_S, 0
    until_s = began_s + (KEEP_TRYING_S if keep_trying_s is None else keep_trying_s)
    while True:
        tries += 1
        try:
            return _within(TRY_S + size / SLOWEST_BYTES_PER_S, call)
        except OSError as error:
            now_s = clock.monotonic_s()
            if now_s + pause_s > until_s or _is_final(error):
                raise GaveUpError(error, tries, now_s - began_s) from error
        clock.sleep(pause_s * clock.random.uniform(0.7, 1.3))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _within(limit_s: float, call: Callable[[], Result]) -> Result:
    """Return the result of a call if it ends within a time limit.

    pyarrow's calls cannot be cancelled. A call that takes too long keeps running in its thread and
    ends by the timeouts of its connection.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="storage", daemon=True)
    thread.start()
    thread.join(limit_s)
    if results:
        return results[0]
    if errors:
        raise errors[0]
    raise TimeoutError(f"no end after {limit_s:.0f} s")


def _is_final(error: OSError) -> bool:
    if isinstance(error, TimeoutError | ConnectionError):
        return False
    text = str(error).upper()
    return error.errno in _FINAL_ERRNOS or any(word in text for word in _FINAL_WORDS)
