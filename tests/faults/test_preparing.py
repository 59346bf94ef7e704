"""The preparation of data: a decoding process killed, the disk full."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.commands import data_command, tree
from tests.integration.sweeps import sweep
from tests.orchestrator.data import archive_files
from tests.orchestrator.data.test_prepare import _children
from trainables import limits

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 photographs of 1 Mpx in two classes: seconds of decoding."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (1000, 1000, 3), np.uint8))
    content = archive_files.encoded(noise, "JPEG")
    for label in "ab":
        (folder / label).mkdir()
        for number in range(300):
            (folder / label / f"{number}.jpg").write_bytes(content)
    return folder


def _command(photos: Path, data_dir: Path, image_size: int = 64) -> list[str]:
    words = (
        "prepare",
        "imagefolder",
        "--source",
        photos,
        "--data-dir",
        data_dir,
        "--image-size",
        image_size,
    )
    return [sys.executable, "-m", "orchestrator.data", *map(str, words), "--as", "mine"]


@pytest.mark.skipif(limits.num_cpus() == 1, reason="one core: no decoding processes")
def test_a_killed_decoding_process_is_an_error_and_nothing_waits_for_it(
    tmp_path: Path, photos: Path
) -> None:
    """Case 19: within a minute, in a sentence, and nothing half written."""
    out = tmp_path / "data"
    with subprocess.Popen(
        _command(photos, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while len(children := _children(process.pid)) < 3:  # with the tracker of resources
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(1)
        begun = time.monotonic()
        os.kill(children[-1], signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert "A decoding process ended without an error" in said
    assert tree(out) == set()
    again = data_command(tmp_path, *_command(photos, out)[3:])
    assert again.status == 0, again.said
    assert data_command(tmp_path, "verify", "mine", "--data-dir", out).status == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (2**20, 2**12):
            with contextlib.suppress(OSError):  # it is full
                while True:
                    file.write(bytes(size))


def test_a_disk_that_is_too_small_is_reported_before_any_work(
    small_disk: Path, photos: Path
) -> None:
    """Case 43: the space that is needed is known."""
    ended = data_command(small_disk, *_command(photos, small_disk / "data", image_size=128)[3:])
    assert ended.status == 2, ended.said
    assert "GiB free for this dataset" in ended.said
    assert tree(small_disk) == {"data"}


def test_a_disk_that_fills_up_while_preparing_is_reported_and_nothing_is_left(
    small_disk: Path, photos: Path
) -> None:
    """Case 43: something else takes the space; once it is free the same command succeeds."""
    data_dir = small_disk / "data"
    with subprocess.Popen(
        _command(photos, data_dir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while not list(data_dir.glob(".mine.preparing-*/train.arrow")):
            assert process.poll() is None
            time.sleep(0.005)
        _fill(small_disk)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert "No space left on device" in said
    assert "Free some space there or choose another `--data-dir`" in said
    assert tree(data_dir) == set()
    (small_disk / "filler").unlink()
    again = data_command(small_disk, *_command(photos, data_dir)[3:])
    assert again.status == 0, again.said


def test_a_sweep_whose_data_do_not_fit_is_refused_and_its_name_stays_free(
    small_disk: Path, tmp_path: Path
) -> None:
    """Case 43: a sweep prepares a known dataset by itself."""
    _fill(small_disk)
    ended = sweep(tmp_path, "digits", "--data-dir", small_disk / "data")
    said = ended.stdout + ended.stderr
    assert ended.returncode == 2, said
    assert "Traceback" not in said
    assert "free" in ended.stderr
    assert not (tmp_path / "results").exists()
