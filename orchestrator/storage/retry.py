"""Retries failed calls to a storage for a limited time."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
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


class GaveUpError(OSError):
    """A call failed for good, or for too long; has the last error's text and number."""


def retried(
    call: Callable[[], Result], size: int, keep_trying_s: float | None, clock: Clock
) -> Result:
    """Return the result of a call that transfers `size` bytes, repeated while it raises OSErrors.

    Further tries begin within `keep_trying_s` seconds after the first, `KEEP_TRYING_S` if None.

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
                counted = f"{tries} {'try' if tries == 1 else 'tries'} in {now_s - began_s:.0f} s"
                failure = GaveUpError(f"{error} ({counted})")
                failure.errno = error.errno
                raise failure from error
        clock.sleep(pause_s * clock.random.uniform(0.7, 1.3))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _within(limit_s: float, call: Callable[[], Result]) -> Result:
    """Return the result of a call if it ends within a time limit.

    pyarrow's calls cannot be cancelled. A call that takes too long keeps running in its thread and
    ends by the timeouts of its connection.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="storage", daemon=True).start()
    if future not in wait([future], limit_s).done:
        raise TimeoutError(f"no end after {limit_s:.0f} s")
    return future.result()


def _is_final(error: OSError) -> bool:
    if isinstance(error, TimeoutError | ConnectionError):
        return False
    text = str(error).upper()
    return error.errno in _FINAL_ERRNOS or any(word in text for word in _FINAL_WORDS)
