"""Datasets from their archives to prepared folders, and between this host and an address.

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

from orchestrator.data.known import DEFAULT_IMAGE_SIZE_PX, IMAGEFOLDER, KNOWN, read_source
from orchestrator.data.prepared import (
    PreparedDataset,
    prepared_names,
    read_prepared,
    write_prepared,
)
from orchestrator.errors import UsageError, unknown_name
from orchestrator.redaction import redacted
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
    """Prepare a dataset, or find that it is prepared from the same source already.

    Args:
        kind: one of `KNOWN`, or "imagefolder".
        data_dir: where archives and prepared datasets lie; made if missing.
        source: an archive, a folder or an http(s) address. None: the archive of the official name
            in `data_dir`, else a download from the published address.
        image_size_px: side to resize to, for "imagefolder" only; None: 64.
        name: name of the result; None: the kind.
        progress: whether to report on standard error.

    Returns:
        The prepared folder, `<data_dir>/<name>`.

    Raises:
        UsageError: wrong names or options, an unusable source, no network, or the name is taken
            by a dataset from another source, or the disk is full or cannot be read or written.
    """
    name = name or kind
    _check_options(kind, name, source, image_size_px)
    try:
        return _prepare(kind, name, data_dir, source, image_size_px, progress)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "Free some space there or choose another `--data-dir`; t" if is_full else "T"
        raise UsageError(
            f"The dataset {name!r} could not be prepared in {data_dir}: {error}. {way_out}he same "
            "command then does it again."
        ) from error


def _prepare(
    kind: str,
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
        data_dir / f".{name}.lock", f"Another process prepares {name!r}; waiting for it to end."
    ):
        existing = read_prepared(folder) if folder.exists() else None
        if existing and _same(existing, kind, source, None, image_size_px):
            return folder
        path, address = _locate(kind, data_dir, source, progress)
        digest = sha256_of(path)
        if existing:
            if _same(existing, kind, source, digest, image_size_px):
                return folder
            raise UsageError(
                f"{folder} was prepared as {existing.kind!r} with side {existing.shape[0]} from "
                f"{existing.source}, not as asked for now. Delete the folder to replace it, or "
                "give the new one its own name with `--as NAME`."
            )
        # Holding the lock, so whatever lies here is from a preparer that died.
        for left in data_dir.glob(f".{name}.preparing-*"):
            if left.name.removeprefix(f".{name}.preparing-").isdigit():
                shutil.rmtree(left, ignore_errors=True)
        with files.temporary(folder, f"preparing-{os.getpid()}") as building:
            building.mkdir()
            contents = read_source(kind, path, image_size_px or DEFAULT_IMAGE_SIZE_PX)
            about = {"name": name, "kind": kind, "source": {"address": address, "sha256": digest}}
            write_prepared(building, path, contents, about, shown=progress)
            files.put_in_place(building, folder)
    return folder


def ensure_prepared(name: str, data_dir: Path, address: str | None = None) -> Path:
    """Return the folder of a dataset, preparing a known one if it is not there yet.

    Args:
        name: the dataset's.
        data_dir: where prepared datasets lie on this host.
        address: where they are fetched from and put once prepared, or None.

    Raises:
        UsageError: the name is neither prepared nor known, or preparing failed, or what lies at
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
    if (folder / "manifest.json").exists():
        return read_prepared(folder).folder
    if name in KNOWN:
        return prepare(name, data_dir=data_dir)
    if name == IMAGEFOLDER:
        raise UsageError(
            f"{folder} holds no prepared dataset. Prepare your class folders with `python -m "
            f"orchestrator.data prepare imagefolder --source FOLDER --data-dir {data_dir}`."
        )
    raise UsageError(unknown_name("dataset", name, {*KNOWN, *prepared_names(data_dir)}))


