"""Reads the official archives of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.archives.read import member_names, read_small
from orchestrator.data.sources.source import Contents, Split, layout_error
from orchestrator.errors import UsageError


def load_cifar_pickle(content: bytes, member: str) -> dict[str, Any]:
    """Unpickle one file of a CIFAR python archive without running any code that it names.

    Only the globals that such files need are admitted, each replaced by a class or function of
    this module. An array is built from its raw bytes, so no constructor of numpy or of another
    library is called. Keys are returned as text; arrays hold integers, strings stay bytes.

    Raises:
        UsageError: the pickle needs another global, or is damaged; it is named `member`.
    """
    try:
        value = _CifarUnpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not a dictionary")
        loaded = {}
        for key, item in value.items():
            text = key.decode() if isinstance(key, bytes) else str(key)
            loaded[text] = item.to_numpy() if isinstance(item, _PickledArray) else item
        return loaded
    except pickle.UnpicklingError as error:
        raise UsageError(f"The pickle {member!r} was refused: {error}.") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UsageError(f"The pickle {member!r} is damaged: {error!r}.") from error


class _PickledDtype:
    """Stands in for `numpy.dtype`; CIFAR's files need integers only."""

    is_big_endian = False

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else str(code)
        if not re.fullmatch("[iu][1248]|uint8", text):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of integers")
        self.code = text.replace("uint8", "u1")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.is_big_endian = state[1] in (">", b">")

    def to_numpy(self, content: bytes | bytearray) -> Any:
        """Return the integers, one-dimensional."""
        return np.frombuffer(content, np.dtype((">" if self.is_big_endian else "<") + self.code))


class _PickledArray:
    """Stands in for `numpy.ndarray`: keeps shape and bytes until it is complete."""

    shape: tuple[int, ...] = ()
    dtype: _PickledDtype | None = None
    content: bytes | bytearray = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, fortran_order, self.content = state
        if not isinstance(dtype, _PickledDtype) or fortran_order:
            raise pickle.UnpicklingError("it holds an array that is not of integers in C order")
        self.dtype = dtype

    def to_numpy(self) -> Any:
        """Return the array; a shape that does not fit the bytes is a ValueError."""
        if self.dtype is None:
            return np.zeros(0, np.uint8)
        return self.dtype.to_numpy(self.content).reshape(self.shape)


def _from_buffer(content: Any, dtype: object, shape: Any, order: object, *_: object) -> Any:
    """Stand in for numpy's `_frombuffer`, which holds arrays in protocol 5 pickles."""
    array = _PickledArray()
    array.__setstate__((1, shape, dtype, order not in ("C", b"C"), content))
    return array


def _scalar(dtype: object, content: object) -> int:
    """Stand in for numpy's `scalar`, which holds single integers such as labels."""
    if not isinstance(dtype, _PickledDtype) or not isinstance(content, bytes):
        raise pickle.UnpicklingError("it holds a number that is no integer")
    return int(dtype.to_numpy(content)[0])


def _encode(text: object, encoding: object) -> bytes:
    """Stand in for `_codecs.encode`, which holds bytes in protocol 2 pickles of Python 3."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it needs the text encoding {encoding!r}")
    return text.encode("latin1")


# Python 2 wrote `numpy.core.multiarray` and raw strings; numpy 2 writes `numpy._core` and encode.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _encode,
} | {
    (f"{core}.{module}", name): stand_in
    for core in ("numpy.core", "numpy._core")
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", lambda *_: _PickledArray()),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _from_buffer),
    )
}


class _CifarUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for an admitted global."""
        if (module, name) not in _ADMITTED:
            why = f"it needs {module}.{name}, which CIFAR's files do not"
            raise pickle.UnpicklingError(why)
        return _ADMITTED[module, name]


_Batch = tuple[str, dict[str, Any]]  # the member's name and what it holds


