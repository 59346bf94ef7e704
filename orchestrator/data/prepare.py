"""Prepares datasets from their archives, and moves prepared ones between this host and an address.

The folder `<data-dir>/<name>` appears in one step, whole; its presence is the only state.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import urllib.parse
from importlib.util import find_spec
from pathlib import Path

from orchestrator.data.known_datasets import DEFAULT_IMAGE_SIZE_PX, IMAGEFOLDER, KNOWN, KnownDataset
from orchestrator.data.prepared import (
    PreparedDataset,
    prepared_names,
    read_prepared,
    write_prepared,
)
from orchestrator.errors import UsageError, unknown_name
from orchestrator.redaction import redacted
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
    try:
        return _prepare(KNOWN[kind], name, data_dir, source, image_size_px, progress)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        free = "Free some space there or choose another `--data-dir`. " if is_full else ""
        raise UsageError(
            f"The dataset {name!r} could not be prepared in {data_dir}: {error}. {free}Then run "
            "the same command again."
        ) from error


def _prepare(
    known: KnownDataset,
    name: str,
    data_dir: Path,
    source: str | None,
    image_size_px: int | None,
    progress: bool,
) -> Path:
    from orchestrator.data.archives import sha256_of
    from orchestrator.storage.locks import announced_lock

    folder = data_dir / name
    with announced_lock(
        data_dir / f".{name}.lock", f"Another process is preparing {name!r}; waiting for it."
    ):
        existing = read_prepared(folder) if folder.exists() else None
        if existing and _same(existing, known, source, None, image_size_px):
            return folder
        path, address = _locate(known, data_dir, source, progress)
        digest = sha256_of(path)
        if existing:
            if _same(existing, known, source, digest, image_size_px):
                return folder
            raise UsageError(
                f"{folder} was prepared as {existing.kind!r} with image size {existing.shape[0]} "
                f"from {existing.source}; this command has other options. Delete the folder to "
                "replace it, or give the new one its own name with `--as NAME`."
            )
        # This process holds the lock, so these are left by one that died.
        for left in data_dir.glob(f".{name}.preparing-*"):
            if left.name.removeprefix(f".{name}.preparing-").isdigit():
                shutil.rmtree(left, ignore_errors=True)
        with files.temporary(folder, f"preparing-{os.getpid()}") as building:
            building.mkdir()
            contents = known.read(path, image_size_px or DEFAULT_IMAGE_SIZE_PX)
            origin = {"address": address, "sha256": digest}
            about = {"name": name, "kind": known.name, "source": origin}
            write_prepared(building, path, contents, about, shown=progress)
            files.put_in_place(building, folder)
    return folder


def ensure_prepared(name: str, data_dir: Path, address: str | None = None) -> Path:
    """Return the folder of a dataset; prepare a known one if it is missing.

    Args:
        name: the dataset's name.
        data_dir: the folder of prepared datasets on this host.
        address: where datasets are fetched from, and put once prepared; None: nowhere.

    Raises:
        UsageError: the name is neither prepared nor known, or preparing failed, or the dataset at
            the address is damaged.
        StorageError: the address cannot be used.
    """
    folder = data_dir / name
    if address is not None:
        if fetched(folder, address):
            return folder
        ensure_prepared(name, data_dir)
        publish(folder, address)
        return folder
    if (folder / DATASET_MANIFEST).exists():
        return read_prepared(folder).folder
    if name not in KNOWN:
        raise UsageError(unknown_name("dataset", name, {*KNOWN, *prepared_names(data_dir)}))
    if KNOWN[name].needs_source:
        raise UsageError(
            f"{folder} holds no prepared dataset. Prepare your class folders with `python -m "
            f"orchestrator.data prepare {name} --source FOLDER --data-dir {data_dir}`."
        )
    return prepare(name, data_dir=data_dir)


def fetched(folder: Path, address: str) -> bool:
    """Fetch a dataset from its address to this host; return whether there is one."""
    from orchestrator.data import share
    from trainables.data.dataset import DatasetError

    try:
        return share.fetch(address, folder) is not None
    except DatasetError as error:
        raise UsageError(str(error)) from error


def publish(folder: Path, address: str) -> None:
    """Copy a prepared dataset to an address, from which each host of a cluster fetches it once.

    Raises:
        UsageError: the address has another dataset of that name.
        StorageError: the address cannot be used.
    """
    from orchestrator.data import share
    from trainables.data.dataset import DatasetError

    print(f"Copying {folder.name} to {redacted(address)}.", file=sys.stderr, flush=True)
    try:
        share.publish(folder, address)
    except DatasetError as error:
        raise UsageError(str(error)) from error


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
    problems = []
    if known.needs_source and source is None:
        problems.append(
            f"`{known.name}` needs `--source FOLDER`, the folder with the class folders."
        )
    if known.package and source is not None:
        problems.append(f"`{known.name}` comes with scikit-learn; it takes no `--source`.")
    if image_size_px is not None and not known.is_resized:
        problems.append(
            f"`--image-size` is for `{IMAGEFOLDER}`; the images of {known.name!r} stay as they are."
        )
    elif image_size_px is not None and not 4 <= image_size_px <= 4096:
        problems.append(f"`--image-size` must be 4 to 4096 pixels; got {image_size_px}.")
    return problems


def _same(
    found: PreparedDataset,
    known: KnownDataset,
    source: str | None,
    digest: str | None,
    image_size_px: int | None,
) -> bool:
    """Return whether a prepared dataset is what was asked for; `digest` None: not computed yet."""
    size_px = found.shape[0]
    default_px = DEFAULT_IMAGE_SIZE_PX if known.is_resized else size_px
    if found.kind != known.name or size_px != (image_size_px or default_px):
        return False
    from orchestrator.data.download import public_address

    if source is None or (is_uri(source) and public_address(source) == found.source):
        return True
    return digest is not None and digest == found.source_sha256


def _locate(
    known: KnownDataset, data_dir: Path, source: str | None, shown: bool
) -> tuple[Path, str]:
    """Return the archive or folder to read, downloaded if it is missing, and its origin."""
    from orchestrator.data.download import download, public_address

    if known.package:
        package = find_spec(known.package)
        if package is None or package.origin is None:
            raise UsageError(f"`{known.name}` comes with scikit-learn, which is not installed.")
        return Path(package.origin).parent / known.file, "sklearn.datasets.load_digits"
    if source is not None and not is_uri(source):
        path = Path(source).expanduser().absolute()
        if not path.exists():
            raise UsageError(f"The source must be an existing file or folder; got {path}.")
        return path, str(path)
    address = known.address if source is None else source
    file = known.file if source is None else urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1]
    file = urllib.parse.unquote(file)
    if not re.fullmatch(r"[^./\\][^/\\]*", file):
        raise UsageError(f"The address must end in a file name; got {public_address(address)}.")
    path = (data_dir / file).absolute()
    if path.exists():  # it may differ from the file at the address, which is not recorded then
        return path, str(path)
    download(address, path, md5=known.md5 if source is None else None, shown=shown)
    return path, public_address(address)
