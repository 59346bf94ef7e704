"""What archives may hold, and that everything else is refused by name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data.archives import checks, listing, read, tar_members, zip_names
from orchestrator.errors import UsageError
from tests.orchestrator.data import archive_files as sources


@pytest.mark.parametrize("make", [sources.write_zip, sources.write_tar])
@pytest.mark.parametrize(
    "name", ["../up.txt", "a/../../up.txt", "/etc/passwd", "a\\b.txt", "C:/x.txt"]
)
def test_names_outside_the_archive_are_refused(tmp_path: Path, make: Any, name: str) -> None:
    source = make(tmp_path / "archive", {"good.txt": b"1", name: b"2"})
    with pytest.raises(UsageError) as caught:
        read.member_names(source)
    assert f"its member {name!r} " in str(caught.value)
    if ".." not in name:
        assert "with forward slashes; unpack the archive and give the folder" in str(caught.value)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("strange")
        info.type, info.linkname = kind, "target"
        archive.addfile(info)
    with pytest.raises(UsageError, match="'strange' is a link or a special file; unpack"):
        read.member_names(tmp_path / "a.tar")


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("strange")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "target")
    with pytest.raises(UsageError, match="'strange' is a link or a special file; unpack"):
        read.member_names(tmp_path / "a.zip")


def test_member_that_appears_twice_is_refused(tmp_path: Path) -> None:
    for last in (b"1", b"2"):
        tar, zipped = tmp_path / "a.tar", tmp_path / "a.zip"
        with tarfile.open(tar, "w") as archive, zipfile.ZipFile(zipped, "w") as pack:
            for name, content in (("x", b"1"), ("y", b"3"), ("./x", last)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                pack.writestr(name, content)
        for source in (tar, zipped):
            if last == b"1":  # the same content is not ambiguous
                assert read.member_names(source) == ["x", "y"]
                assert read.read_small(source, ["x"]) == {"x": b"1"}
            else:
                with pytest.raises(UsageError, match="'x' appears twice"):
                    read.member_names(source)


def test_bombs_are_refused_by_ratio_before_they_are_unpacked(tmp_path: Path) -> None:
    zeros = bytes(4 * 2**20)
    bomb = sources.write_zip(tmp_path / "a.zip", {"bomb": zeros})
    with pytest.raises(UsageError, match="'bomb' unpacks to more than 200 times its size"):
        read.member_names(bomb)


def test_tar_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "RATIO_EXEMPT_BYTES", 2**10)
    tar = sources.write_tar(tmp_path / "a.tar.gz", {"bomb": bytes(2**22), "after": b"x"})
    with pytest.raises(UsageError, match=r"unpacks to more than .* \(at most 200 times"):
        read.member_names(tar)


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
    assert read.member_names(source) == ["a", "b", "c"]
    monkeypatch.setattr(checks, cap, value)
    listing._listed.cache_clear()
    # A tar is read in blocks of 512 bytes, which the small caps of this test would refuse too.
    monkeypatch.setattr(tar_members._CappedStream, "_check", lambda *_: None)
    monkeypatch.setattr(tar_members._CappedStream, "read", lambda s, n=-1: s._inner.read(n))
    with pytest.raises(UsageError, match=sentence):
        read.member_names(source)


def test_tar_header_of_a_huge_claimed_length_is_refused(tmp_path: Path) -> None:
    """`tarfile` reads an extended header of any length into memory."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**32
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(UsageError, match="one of its headers claims 4,294,967,296 bytes"):
        read.member_names(tmp_path / "a.tar")


def test_a_zip_with_a_wrong_size_is_refused(tmp_path: Path) -> None:
    """The stated 10 bytes are read and no more, and then do not fit the checksum."""
    content = sources.write_zip(tmp_path / "a.zip", {"x": bytes(1000)}).read_bytes()
    lie = content.replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (tmp_path / "a.zip").write_bytes(lie)
    with pytest.raises(UsageError, match="'x' is damaged"):
        read.read_small(tmp_path / "a.zip", ["x"])


def test_damaged_member_is_named(tmp_path: Path) -> None:
    source = sources.write_zip(tmp_path / "a.zip", {"x": b"0123456789" * 9, "y": b"fine"})
    content = bytearray(source.read_bytes())
    content[content.index(b"x", 30) + 3] ^= 0xFF  # the time in the first 30 bytes may hold an "x"
    source.write_bytes(content)
    with pytest.raises(UsageError, match="its member 'x' is damaged"):
        read.read_small(source, ["x", "y"])


@pytest.mark.parametrize(
    "packing",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
)
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
    assert read.read_small(path, members) == members


