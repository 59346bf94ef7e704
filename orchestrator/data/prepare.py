"""Prepares datasets from their archives; fetches prepared ones from a URL and uploads them.

The folder `<data-dir>/<name>` appears in one step, whole; its presence is the only state.
"""

from __future__ import annotations

import errno
import os
import pkgutil
import re
import shutil
import urllib.parse
from importlib.util import find_spec
from pathlib import Path

from orchestrator.data import share
from orchestrator.data.archives.read import sha256_of
from orchestrator.data.download import download, public_address
from orchestrator.data.known_datasets import DEFAULT_IMAGE_SIZE_PX, KNOWN, KnownDataset
from orchestrator.data.prepared import prepared, read_prepared, write_prepared
from orchestrator.errors import UsageError, unknown_name
from orchestrator.storage.locks import announced_lock
from orchestrator.storage.paths import DATASET_MANIFEST
from orchestrator.storage.store import is_uri
from trainables import files


def prepare(
    kind: str,
    *,
    data_dir: Path,
    source: str | None = None,
    image_size_px: int | None = None,
    name: str | None = None,
    progress: bool = True,
) -> Path:
    """Return the folder of a prepared dataset, `<data_dir>/<name>`; prepare it if it is missing.

    Args:
        kind: one of `KNOWN`.
        data_dir: the folder of archives and prepared datasets; created if missing.
        source: an archive, a folder or an http(s) address. None: the archive with the official
            name in `data_dir`, else a download from the published address.
        image_size_px: size to resize images to, for "imagefolder" only; None: 64.
        name: name of the result; None: the kind.
        progress: whether to report on standard error.

    Raises:
        UsageError: wrong names or options, an unusable source, no network, or the name is taken
            by a dataset from another source, or the disk is full or cannot be read or written.
    """
    name = name or kind
    _check_options(kind, name, source, image_size_px)
    if source is not None and not is_uri(source):
        _check_source(_local(source), data_dir)
    try:
        return _prepare(KNOWN[kind], data_dir / name, source, image_size_px, progress)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        free = "Free some space there or choose another `--data-dir`. " if is_full else ""
        raise UsageError(
            f"The dataset {name!r} could not be prepared in {data_dir}: {error}. {free}Then run "
            "the same command again."
        ) from error


def _prepare(
    known: KnownDataset, folder: Path, source: str | None, image_size_px: int | None, shown: bool
) -> Path:
    data_dir, name = folder.parent, folder.name
    size_px = image_size_px or DEFAULT_IMAGE_SIZE_PX
    busy = f"Another process is preparing {name!r}; waiting for it."
    with announced_lock(data_dir / f".{name}.lock", busy):
        found = read_prepared(folder) if folder.exists() else None
        same = found if found and found.kind == known.name else None
        if same and known.needs_source and same.shape[0] != size_px:
            same = None
        if same and (source is None or (is_uri(source) and public_address(source) == same.source)):
            return folder
        path, address = _locate(known, data_dir, source, shown)
        digest = sha256_of(path)
        if same and digest == same.source_sha256:
            return folder
        if found:
            raise UsageError(
                f"{folder} was prepared as {found.kind!r} with image size {found.shape[0]} "
                f"from {found.source}; this command has other options. Delete the folder to "
                "replace it, or give the new one its own name with `--as NAME`."
            )
        # This process holds the lock, so these are left by one that died.
        for left in data_dir.glob(f".{name}.preparing-*"):
            if left.name.removeprefix(f".{name}.preparing-").isdigit():
                shutil.rmtree(left, ignore_errors=True)
        with files.temporary(folder, f"preparing-{os.getpid()}") as building:
            building.mkdir()
            read = pkgutil.resolve_name(f"orchestrator.data.sources.{known.reader}")
            origin = {"address": address, "sha256": digest}
            about = {"name": name, "kind": known.name, "source": origin}
            about["test_split"] = known.test_split  # a reader may know better
            write_prepared(building, path, read(path, size_px), about, shown=shown)
            files.put_in_place(building, folder)
    return folder


