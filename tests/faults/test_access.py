"""Who can reach a running sweep: this host only, and nobody without the token."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

from orchestrator.execution.cluster import ensure_token
from orchestrator.storage.paths import SweepPaths
from tests.integration.sweeps import count_epochs, environment, started, sweep, wait_for
from tests.integration.test_worker_groups import RAY, _printed_address

pytestmark = pytest.mark.faults

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
MARK = "SWEEP_TEST_MARK"  # by this variable a sweep's processes are told from all others


def _processes(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _listening(pids: list[int]) -> dict[tuple[str, int], str]:
    """Return the TCP addresses on which these processes accept connections, and who does."""
    owners = {}
    for pid in pids:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            for link in Path(f"/proc/{pid}/fd").iterdir():
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
                if match:
                    owners[match.group(1)] = title
        except OSError:
            continue
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in owners:
                host, port = words[1].split(":")
                found[_address(host), int(port, 16)] = owners[words[9]]
    return found


def _address(text: str) -> str:
    """Decode the kernel's hexadecimal: 32-bit words, each with its lowest byte first."""
    raw = b"".join(bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _is_metrics(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            return answer.read(6) == b"# HELP"
    except urllib.error.HTTPError:
        return False


def _status(address: str, body: dict | None = None, token: str | None = None) -> int:
    request = urllib.request.Request(
        address, data=None if body is None else json.dumps(body).encode()
    )
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("workers", [1, 2])
def test_a_running_sweep_listens_on_loopback_only_and_its_dashboard_requires_the_token(
    tmp_path: Path, digits_data_dir: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Case 79: every listening socket of every process of the sweep; with two workers per trial
    Ray's dashboard, which takes jobs, is on."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    paths = SweepPaths(tmp_path / "results", "digits")
    with started(
        tmp_path,
        "digits",
        *("--variants", "cnn3", "--trials", 1, "--epochs", 500, "--data-dir", digits_data_dir),
        *("--workers-per-trial", workers),
    ) as process:
        wait_for(lambda: count_epochs(paths) >= 1 or process.poll() is not None, "an epoch", 120)
        assert process.poll() is None
        listening = _listening(_processes(mark))
        dashboards = [
            port for (_, port), title in listening.items() if "dashboard.py" in title.split(" -")[0]
        ]
        assert listening
        outside = {at: who.strip() for at, who in listening.items() if at[0] not in LOOPBACK}
        assert outside == {}
        token = (Path.home() / ".ray" / "auth_token").read_text().strip()
        job = {"entrypoint": f"touch {tmp_path / 'executed'}"}
        answers = []
        for port in dashboards:
            page = f"http://127.0.0.1:{port}/api/jobs/"
            if not _is_metrics(port):  # which its neighbour serves, also on loopback only
                assert _status(page, token=token) == 200
                answers += [_status(page), _status(page, job), _status(page, job, "0" * 64)]
        assert set(answers) <= {401, 403}
        assert len(answers) == (3 if workers > 1 else 0)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert not (tmp_path / "executed").exists()
    wait_for(lambda: not _processes(mark), "the end of every process", 30)


def test_a_token_file_that_others_can_read_is_restricted_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 80: Ray writes it with mode 0644."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("a token of Ray's")
    path.chmod(0o644)
    ensure_token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "a token of Ray's"


def test_a_token_file_is_written_whole_and_only_its_owner_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 80: also where a killed writer left it empty, with which no Ray would start."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / ".ray" / "auth_token"
    old = os.umask(0)
    try:
        ensure_token()
        first = path.read_text()
        path.write_text("")
        ensure_token()
    finally:
        os.umask(old)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert re.fullmatch("[0-9a-f]{64}", path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["auth_token"]


def test_a_cluster_refuses_a_sweep_with_another_token_or_none(
    tmp_path: Path, digits_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 80: one clear sentence, status 2, and the sweep's name is free again."""
    for name in ("owner", "stranger"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "owner"))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    ensure_token()
    head = subprocess.Popen(
        [
            RAY,
            "start",
            "--head",
            "--port=0",
            "--num-cpus=1",
            "--include-dashboard=false",
            "--block",
        ],
        env={**environment(), "RAY_AUTH_MODE": "token", "RAY_ADDRESS": "", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        address = _printed_address(head)
        options = (
            "--variants",
            "cnn3",
            "--trials",
            1,
            "--epochs",
            1,
            "--data-dir",
            digits_data_dir,
        )
        monkeypatch.setenv("HOME", str(tmp_path / "stranger"))
        for setting in ("token", "disabled"):
            monkeypatch.setattr(
                "tests.integration.sweeps.environment",
                lambda setting=setting: {**environment(), "RAY_AUTH_MODE": setting},
            )
            refused = sweep(tmp_path, "digits", *options, address=address)
            said = refused.stdout + refused.stderr
            assert refused.returncode == 2, said
            assert "Traceback" not in said
            assert f"No Ray cluster can be joined at '{address}'" in refused.stderr
            assert "token" in refused.stderr
            assert len(refused.stderr) < 1500
            assert not (tmp_path / "results").exists()
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
