"""What archives may hold, and that everything else is refused by name."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data import archives
from orchestrator.errors import UsageError
from tests.orchestrator.data import archive_files as sources


@pytest.mark.parametrize("make", [sources.write_zip, sources.write_tar])
@pytest.mark.parametrize(
    "name", ["../up.txt", "a/../../up.txt", "/etc/passwd", "a\\b.txt", "C:/x.txt"]
)
def test_names_outside_the_archive_are_refused(tmp_path: Path, make: Any, name: str) -> None:
    source = make(tmp_path / "archive", {"good.txt": b"1", name: b"2"})
    with pytest.raises(UsageError) as caught:
        archives.member_names(source)
    assert f"its member {name!r} " in str(caught.value)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("strange")
        info.type, info.linkname = kind, "target"
        archive.addfile(info)
    with pytest.raises(UsageError, match="'strange' is a link or a special file"):
        archives.member_names(tmp_path / "a.tar")


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("strange")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "target")
    with pytest.raises(UsageError, match="'strange' is a link or a special file"):
        archives.member_names(tmp_path / "a.zip")


def test_member_that_appears_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("x", "./x"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(UsageError, match="'x' appears twice"):
        archives.member_names(tmp_path / "a.tar")


def test_bombs_are_refused_by_ratio_before_they_are_unpacked(tmp_path: Path) -> None:
    zeros = bytes(4 * 2**20)
    bomb = sources.write_zip(tmp_path / "a.zip", {"bomb": zeros})
    with pytest.raises(UsageError, match="'bomb' unpacks to more than 200 times its size"):
        archives.member_names(bomb)


def test_tar_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "RATIO_EXEMPT_BYTES", 2**10)
    tar = sources.write_tar(tmp_path / "a.tar.gz", {"bomb": bytes(2**22), "after": b"x"})
    with pytest.raises(UsageError, match=r"unpacks to more than .* \(at most 200 times"):
        archives.member_names(tar)


@pytest.mark.parametrize("make", [sources.write_zip, sources.write_tar])
@pytest.mark.parametrize(
    ("cap", "value", "sentence"),
    [
        ("MAX_MEMBERS", 2, "more than 2 members"),
        ("MAX_MEMBER_BYTES", 9, "'c' is larger than 9 bytes"),
        ("MAX_TOTAL_BYTES", 16, "'c' brings the total to more than 16 bytes"),
    ],
)
def test_limits_of_number_and_size_hold(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Any,
    cap: str,
    value: int,
    sentence: str,
) -> None:
    source = make(tmp_path / "archive", {"a": b"1234", "b": b"1234", "c": b"1234567890"})
    assert archives.member_names(source) == ["a", "b", "c"]
    monkeypatch.setattr(archives, cap, value)
    archives._listed.cache_clear()
    # A tar is read in blocks of 512 bytes, which the small caps of this test would refuse too.
    monkeypatch.setattr(archives._CappedStream, "_check", lambda *_: None)
    monkeypatch.setattr(archives._CappedStream, "read", lambda s, n=-1: s._inner.read(n))
    with pytest.raises(UsageError, match=sentence):
        archives.member_names(source)


def test_tar_header_of_a_huge_claimed_length_is_refused(tmp_path: Path) -> None:
    """`tarfile` reads an extended header of any length into memory."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**32
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(UsageError, match="one of its headers claims 4,294,967,296 bytes"):
        archives.member_names(tmp_path / "a.tar")


def test_a_zip_with_a_wrong_size_is_refused(tmp_path: Path) -> None:
    """The stated 10 bytes are read and no more, and then do not fit the checksum."""
    content = sources.write_zip(tmp_path / "a.zip", {"x": bytes(1000)}).read_bytes()
    lie = content.replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (tmp_path / "a.zip").write_bytes(lie)
    with pytest.raises(UsageError, match="'x' is damaged"):
        archives.read_small(tmp_path / "a.zip", ["x"])