def ensure_prepared(name: str, data_dir: Path, address: str | None = None) -> Path:
    """Return the folder of a dataset, `<data_dir>/<name>`; prepare a known one if it is missing.

    If there is an address, datasets are fetched from it, and put there once prepared.

    Raises:
        UsageError: the name is neither prepared nor known, or preparing failed.
        DatasetError: the dataset at the address is damaged.
        StorageError: the address cannot be used.
    """
    folder = data_dir / name
    if address is not None:
        if share.fetch(address, folder) is None:
            share.publish(ensure_prepared(name, data_dir), address)
        return folder
    if (folder / DATASET_MANIFEST).exists():
        return read_prepared(folder).folder
    if name not in KNOWN:
        names = {*KNOWN, *(each.folder.name for each in prepared(data_dir))}
        raise UsageError(unknown_name("dataset", name, names))
    if KNOWN[name].needs_source:
        raise UsageError(
            f"{folder} holds no prepared dataset. Prepare your class folders with `python -m "
            f"orchestrator.data prepare {name} --source FOLDER --data-dir {data_dir}`."
        )
    return prepare(name, data_dir=data_dir)


def _check_options(kind: str, name: str, source: str | None, image_size_px: int | None) -> None:
    """Raise one error with all problems of the options."""
    problems = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        problems.append(
            "A dataset's name must be 1 to 64 letters, digits, dots, dashes or underscores and "
            f"start with a letter or digit; got {name!r}."
        )
    elif name in KNOWN and name != kind:
        problems.append(f"The name {name!r} belongs to a known dataset; choose another.")
    if kind in KNOWN:
        problems += _row_problems(KNOWN[kind], source, image_size_px)
    else:
        problems.insert(0, unknown_name("dataset", kind, KNOWN))
    if problems:
        raise UsageError(" ".join(problems))


def _row_problems(known: KnownDataset, source: str | None, image_size_px: int | None) -> list[str]:
    name, problems = known.name, []
    if known.needs_source and source is None:
        problems.append(f"`{name}` needs `--source FOLDER`, the folder with the class folders.")
    if known.sklearn_file and source is not None:
        problems.append(f"`{name}` comes with scikit-learn; it takes no `--source`.")
    if image_size_px is not None and not known.needs_source:
        problems.append(
            f"`--image-size` is for `imagefolder`; the images of {name!r} stay as they are."
        )
    elif image_size_px is not None and not 4 <= image_size_px <= 4096:
        problems.append(f"`--image-size` must be 4 to 4096 pixels; got {image_size_px}.")
    return problems


def _local(source: str) -> Path:
    return Path(source).expanduser().absolute()


def _check_source(source: Path, data_dir: Path) -> None:
    """Raise an error before anything is created if the source is missing or would change."""
    if not source.exists():
        raise UsageError(f"The source must be an existing file or folder; got {source}.")
    if data_dir.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"The data folder must be outside the source, because all files in a source are read; "
            f"got {data_dir.absolute()} in {source.resolve()}. Give another one with --data-dir, "
            f"such as {source.resolve().parent / 'data'}, to this and later commands."
        )


def _locate(
    known: KnownDataset, data_dir: Path, source: str | None, shown: bool
) -> tuple[Path, str]:
    """Return the archive or folder to read, downloaded if it is missing, and its origin."""
    if known.sklearn_file:
        package = find_spec("sklearn")
        if package is None or package.origin is None:
            raise UsageError(f"`{known.name}` comes with scikit-learn, which is not installed.")
        return Path(package.origin).parent / known.sklearn_file, "sklearn.datasets.load_digits"
    if source is not None and not is_uri(source):
        path = _local(source)
        return path, str(path)
    address, md5 = (source, None) if source else (known.address, known.md5)
    file = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rpartition("/")[2])
    if not re.fullmatch(r"[^./\\][^/\\]*", file):
        raise UsageError(f"The address must end in a file name; got {public_address(address)}.")
    path = (data_dir / file).absolute()
    if path.exists():  # it may differ from the file at the address, which is not recorded then
        return path, str(path)
    download(address, path, md5=md5, shown=shown)
    return path, public_address(address)
