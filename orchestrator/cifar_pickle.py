"""CIFAR's python archives are pickles: read here without running any code that they name.

It holds no state.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from orchestrator.errors import UsageError


def load_cifar_pickle(content: bytes, member: str) -> dict[str, Any]:
    """Unpickle one file of a CIFAR python archive without running any code it names.

    Only what the official files need is admitted, and that as stand-ins of ours: an array comes
    back from its raw bytes, so neither numpy's nor anybody else's constructors are called.

    Args:
        content: the member's bytes.
        member: its name, for the error.

    Returns:
        The dictionary with its keys as text; arrays are uint8, strings stay bytes.

    Raises:
        UsageError: the pickle asks for anything else, or is damaged.
    """
    try:
        value = _CifarUnpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not a dictionary")
        return {_text(key): _plain(item) for key, item in value.items()}
    except pickle.UnpicklingError as error:
        raise UsageError(f"The pickle {member!r} was refused: {error}.") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UsageError(f"The pickle {member!r} is damaged: {error!r}.") from error


def _text(value: object) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    return value.to_numpy() if isinstance(value, _PickledArray) else value


class _PickledDtype:
    """Stands in for `numpy.dtype`, of which CIFAR's files need one value: uint8."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", b"u1", "uint8", b"uint8"):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of uint8")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like mean nothing for single bytes."""


class _PickledArray:
    """Stands in for `numpy.ndarray`: keeps shape and bytes until it is complete."""

    shape: tuple[int, ...] = ()
    content: bytes = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, fortran_order, self.content = state
        if not isinstance(dtype, _PickledDtype) or fortran_order:
            raise pickle.UnpicklingError("it holds an array that is not uint8 in C order")

    def to_numpy(self) -> Any:
        """Return the array; a shape that does not fit the bytes is a ValueError."""
        import numpy as np

        return np.frombuffer(self.content, np.uint8).reshape(self.shape)


def _encode(text: object, encoding: object) -> bytes:
    """Stand in for `_codecs.encode`, with which protocol 2 pickles of Python 3 hold bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the text encoding {encoding!r}")
    return text.encode("latin1")


def _empty_array(*_: object) -> _PickledArray:
    return _PickledArray()


# Python 2 wrote `numpy.core.multiarray` and raw strings, numpy 2 writes `numpy._core` and encode.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _encode,
}


class _CifarUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for an admitted global."""
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which CIFAR's files do not need"
            )
        return _ADMITTED[module, name]
