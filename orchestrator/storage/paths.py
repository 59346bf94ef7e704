"""The path of every file and folder of a sweep, and of the prepared datasets.

A sweep's ledger must be on a local disk, because SQLite's journal is not safe on network file
systems. A storage on such a file system, or at an address, has a working folder in this machine's
cache; `remote` is the address that other machines read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.redaction import redacted
from orchestrator.storage.store import is_uri
from orchestrator.storage.tracking_uri import sqlite_uri

# Names of files and folders, relative to a sweep's folder.
LEDGER = "ledger.sqlite"  # also the name of its copy in a storage at an address
LEASE = "driver.json"  # of the driver, in a storage at an address
TRIALS, REPORT, MODEL = "trials", "report", "model"
REPORT_PAGE = "report.html"  # in the report's folder
DATASET_MANIFEST = "manifest.json"  # in a prepared dataset's folder

# The names in Linux's /proc/self/mountinfo; "fuse." is sshfs, s3fs, glusterfs or another of FUSE.
_NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs4?|cifs|smb[23]?|smbfs|fuse\..*|9p|virtiofs|lustre|ceph|gpfs|beegfs|afs|ocfs2|gfs2|glusterfs"
    r"|orangefs|pvfs2|panfs|wekafs|davfs"
)


@dataclass(frozen=True, slots=True)
class SweepPaths:
    """Where one sweep is on this machine and, if its storage is at an address, there."""

    local_root: Path  # folder of this machine that holds the sweeps' folders
    name: str
    remote: str | None = None  # address of the storage; None for a folder on a local disk

    @property
    def root(self) -> Path:
        """The sweep's own folder."""
        return self.local_root / self.name

    @property
    def storage(self) -> str:
        """The storage, as `--storage` takes it in any folder."""
        return self.remote or str(self.local_root.absolute())

    @property
    def ledger(self) -> Path:
        """The one file from which everything else can be rebuilt."""
        return self.root / LEDGER

    @property
    def lock(self) -> Path:
        """The file that the driver holds locked while it runs."""
        return self.root / "driver.lock"

    @property
    def log(self) -> Path:
        """The output of Ray and other libraries."""
        return self.root / "driver.log"

    @property
    def default_tracking_uri(self) -> str:
        """MLflow's store when none is given: one SQLite file for all sweeps of this storage."""
        return sqlite_uri(self.mlflow_database)

    @property
    def mlflow_database(self) -> Path:
        """The file of MLflow's default store."""
        return self.local_root / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """The folder of MLflow's artifacts when its store is a file."""
        return self.local_root / "mlartifacts"

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.root / REPORT

    @property
    def trials(self) -> Path:
        """The folder of all trials."""
        return self.root / TRIALS

    def trial(self, signature: str) -> Path:
        """The folder of a trial's logs and checkpoints."""
        return self.trials / signature


def sweep_paths(storage: Path | str, name: str) -> SweepPaths:
    """Return a sweep's paths in a storage, which is a path or an address."""
    address = _address(str(storage))
    if address is None:
        return SweepPaths(Path(storage), name)
    # A store is the same folder with any password in its address.
    key = hashlib.sha256(redacted(address).encode()).hexdigest()[:12]
    return SweepPaths(_cache() / key, name, address)


def _cache() -> Path:
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # neither HOME nor an entry of this user in /etc/passwd
        raise UsageError(
            "A storage or dataset at a URL needs a cache folder on this machine, and this user has "
            "no home directory. Set XDG_CACHE_HOME to a folder that can be written."
        ) from error
    return cache.absolute() / "sweep-orchestrator"


@dataclass(frozen=True, slots=True)
class DataLocation:
    """Where prepared datasets are."""

    folder: Path  # on each host
    address: str | None = None  # from which each host fetches them


def data_location(data_dir: Path | str) -> DataLocation:
    """Return where datasets are: a folder, or an address (a text) with a copy in each cache."""
    if isinstance(data_dir, Path):
        return DataLocation(data_dir)
    key = hashlib.sha256(redacted(data_dir).encode()).hexdigest()[:12]
    return DataLocation(_cache() / "data" / key, data_dir)


def is_sweep_name(name: str) -> bool:
    """Return whether a name can be a folder anywhere: letters, digits, '.', '_' and '-'."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name))


def _address(storage: str) -> str | None:
    """Return the address of a storage that is not on a local disk, None for one that is."""
    if is_uri(storage):
        return storage
    path, mounts = Path(storage).absolute(), ""
    with contextlib.suppress(OSError):  # not on Linux
        mounts = Path("/proc/self/mountinfo").read_text()
    return path.as_uri() if _is_on_network(path, mounts) else None


def _is_on_network(path: Path, mounts: str) -> bool:
    """Return whether a path is on a network file system; `mounts` is the text of mountinfo."""
    path, best, kind = path.resolve(), -1, ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), left.split()[4]))
        # The longest mount point counts, and the last of several at the same path.
        if len(point.parts) >= best and path.is_relative_to(point):
            best, kind = len(point.parts), right.split()[0]
    return re.fullmatch(_NETWORK_FILE_SYSTEMS, kind) is not None


def attempt_path(signature: str, attempt: int) -> str:
    """Return the folder of an attempt's checkpoints, relative to the sweep's folder."""
    return f"{TRIALS}/{signature}/attempt_{attempt}"


def attempt_log(signature: str, attempt: int) -> str:
    """Return the log file of an attempt, relative to the sweep's folder."""
    return f"{attempt_path(signature, attempt)}.log"


def checkpoint_path(signature: str, attempt: int, epoch: int) -> str:
    """Return the folder of an epoch's checkpoint, relative to the sweep's folder."""
    return f"{attempt_path(signature, attempt)}/epoch_{epoch:04d}"


def path_or_address(text: str) -> Path | str:
    """Return an address unchanged, and any other text as a path."""
    return text if is_uri(text) else Path(text)