def read_cifar10(source: Path, image_size_px: int) -> Contents:
    """Read the layout of the CIFAR-10 python archive.

    Raises:
        UsageError: a batch is missing, damaged or inconsistent, or needs code.
    """
    files = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
    *train, test, (member, meta) = _loaded(source, "cifar10", files)
    names = _names(meta, "label_names", member)
    splits = {"train": _split(train, len(names), 0), "test": _split([test], len(names), 0)}
    return Contents(class_names=names, shape=(32, 32, 3), splits=splits, extra={})


def read_cifar100(source: Path, image_size_px: int) -> Contents:
    """Read the layout of the CIFAR-100 python archive.

    Raises:
        UsageError: a batch is missing, damaged or inconsistent, or needs code.
    """
    train, test, (member, meta) = _loaded(source, "cifar100", ("train", "test", "meta"))
    names = _names(meta, "fine_label_names", member)
    coarse_names = _names(meta, "coarse_label_names", member)
    counts = len(names), len(coarse_names)
    splits = {"train": _split([train], *counts), "test": _split([test], *counts)}
    fine_to_coarse = _fine_to_coarse(source, splits.values(), len(names))
    extra = {"coarse_names": list(coarse_names), "fine_to_coarse": fine_to_coarse}
    return Contents(class_names=names, shape=(32, 32, 3), splits=splits, extra=extra)


def _loaded(source: Path, kind: str, files: Sequence[str]) -> list[_Batch]:
    """Return the named files of one folder; of several copies the one with the shortest path."""
    names = sorted(member_names(source), key=lambda name: (name.count("/"), name), reverse=True)
    found = {PurePosixPath(name).name: name for name in names}
    for file in files:
        if file not in found:
            raise layout_error(source, kind, file, names[::-1])
    raw = read_small(source, [found[file] for file in files])
    return [(found[file], load_cifar_pickle(raw[found[file]], found[file])) for file in files]


def _names(meta: dict[str, Any], key: str, member: str) -> tuple[str, ...]:
    values = meta.get(key)
    if not isinstance(values, list) or not values:
        raise UsageError(f"The pickle {member!r} must hold the list {key!r}; it does not.")
    return tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in values)


def _split(batches: Sequence[_Batch], classes: int, coarse_classes: int) -> Split:
    """Return the batches as one split; `coarse_classes` 0: it has none."""
    pixels, labels, coarse_labels = [], [], []
    for member, batch in batches:
        data = batch.get("data")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
            raise UsageError(
                f"The pickle {member!r} must hold 'data' as an array of n x 3072, uint8."
            )
        if not len(data):
            raise UsageError(f"The pickle {member!r} holds no image.")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        key = "fine_labels" if coarse_classes else "labels"
        labels.append(_labels(member, batch, key, classes))
        if coarse_classes:
            coarse_labels.append(_labels(member, batch, "coarse_labels", coarse_classes))
    return Split(
        labels=np.concatenate(labels),
        coarse_labels=np.concatenate(coarse_labels) if coarse_labels else None,
        pixels=np.concatenate(pixels),
    )


def _labels(member: str, batch: dict[str, Any], key: str, classes: int) -> npt.NDArray[np.int64]:
    values, images = batch.get(key), len(batch["data"])
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if (
        not isinstance(values, list)
        or len(values) != images
        or not all(isinstance(value, int) and 0 <= value < classes for value in values)
    ):
        raise UsageError(
            f"The pickle {member!r} must hold {key!r} as {images} numbers from 0 to {classes - 1}."
        )
    return np.array(values, np.int64)


def _fine_to_coarse(source: Path, splits: Iterable[Split], classes: int) -> list[int]:
    """Return the coarse class of each fine one, -1 for a class without images."""
    pairs: set[tuple[int, int]] = set()
    for split in splits:
        assert split.coarse_labels is not None
        pairs |= set(zip(split.labels.tolist(), split.coarse_labels.tolist(), strict=True))
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise UsageError(f"{source} is inconsistent: a fine class has several coarse ones.")
    return [mapping.get(label, -1) for label in range(classes)]
