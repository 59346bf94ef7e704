"""What CIFAR's pickles may hold, and that everything else is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data.sources.cifar import load_cifar_pickle
from orchestrator.errors import UsageError


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch /tmp/never-made-by-a-pickle",)


def test_a_pickle_that_needs_code_is_refused_and_the_code_is_named() -> None:
    content = pickle.dumps({b"data": _Evil()}, protocol=2)
    with pytest.raises(UsageError, match=r"'batch' was refused: it needs posix\.system"):
        load_cifar_pickle(content, "batch")
    assert not Path("/tmp/never-made-by-a-pickle").exists()


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (np.zeros(2, np.float32), "it holds an array of 'f4', not of integers"),
        (np.array([[1, 2]], np.uint8).T.repeat(2, 1).copy("F"), "not of integers in C order"),
        (np.array([{}]), "it holds an array of 'O8', not of integers"),
    ],
)
def test_pickle_of_other_arrays_is_refused(value: np.ndarray, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_cifar_pickle(pickle.dumps({b"data": value}, protocol=2), "batch")


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2], protocol=2)])
def test_a_file_without_a_pickled_dictionary_is_refused(content: bytes) -> None:
    with pytest.raises(UsageError, match="The pickle 'batch' "):
        load_cifar_pickle(content, "batch")


def test_pickle_of_python_2_is_read() -> None:
    """The official files: raw strings and numpy's old module name, spelt out by hand."""
    state = b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    state += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    raw = bytes(range(256)) * 24
    state += b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state
    content = b"\x80\x02}(U\x06labels](K\x03K\x04eU\x04data" + array + b"u."
    loaded = load_cifar_pickle(content, "batch")
    assert loaded["labels"] == [3, 4]
    assert loaded["data"].shape == (2, 3072)
    assert loaded["data"].dtype == np.uint8
    assert (loaded["data"].reshape(-1) == np.frombuffer(raw, np.uint8)).all()


def test_pickle_whose_shape_does_not_fit_is_refused() -> None:
    content = pickle.dumps({b"data": np.zeros((2, 3), np.uint8)}, protocol=2)
    lie = content.replace(b"K\x02K\x03\x86", b"K\x02K\x09\x86")
    assert lie != content
    with pytest.raises(UsageError, match="is damaged"):
        load_cifar_pickle(lie, "batch")


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("labels", ["list", "i8", ">i4", "u1", "scalars"])
def test_pickles_of_every_protocol_and_labels_of_numpy_are_read(protocol: int, labels: str) -> None:
    """People write the batches again with their own versions of Python and numpy."""
    numbers: Any = [3, 1, 300 if labels not in ("u1",) else 200]
    data = np.arange(9216, dtype=np.uint8).reshape(3, 3072)
    given = numbers if labels == "list" else np.array(numbers, np.int64)
    if labels == "scalars":
        given = list(given)
    elif labels != "list":
        given = given.astype(labels)
    loaded = load_cifar_pickle(pickle.dumps({"labels": given, b"data": data}, protocol), "batch")
    assert [int(value) for value in loaded["labels"]] == numbers
    assert (loaded["data"] == data).all()
    assert loaded["data"].dtype == np.uint8


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_the_names_of_both_versions_of_numpy_are_admitted(module: str) -> None:
    value = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"label": np.int64(-7)}
    written = np.ndarray.__reduce__(value[b"data"])[0].__module__.removesuffix(".multiarray")
    content = pickle.dumps(value, protocol=2).replace(written.encode(), module.encode())
    loaded = load_cifar_pickle(content, "batch")
    assert loaded["data"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert loaded["label"] == -7


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (np.float64(1.5), "'f8', not of integers"),
        (np.arange(6).reshape(2, 3).copy("F"), "not of integers in C order"),
        (np.zeros(2, np.float32), "'f4', not of integers"),
    ],
)
def test_other_values_of_protocol_5_are_refused(value: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_cifar_pickle(pickle.dumps({b"data": value}, protocol=5), "batch")


def test_other_functions_of_numpy_are_refused() -> None:
    content = b"\x80\x02cnumpy\nfromfile\nX\x0b\x00\x00\x00/etc/passwd\x85R."
    with pytest.raises(UsageError, match=r"refused: it needs numpy\.fromfile"):
        load_cifar_pickle(content, "batch")