def test_a_member_with_another_name_in_the_directory_is_refused(tmp_path: Path) -> None:
    source = sources.write_zip(tmp_path / "a.zip", {"good": b"1"})
    source.write_bytes(source.read_bytes().replace(b"good", b"evil", 1))
    with pytest.raises(UsageError, match="its member 'good' is damaged"):
        read.read_small(source, ["good"])


def test_a_replaced_archive_is_listed_again(tmp_path: Path) -> None:
    source = sources.write_zip(tmp_path / "a.zip", {"a": b"1"})
    assert read.member_names(source) == ["a"]
    sources.write_zip(source, {"b": b"1", "c": b"2"})
    assert read.member_names(source) == ["b", "c"]


def test_cut_off_archives_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = {name: rng.bytes(5000) for name in "abc"}
    for make in (sources.write_zip, sources.write_tar):
        source = make(tmp_path / "archive", members)
        whole = source.read_bytes()
        for length in (len(whole) - 4, len(whole) // 2, 100, 0):
            source.write_bytes(whole[:length])
            with pytest.raises(UsageError, match=r"damaged or cut off|is cut off"):
                read.member_names(source)


def test_gzip_checksum_is_compared(tmp_path: Path) -> None:
    source = sources.write_tar(tmp_path / "a.tar.gz", {"a": b"content"})
    content = bytearray(source.read_bytes())
    content[-8] ^= 1
    source.write_bytes(content)
    with pytest.raises(UsageError, match="CRC check failed"):
        read.member_names(source)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_plain_tar_and_compressed_tar_read_alike(tmp_path: Path, pack: Any) -> None:
    packed = sources.write_tar(tmp_path / "a.tar.gz", {"./d/b": b"2", "d//a": b"1"})
    source = tmp_path / "a.tar.any"
    source.write_bytes(pack(gzip.decompress(packed.read_bytes())))
    assert read.member_names(source) == ["d/a", "d/b"]
    assert read.read_small(source, ["d/a", "d/b"]) == {"d/a": b"1", "d/b": b"2"}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_bombs_in_compressed_tars_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Any
) -> None:
    monkeypatch.setattr(checks, "RATIO_EXEMPT_BYTES", 2**10)
    tar = sources.write_tar(tmp_path / "a.tar.gz", {"bomb": bytes(2**22), "after": b"x"})
    tar.write_bytes(pack(gzip.decompress(tar.read_bytes())))
    with pytest.raises(UsageError, match=r"unpacks to more than .* \(at most 200 times"):
        read.member_names(tar)


def test_a_damaged_header_does_not_end_a_tar_early(tmp_path: Path) -> None:
    """`tarfile` would return the members before it, as if they were all."""
    tar = sources.write_tar(tmp_path / "a.tar.gz", {"a": b"1", "b": b"2", "c": b"3"})
    content = bytearray(gzip.decompress(tar.read_bytes()))
    for changed in (content[:1024] + b"\xff" * 512 + content[1536:], content[: 1024 + 200]):
        tar.write_bytes(changed)
        with pytest.raises(UsageError, match="damaged or cut off"):
            read.member_names(tar)