def fetched(folder: Path, address: str) -> bool:
    """Bring a dataset from its address to this host; returns whether there is one."""
    from orchestrator.data import share
    from trainables.data.dataset import DatasetError

    try:
        return share.fetch(address, folder) is not None
    except DatasetError as error:
        raise UsageError(str(error)) from error


def publish(folder: Path, address: str) -> None:
    """Put a prepared dataset at an address, for every host of a cluster to fetch once.

    Raises:
        UsageError: another dataset of that name is there.
        StorageError: the address cannot be used.
    """
    from orchestrator.data import share
    from trainables.data.dataset import DatasetError

    print(f"Putting {folder.name} to {redacted(address)}.", file=sys.stderr, flush=True)
    try:
        share.publish(folder, address)
    except DatasetError as error:
        raise UsageError(str(error)) from error


def _check_options(kind: str, name: str, source: str | None, image_size_px: int | None) -> None:
    """Raise one error with everything that is wrong with the options."""
    problems = []
    if kind not in KNOWN and kind != IMAGEFOLDER:
        problems.append(unknown_name("dataset", kind, {*KNOWN, IMAGEFOLDER}))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        problems.append(
            "A dataset's name must be 1 to 64 letters, digits, dots, dashes or underscores and "
            f"start with a letter or digit; got {name!r}."
        )
    elif name in KNOWN and name != kind:
        problems.append(f"The name {name!r} belongs to a known dataset; choose another.")
    if kind == IMAGEFOLDER and source is None:
        problems.append("`imagefolder` needs `--source FOLDER`, the folder with the class folders.")
    if kind == "digits" and source is not None:
        problems.append("`digits` comes with scikit-learn; it takes no `--source`.")
    if image_size_px is not None and kind != IMAGEFOLDER:
        problems.append(
            f"`--image-size` is for `imagefolder`; the images of {kind!r} stay as they are."
        )
    elif image_size_px is not None and not 4 <= image_size_px <= 4096:
        problems.append(f"`--image-size` must be 4 to 4096 pixels; got {image_size_px}.")
    if problems:
        raise UsageError(" ".join(problems))


def _same(
    found: PreparedDataset,
    kind: str,
    source: str | None,
    digest: str | None,
    image_size_px: int | None,
) -> bool:
    """Say whether a prepared dataset is what was asked for; the digest only if it is known."""
    if found.kind != kind or (image_size_px or found.shape[0]) != found.shape[0]:
        return False
    if kind == IMAGEFOLDER and image_size_px is None and found.shape[0] != DEFAULT_IMAGE_SIZE_PX:
        return False
    from orchestrator.data.download import public_address

    if source is None or (_is_address(source) and public_address(source) == found.source):
        return True
    return digest is not None and digest == found.source_sha256


def _locate(kind: str, data_dir: Path, source: str | None, shown: bool) -> tuple[Path, str]:
    """Return the archive or folder to read, downloading it if need be, and where it is from."""
    from orchestrator.data.download import download, public_address

    if kind == "digits":
        package = find_spec("sklearn")
        if package is None or package.origin is None:
            raise UsageError("`digits` comes with scikit-learn, which is not installed.")
        file_of_digits = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        return file_of_digits, "sklearn.datasets.load_digits"
    if source is not None and not _is_address(source):
        path = Path(source).expanduser().absolute()
        if not path.exists():
            raise UsageError(f"The source must be an existing file or folder; got {path}.")
        return path, str(path)
    known = KNOWN.get(kind) if source is None else None
    address = known.address if known else str(source)
    file = known.file if known else urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1]
    file = urllib.parse.unquote(file)
    if not re.fullmatch(r"[^./\\][^/\\]*", file):
        raise UsageError(f"The address must end in a file name; got {public_address(address)}.")
    path = (data_dir / file).absolute()
    if path.exists():  # not known to be what lies at the address: it may be a part of it
        return path, str(path)
    download(address, path, md5=known.md5 if known else None, shown=shown)
    return path, public_address(address)


def _is_address(source: str) -> bool:
    return "://" in source
