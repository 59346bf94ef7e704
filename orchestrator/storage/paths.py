"""Every file and folder of a sweep: the only code that knows their names.

A sweep's ledger must lie on a local disk, for SQLite's journal is not safe on network file systems.
So a storage on one, or at an address, has a working folder in this machine's cache; `remote`
is the address of the folder that other machines read.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.redaction import redacted
from orchestrator.storage.store import is_uri

# As Linux calls them in /proc/self/mountinfo; "fuse." is one of sshfs, s3fs, glusterfs and others.
_NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs4?|cifs|smb[23]?|smbfs|fuse\..*|9p|virtiofs|lustre|ceph|gpfs|beegfs|afs|ocfs2|gfs2|glusterfs"
    r"|orangefs|pvfs2|panfs|wekafs|davfs"
)


@dataclass(frozen=True, slots=True)
class SweepPaths:
    """Where one sweep lies on this machine and, with a storage at an address, there.

    Attributes:
        local_root: folder of this machine that holds the sweeps' folders.
        name: the sweep's name.
        remote: address of the storage; None for a folder on a local disk.
    """

    local_root: Path
    name: str
    remote: str | None = None

    @property
    def root(self) -> Path:
        """The sweep's own folder."""
        return self.local_root / self.name

    @property
    def ledger(self) -> Path:
        """The one file from which everything else can be rebuilt."""
        return self.root / "ledger.sqlite"

    @property
    def lock(self) -> Path:
        """Held by the driver while it runs."""
        return self.root / "driver.lock"

    @property
    def log(self) -> Path:
        """What Ray and the libraries say."""
        return self.root / "driver.log"

    @property
    def default_tracking_uri(self) -> str:
        """MLflow's store when none is given: one SQLite file for all sweeps of this storage."""
        return f"sqlite:///{(self.local_root / 'mlflow.db').absolute()}"

    @property
    def artifacts(self) -> Path:
        """Where MLflow keeps artifacts when the store is a file."""
        return self.local_root / "mlartifacts"

    def trial(self, signature: str) -> Path:
        """A trial's logs and checkpoints."""
        return self.root / "trials" / signature


def sweep_paths(storage: Path | str, name: str) -> SweepPaths:
    """Return a sweep's paths in a storage, which is a path or an address."""
    address = _address(str(storage))
    if address is None:
        return SweepPaths(Path(storage), name)
    # The same store is the same folder, whoever's password it is opened with.
    key = hashlib.sha256(redacted(address).encode()).hexdigest()[:12]
    return SweepPaths(_cache() / key, name, address)


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache.absolute() / "sweep-orchestrator"


@dataclass(frozen=True, slots=True)
class DataLocation:
    """The folder of each host with prepared datasets, and the address they come from, or None."""

    folder: Path
    address: str | None = None


def data_location(data_dir: Path | str) -> DataLocation:
    """Return where datasets lie: a folder, or an address (a text) with a copy in each cache."""
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
    path = Path(storage).absolute()
    return path.as_uri() if _is_on_network(path, _mounts()) else None


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text()
    except OSError:  # not on Linux
        return ""


def _is_on_network(path: Path, mounts: str) -> bool:
    """Return whether a path lies on a network file system, by the text of mountinfo."""
    path, best, kind = path.resolve(), -1, ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), left.split()[4]))
        # The longest mount point, and of those at one place the last, is the one that is seen.
        if len(point.parts) >= best and path.is_relative_to(point):
            best, kind = len(point.parts), right.split()[0]
    return re.fullmatch(_NETWORK_FILE_SYSTEMS, kind) is not None


def checkpoint_path(signature: str, attempt: int, epoch: int) -> str:
    """Return where an attempt keeps an epoch's checkpoint, relative to the sweep's folder."""
    return f"trials/{signature}/attempt_{attempt}/epoch_{epoch:04d}"


def default_data_dir() -> Path | str:
    """Return where prepared datasets lie unless a command says so: `SWEEP_DATA_DIR`, or `data`."""
    return path_or_address(os.environ.get("SWEEP_DATA_DIR") or "data")


def path_or_address(text: str) -> Path | str:
    """Return a text that is an address as it is, any other as a path."""
    return text if is_uri(text) else Path(text)