def test_a_hard_link_in_a_tar_has_the_content_of_the_member_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GNU tar writes one for the second name of a file."""

    def pack(*order: str) -> Path:
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name in order:
                info = tarfile.TarInfo(f"./{name}")
                info.size = 2 if name == "a" else 0
                if name != "a":
                    info.type, info.linkname = tarfile.LNKTYPE, "./a" if name == "b" else "b"
                archive.addfile(info, io.BytesIO(b"hi"))
        return tmp_path / "a.tar"

    source = pack("a", "b", "c")
    assert read.read_small(source, ["c", "a"]) == {"a": b"hi", "c": b"hi"}
    monkeypatch.setattr(checks, "MAX_TOTAL_BYTES", 2**20)
    assert read.read_small(source, ["b"]) == {"b": b"hi"}
    with pytest.raises(UsageError, match="'b' is a link or a special file"):
        read.member_names(pack("b", "a"))


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = sources.write_zip(tmp_path / "a.zip", {"inner": b"1"}).read_bytes()
    packed = sources.write_tar(tmp_path / "a.tar.gz", {"x": b"1", "inner.zip": inner})
    (tmp_path / "a.tar").write_bytes(gzip.decompress(packed.read_bytes()))
    assert read.member_names(tmp_path / "a.tar") == ["inner.zip", "x"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"7z\xbc\xaf'\x1c\0\4" + bytes(99), "a 7z archive"),
        (b"Rar!\x1a\x07\x01\0" + bytes(99), "a RAR archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(99), "a Zstandard archive"),
        (b"PAR1" + bytes(99), "a Parquet file"),
        (b"PK\x07\x08PK\3\4", "the first part of a split zip"),
        (b"\n<!DOCTYPE html><html>Virus scan warning</html>", "an HTML page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML document"),
        (b'{"error": "caf\xc3\xa9"}', "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (sources.encoded(sources.image("red")), "an image"),
        (b"\x80\x04}", "a Python pickle"),
        (bytes(range(1, 255)) * 9, "a file of an unknown kind"),
    ],
)
def test_a_whole_file_of_another_kind_is_not_called_damaged(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    source = tmp_path / "a.tar"
    for stored, what in ((content, kind), (gzip.compress(content), f"a compressed file .* {kind}")):
        source.write_bytes(stored)
        with pytest.raises(UsageError, match=f"is {what}. The source must be a folder") as caught:
            read.member_names(source)
        assert "It is damaged" not in str(caught.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_members_of_other_methods_are_named(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("x", bytes(range(256)) * 99)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[60:80] = bytes(20)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UsageError, match=r"its member 'x' is (damaged|cut off)"):
        read.read_small(tmp_path / "a.zip", ["x"])


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_of_another_method_is_unpacked_up_to_its_stated_size(
    tmp_path: Path, method: int
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("x", bytes(10**6))
    lie = (tmp_path / "a.zip").read_bytes().replace(struct.pack("<I", 10**6), b"\x0a\0\0\0")
    (tmp_path / "a.zip").write_bytes(lie)
    with pytest.raises(UsageError, match="'x' is damaged"):
        read.read_small(tmp_path / "a.zip", ["x"])


def test_an_encrypted_zip_is_named(tmp_path: Path) -> None:
    content = bytearray(sources.write_zip(tmp_path / "a.zip", {"x": b"1"}).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UsageError, match="'x' is encrypted; unpack the archive with its password"):
        read.member_names(tmp_path / "a.zip")


def test_a_zip64_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in "ab":
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(b"content")
    assert read.read_small(tmp_path / "a.zip", "ab") == {"a": b"content", "b": b"content"}


def test_the_last_part_of_a_split_zip_is_named(tmp_path: Path) -> None:
    content = sources.write_zip(tmp_path / "a.zip", {"x": b"1"}).read_bytes()
    end = content.rindex(b"PK\x05\x06") + 4
    (tmp_path / "a.zip").write_bytes(content[:end] + b"\1\0" + content[end + 2 :])
    with pytest.raises(UsageError, match=r"a part of a split zip; join its parts \(`zip -s 0 "):
        read.member_names(tmp_path / "a.zip")


def test_an_unknown_method_of_compression_is_named(tmp_path: Path) -> None:
    content = sources.write_zip(tmp_path / "a.zip", {"x": b"0" * 99}).read_bytes()
    at = content.index(b"PK\x01\x02") + 10
    (tmp_path / "a.zip").write_bytes(content[:at] + b"\x09\0" + content[at + 2 :])
    with pytest.raises(UsageError, match="with method 9, which is not read; unpack the archive"):
        read.member_names(tmp_path / "a.zip")


def _named_zip(path: Path, raw: bytes, extra: bytes = b"") -> Path:
    """Write a zip of one file whose name is `raw`, not marked as UTF-8."""
    stand_in = "x" * len(raw)
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(stand_in)
        info.extra = extra
        archive.writestr(info, b"content")
    path.write_bytes(path.read_bytes().replace(stand_in.encode(), raw))
    return path


def test_names_in_a_zip_are_the_same_in_every_version_of_python(tmp_path: Path) -> None:
    def extra(name: str, raw: bytes, version: int = 1) -> bytes:
        data = struct.pack("<BI", version, zlib.crc32(raw)) + name.encode()
        return struct.pack("<HH4sHH", 0x5455, 4, b"time", 0x7075, len(data)) + data

    japanese = "\u732b".encode("cp932")
    for raw, field, name in (
        (b"caf\x82/1", b"", "caf\u00e9/1"),  # cp437
        (b"\x95\x5c/1", b"", "\u00f2\uff3c/1"),  # the second byte of a Japanese character
        (japanese, b"", japanese.decode("cp437")),  # its encoding is not known
        (japanese, extra("\u732b", japanese), "\u732b"),  # WinRAR, 7-Zip
        (b"cafe/1", extra("caf\u00e9/1", b"cafe/1"), "caf\u00e9/1"),
        (japanese, extra("\u732b", b"another"), japanese.decode("cp437")),  # of an older name
        ("caf\u00e9/1".encode(), b"", "caf\u00e9/1"),  # macOS: UTF-8 without the flag
    ):
        source = _named_zip(tmp_path / "a.zip", raw, field)
        assert read.member_names(source) == [name], (raw, field)
        assert read.read_small(source, [name]) == {name: b"content"}


def test_different_bytes_of_names_are_different_names(tmp_path: Path) -> None:
    """They stay so in the normal form that class names have."""
    names = [bytes([first, second]) for first in range(128, 256) for second in b"A\\\x80\xb2"]
    decoded = {
        unicodedata.normalize("NFC", zip_names._decoded(raw, "cp437") or "") for raw in names
    }
    assert len(decoded) == len(names)


def test_all_names_without_a_statement_have_one_encoding(tmp_path: Path) -> None:
    """The folder's bytes are UTF-8 by accident, those of one file are not."""
    stand_in = {"train/XX/aa": b"1", "val/XX/bb": b"2"}
    source = sources.write_zip(tmp_path / "a.zip", stand_in)
    content = source.read_bytes().replace(b"XX", b"\xc2\xb2").replace(b"aa", b"\x94L")
    source.write_bytes(content)
    folder = b"\xc2\xb2".decode("cp437")
    assert read.member_names(source) == [f"train/{folder}/\u00f6L", f"val/{folder}/bb"]
    assert read.has_guessed_names(source)


