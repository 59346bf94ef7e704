"""Hosts on one Linux machine, each with an address, processes, a home and an sshd of its own.

A host is a network, PID, mount and UTS namespace. Killing its first process kills all of its
processes, like a power failure; its home and Ray's temporary folder remain, like a disk.
Needs root, iproute2, openssh-server and rsync.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

NETWORK = "10.77.0"
OUTSIDE = f"{NETWORK}.254"  # this machine, as the hosts see it
BRIDGE = "sweep0"
HOME = "/tmp/sweep-home"  # of root, on each host its own
TOOLS = ("ip", "unshare", "nsenter", "/usr/sbin/sshd", "ssh", "ssh-keygen", "rsync", "tmux")


def missing() -> str | None:
    """Return why no hosts can be created on this machine, None if they can."""
    if os.geteuid() != 0:
        return "hosts are namespaces, and creating them needs root"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return (
            f"hosts need {', '.join(lacking)} (iproute2, util-linux, openssh-server, rsync, tmux)"
        )
    for probe in (
        ("unshare", "-m", "-n", "-p", "-u", "-f", "true"),
        ("ip", "link", "add", "sweep-probe", "type", "bridge"),
        ("ip", "link", "del", "sweep-probe"),
    ):
        ended = _run(*probe, check=False)
        if ended.returncode:
            return f"no hosts can be created: {shlex.join(probe)} failed: {ended.stderr.strip()}"
    return None


@dataclass
class Host:
    """One host; `folder` is its disk, `key` the SSH key for `ray up` and the tests."""

    number: int
    folder: Path
    key: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"sweep-h{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def home(self) -> Path:
        """The host's `HOME`, as a path on this machine."""
        return self.folder / "home"

    def boot(self) -> None:
        """Start the host: its first process is its sshd."""
        for name in ("home", "ray"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.home / ".bashrc").touch()  # as every system's user has one
        names = "".join(f"{NETWORK}.{n} sweep-h{n}\n" for n in range(1, 10))
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        sshd = (
            f"exec /usr/sbin/sshd -D -e -o PidFile=none -o HostKey={self.key.parent}/hostkey "
            f"-o AuthorizedKeysFile={self.key}.pub -o StrictModes=no -o PermitRootLogin=yes "
            "-o UsePAM=no -o MaxStartups=100 -o MaxSessions=100"
        )
        disk = shlex.quote(str(self.folder))
        script = (
            f"hostname {self.name} && mount --bind {disk}/home {HOME} && "
            f"mount --bind {disk}/ray /tmp/ray && mount --bind {disk}/hosts /etc/hosts && "
            f"mount --bind {disk}/passwd /etc/passwd && {sshd}"
        )
        # Not /root itself: this machine's Python may be in it.
        users = Path("/etc/passwd").read_text().splitlines()
        fields = next(line for line in users if line.startswith("root:")).split(":")
        ours = [":".join([*fields[:5], HOME, "/bin/bash"])]
        ours += [line for line in users if not line.startswith("root:")]
        (self.folder / "passwd").write_text("\n".join(ours) + "\n")
        for place in (HOME, "/tmp/ray"):
            Path(place).mkdir(exist_ok=True)
        log = (self.folder / "sshd.log").open("ab")
        self.process = subprocess.Popen(
            [
                *("ip", "netns", "exec", self.name, "unshare", "-m", "-p", "-u", "-f"),
                *("--kill-child", "--mount-proc", "sh", "-c", script),
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "HOME": HOME, "LANG": "C.UTF-8"},
        )
        log.close()
        for _ in range(100):
            if self.ssh("true", check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "sshd.log").read_text())

    def ssh(
        self, command: str, *, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host as `ray exec` does."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        options += ["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5", "-o", "BatchMode=yes"]
        return _run(
            *("ssh", "-i", str(self.key), *options, f"root@{self.address}"),
            f"bash --login -c -i {shlex.quote(f'source ~/.bashrc; {command}')} 2>&1",
            check=check,
            timeout_s=timeout_s,
        )

    def pids(self) -> list[int]:
        """Return all processes of the host."""
        return [int(pid) for pid in _run("ip", "netns", "pids", self.name).stdout.split()]

    def kill(self) -> None:
        """Kill all of its processes, like a power failure."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """Stop all of its processes with SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue its stopped processes."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def cut(self) -> None:
        """Disconnect it from the network."""
        _run("ip", "link", "set", f"sweep-v{self.number}", "down")

    def reconnect(self) -> None:
        """Connect it to the network again."""
        _run("ip", "link", "set", f"sweep-v{self.number}", "up")

    def lose_disk(self) -> None:
        """Delete all of its files."""
        for name in ("home", "ray"):
            shutil.rmtree(self.folder / name)


@contextlib.contextmanager
def hosts(number: int, folder: Path) -> Iterator[list[Host]]:
    """Yield hosts on their own network, in which this machine is `OUTSIDE`."""
    _clean_up()
    Path("/run/sshd").mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("id", "hostkey"):
        if not (folder / name).exists():
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    made = [Host(n, folder / f"h{n}", folder / "id") for n in range(1, number + 1)]
    try:
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{OUTSIDE}/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        for host in made:
            _connect(host)
            host.boot()
        yield made
    finally:
        for host in made:
            with contextlib.suppress(Exception):
                host.kill()
        _clean_up()


def _connect(host: Host) -> None:
    own = f"sweep-v{host.number}"
    _run("ip", "netns", "add", host.name)
    _run(*("ip", "link", "add", own, "type", "veth", "peer", "name", "eth0", "netns", host.name))
    _run("ip", "link", "set", own, "master", BRIDGE, "up")
    inside = ("ip", "-n", host.name)
    _run(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        _run(*inside, "link", "set", device, "up")


def _clean_up() -> None:
    """Remove namespaces and links that a killed run left behind."""
    for line in _run("ip", "netns", "list", check=False).stdout.splitlines():
        name = line.split()[0]
        if name.startswith("sweep-h"):
            for pid in _run("ip", "netns", "pids", name, check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _run("ip", "netns", "del", name, check=False)
    links = _run("ip", "-o", "link", check=False).stdout
    for name in re.findall(rf"^\d+: (sweep-v\d+|{BRIDGE})\b", links, re.MULTILINE):
        _run("ip", "link", "del", name, check=False)


def _run(
    *command: str, check: bool = True, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if check and ended.returncode:
        raise AssertionError(f"{shlex.join(command)}\n{ended.stdout}\n{ended.stderr}")
    return ended