def test_damaged_member_is_named(tmp_path: Path) -> None:
    source = sources.write_zip(tmp_path / "a.zip", {"x": b"0123456789" * 9, "y": b"fine"})
    content = bytearray(source.read_bytes())
    content[content.index(b"x", 30) + 3] ^= 0xFF  # the time in the first 30 bytes may hold an "x"
    source.write_bytes(content)
    with pytest.raises(UsageError, match="its member 'x' is damaged"):
        archives.read_small(source, ["x", "y"])


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", [b"", b"#!/bin/sh\n"])
def test_members_have_the_content_that_zipfile_reads(
    tmp_path: Path, packing: int, prefix: bytes
) -> None:
    """Names in ASCII and UTF-8, an empty member, an archive behind a script."""
    path = tmp_path / "a.zip"
    path.write_bytes(prefix)
    members = {"a/x": b"0123456789" * 99, "a/ü": b"\0" * 7, "a/empty": b""}
    with zipfile.ZipFile(path, "a", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert archives.read_small(path, members) == members


def test_a_member_with_another_name_in_the_directory_is_refused(tmp_path: Path) -> None:
    source = sources.write_zip(tmp_path / "a.zip", {"good": b"1"})
    source.write_bytes(source.read_bytes().replace(b"good", b"evil", 1))
    with pytest.raises(UsageError, match="its member 'good' is damaged"):
        archives.read_small(source, ["good"])


def test_a_replaced_archive_is_listed_again(tmp_path: Path) -> None:
    source = sources.write_zip(tmp_path / "a.zip", {"a": b"1"})
    assert archives.member_names(source) == ["a"]
    sources.write_zip(source, {"b": b"1", "c": b"2"})
    assert archives.member_names(source) == ["b", "c"]


def test_cut_off_archives_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = {name: rng.bytes(5000) for name in "abc"}
    for make in (sources.write_zip, sources.write_tar):
        source = make(tmp_path / "archive", members)
        whole = source.read_bytes()
        for length in (len(whole) - 4, len(whole) // 2, 100, 0):
            source.write_bytes(whole[:length])
            with pytest.raises(UsageError, match=r"damaged or cut off|is cut off"):
                archives.member_names(source)


def test_gzip_checksum_is_compared(tmp_path: Path) -> None:
    source = sources.write_tar(tmp_path / "a.tar.gz", {"a": b"content"})
    content = bytearray(source.read_bytes())
    content[-8] ^= 1
    source.write_bytes(content)
    with pytest.raises(UsageError, match="CRC check failed"):
        archives.member_names(source)


def test_plain_tar_and_compressed_tar_read_alike(tmp_path: Path) -> None:
    packed = sources.write_tar(tmp_path / "a.tar.gz", {"d/b": b"2", "d/a": b"1"})
    (tmp_path / "a.tar").write_bytes(gzip.decompress(packed.read_bytes()))
    for source in (packed, tmp_path / "a.tar"):
        assert archives.member_names(source) == ["d/a", "d/b"]
        assert archives.read_small(source, ["d/a", "d/b"]) == {"d/a": b"1", "d/b": b"2"}


def test_missing_member_is_named(tmp_path: Path) -> None:
    source = sources.write_zip(tmp_path / "a.zip", {"a": b"1"})
    with pytest.raises(UsageError, match="its member 'b' is missing"):
        archives.read_small(source, ["a", "b"])


def test_a_folder_with_a_loop_of_links_is_read_once(tmp_path: Path) -> None:
    root = sources.write_folder(tmp_path / "root", {"a/x": b"1", "b/y": b"2"})
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    (root / "z").symlink_to(root / "a" / "x")
    assert archives.member_names(root) == ["a/x", "b/y", "z"]


def test_broken_link_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="'gone' is a broken link"):
        archives.member_names(tmp_path)


def test_checksum_of_a_folder_follows_names_and_contents(tmp_path: Path) -> None:
    first = sources.write_folder(tmp_path / "1", {"a/x": b"1", "b": b"2"})
    same = sources.write_folder(tmp_path / "2", {"b": b"2", "a/x": b"1"})
    renamed = sources.write_folder(tmp_path / "3", {"a/y": b"1", "b": b"2"})
    changed = sources.write_folder(tmp_path / "4", {"a/x": b"1", "b": b"3"})
    sums = [archives.sha256_of(folder) for folder in (first, same, renamed, changed)]
    assert sums[0] == sums[1]
    assert len(set(sums)) == 3


def test_reading_never_writes_beside_the_archive(tmp_path: Path) -> None:
    source = sources.write_zip(tmp_path / "a.zip", sources.tinyimagenet())
    list(archives.read_members(source, archives.member_names(source)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