def test_a_name_that_is_not_the_utf8_it_is_marked_as_is_refused(tmp_path: Path) -> None:
    source = sources.write_zip(tmp_path / "a.zip", {"caf\u00e9": b"1"})
    source.write_bytes(source.read_bytes().replace("\u00e9".encode(), b"\xe9\xe9"))
    with pytest.raises(UsageError, match="cannot be read"):
        read.member_names(source)


def test_folder_names_hold_empty_folders(tmp_path: Path) -> None:
    members = {"a/b/x": b"1"}
    tar = sources.write_tar(tmp_path / "a.tar", members)
    with tarfile.open(tar, "w") as archive:
        for name in ("./", "./c", "c/d"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("a/b/x"))
    zipped = sources.write_zip(tmp_path / "a.zip", members | {"c/d/": b""})
    folder = sources.write_folder(tmp_path / "folder", members)
    (folder / "c" / "d").mkdir(parents=True)
    for source in (tar, zipped, folder):
        assert read.folder_names(source) == {"a", "a/b", "c", "c/d"}
        assert read.member_names(source) == ["a/b/x"]


def test_missing_member_is_named(tmp_path: Path) -> None:
    source = sources.write_zip(tmp_path / "a.zip", {"a": b"1"})
    with pytest.raises(UsageError, match="its member 'b' is missing"):
        read.read_small(source, ["a", "b"])


def test_links_in_a_folder_are_followed_but_no_folder_is_read_twice(tmp_path: Path) -> None:
    root = sources.write_folder(tmp_path / "root", {"a/x": b"1", "b/y": b"2"})
    other = sources.write_folder(tmp_path / "other", {"x": b"3"})
    (root / "c").symlink_to(other, target_is_directory=True)
    (root / "z").symlink_to(root / "a" / "x")
    (root / ".kept").symlink_to(other, target_is_directory=True)
    assert read.member_names(root) == ["a/x", "b/y", "c/x", "z"]
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    with pytest.raises(UsageError, match="'a/loop' is a link to a folder that holds it"):
        read.member_names(root)
    (root / "a" / "loop").unlink()
    (root / "d").symlink_to(other, target_is_directory=True)
    with pytest.raises(UsageError, match="'d' is the same folder as 'c'"):
        read.member_names(root)


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources.write_folder(tmp_path, {"a/x": b"1", "b/y": b"2"})
    scan = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match=r"'b' cannot be read \(Permission denied\)"):
        read.member_names(tmp_path)


def test_broken_link_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="'gone' is a broken link"):
        read.member_names(tmp_path)


def test_checksum_of_a_folder_follows_names_and_contents(tmp_path: Path) -> None:
    first = sources.write_folder(tmp_path / "1", {"a/x": b"1", "b": b"2"})
    same = sources.write_folder(tmp_path / "2", {"b": b"2", "a/x": b"1"})
    renamed = sources.write_folder(tmp_path / "3", {"a/y": b"1", "b": b"2"})
    changed = sources.write_folder(tmp_path / "4", {"a/x": b"1", "b": b"3"})
    sums = [read.sha256_of(folder) for folder in (first, same, renamed, changed)]
    assert sums[0] == sums[1]
    assert len(set(sums)) == 3


def test_reading_never_writes_beside_the_archive(tmp_path: Path) -> None:
    source = sources.write_zip(tmp_path / "a.zip", sources.tinyimagenet())
    list(read.read_members(source, read.member_names(source)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
