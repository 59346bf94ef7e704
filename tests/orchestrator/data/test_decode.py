"""Decoding: colors, sizes, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.data import decode
from orchestrator.data.arrow import SplitFile, checked_split, create_split, histogram, mean_and_std
from orchestrator.errors import OrchestratorError, UsageError
from tests.orchestrator.data import archive_files as sources


def _decode(picture: Image.Image, kind: str = "PNG", *, size_px: int | None = None) -> np.ndarray:
    size = (size_px, size_px) if size_px else (picture.height, picture.width)
    return decode.decode(sources.encoded(picture, kind), size, resize=size_px is not None)


@pytest.mark.parametrize(
    ("mode", "color", "kind", "expected"),
    [
        ("L", 77, "PNG", [77, 77, 77]),
        ("1", 1, "PNG", [255, 255, 255]),
        ("LA", (77, 9), "PNG", [77, 77, 77]),
        ("RGBA", (1, 2, 3, 0), "PNG", [1, 2, 3]),
        ("P", 0, "GIF", [0, 0, 0]),
        ("I;16", 40_000, "PNG", [156, 156, 156]),
        ("L", 80, "JPEG", [80, 80, 80]),
        ("CMYK", (0, 255, 255, 0), "TIFF", [255, 0, 0]),
        ("RGB", (9, 8, 7), "BMP", [9, 8, 7]),
    ],
)
def test_all_color_modes_become_rgb(
    mode: str, color: int | tuple[int, ...], kind: str, expected: list[int]
) -> None:
    pixels = _decode(sources.image(color, mode=mode, size=(8, 8)), kind)
    assert pixels.shape == (8, 8, 3)
    assert pixels[3, 3].tolist() == expected


def test_cmyk_jpegs_become_rgb() -> None:
    pixels = _decode(sources.image((0, 255, 255, 0), mode="CMYK", size=(16, 16)), "JPEG")
    assert np.abs(pixels[8, 8].astype(int) - [255, 0, 0]).max() <= 4


def test_wide_image_is_cut_to_its_centre_square() -> None:
    picture = sources.image((255, 0, 0), size=(90, 30))
    picture.paste((0, 255, 0), (30, 0, 60, 30))
    pixels = _decode(picture, size_px=10)
    assert (pixels == [0, 255, 0]).all()


def test_tall_image_is_cut_to_its_centre_square() -> None:
    picture = sources.image((255, 0, 0), size=(30, 90))
    picture.paste((0, 0, 255), (0, 30, 30, 60))
    assert (_decode(picture, size_px=40) == [0, 0, 255]).all()


def test_resizing_is_antialiased_bicubic() -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    expected = np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC))
    assert (_decode(picture, size_px=16) == expected).all()


def test_camera_orientation_is_applied_when_resizing() -> None:
    picture = sources.image((255, 0, 0), size=(20, 20))
    picture.paste((0, 0, 255), (0, 0, 20, 10))  # blue above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    pixels = decode.decode(buffer.getvalue(), (20, 20), resize=True)
    assert pixels[2, 10].tolist() == [255, 0, 0]
    assert pixels[17, 10].tolist() == [0, 0, 255]


def test_reduced_decoding_of_a_large_jpeg_hardly_changes_it() -> None:
    y, x = np.mgrid[:1024, :1024]
    picture = Image.fromarray((127 + 100 * np.sin(x / 90) * np.cos(y / 70)).astype(np.uint8))
    expected = picture.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    got = _decode(picture, "JPEG", size_px=32)
    assert np.abs(got.astype(int) - np.asarray(expected).astype(int)).max() <= 3


def _split(folder: Path, count: int, size_px: int = 8) -> SplitFile:
    labels = np.zeros(count, np.int64)
    return create_split(folder / "s.arrow", shape=(size_px, size_px, 3), labels=labels)


def _problem(folder: Path, content: bytes) -> str:
    with pytest.raises(UsageError) as caught:
        decode.decode_split(_split(folder, 1), [("x.png", content)], {"x.png": 0}, resize=True)
    return str(caught.value)


def test_a_too_large_image_is_refused_from_its_header(tmp_path: Path) -> None:
    """The file claims 10,000 x 10,000 pixels and has none of them."""
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    content += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
    content += struct.pack(">I", zlib.crc32(b"IDAT"))
    assert _problem(tmp_path, content) == (
        "The image 'x.png' cannot be used: it has more than the 64,000,000 pixels accepted."
    )


def test_an_image_just_over_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    assert "more than the 100 pixels" in _problem(
        tmp_path, sources.encoded(sources.image(0, size=(11, 10)))
    )
    split = _split(tmp_path, 1)
    content = sources.encoded(sources.image((4, 4, 4), size=(10, 10)))
    counts = decode.decode_split(split, [("x", content)], {"x": 0}, resize=True)
    assert counts[:, 4].tolist() == [64, 64, 64]


def test_truncated_image_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = sources.encoded(Image.fromarray(noise), "JPEG")
    assert "truncated" in _problem(tmp_path, content[: len(content) // 2])


def test_an_image_is_not_called_broken_where_the_memory_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode, "decode", fail)
    with pytest.raises(OrchestratorError, match="too little memory") as refused:
        _problem(tmp_path, b"")
    assert not isinstance(refused.value, UsageError)


def test_postscript_is_never_decoded(tmp_path: Path) -> None:
    """Pillow would hand it to an interpreter."""
    content = sources.encoded(sources.image((1, 2, 3)), "EPS")
    assert "it is no image in a known format" in _problem(tmp_path, content)


def test_no_more_problems_than_the_limit_are_listed(tmp_path: Path) -> None:
    names = [f"{number:03}" for number in range(30)]
    row_of = {name: row for row, name in enumerate(names)}
    with pytest.raises(UsageError) as caught:
        decode.decode_split(
            _split(tmp_path, 30), [(name, b"") for name in names], row_of, resize=True
        )
    assert str(caught.value).count("cannot be used") == decode.MAX_PROBLEMS


def test_images_in_any_order_are_written_to_their_rows_by_processes(tmp_path: Path) -> None:
    """More images than are decoded in this process, given backwards."""
    count = 1200
    split = _split(tmp_path, count)
    members = [
        (str(row), sources.encoded(sources.image((row % 256, row // 256, 5), size=(8, 8))))
        for row in reversed(range(count))
    ]
    seen: list[int] = []
    row_of = {str(row): row for row in range(count)}
    with decode.decoders(count) as pool:
        assert pool is not None
        counts = decode.decode_split(
            split, members, row_of, resize=False, pool=pool, update=seen.append
        )
    _, pixels = checked_split(split.path, split.shape)
    assert pixels[:, 7, 7, 0].tolist() == [row % 256 for row in range(count)]
    assert pixels[:, 0, 0, 1].tolist() == [row // 256 for row in range(count)]
    assert (counts == histogram(pixels, 3)).all()
    assert seen[-1] == count


@pytest.mark.parametrize("channels", [1, 3])
def test_a_histogram_counts_every_value_of_every_channel(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 7, 5, channels), dtype=np.uint8)
    pixels[pixels == 9] = 10
    counts = histogram(pixels, channels)
    assert counts.shape == (channels, 256)
    for channel in range(channels):
        expected = [int((pixels[..., channel] == value).sum()) for value in range(256)]
        assert counts[channel].tolist() == expected


@pytest.mark.parametrize("rows", [[4, 5, 6, 0, 1, 3], [5, 4, 3, 2, 1, 0], [0], [0, 1, 2, 3, 4, 5]])
def test_members_in_any_order_are_written_to_their_rows(rows: list[int], tmp_path: Path) -> None:
    split = _split(tmp_path, 7)
    members = [(str(row), sources.encoded(sources.image((row, 0, 9), size=(8, 8)))) for row in rows]
    decode.decode_split(split, members, {str(row): row for row in range(7)}, resize=False)
    _, pixels = checked_split(split.path, split.shape)
    expected = [[row, 0, 9] if row in rows else [0, 0, 0] for row in range(7)]
    assert pixels[:, 3, 4].tolist() == expected


def test_mean_and_std_are_those_of_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 7, 7, 3), dtype=np.uint8)
    mean, std = mean_and_std(histogram(pixels, 3))
    assert mean == pytest.approx((pixels / 255).mean(axis=(0, 1, 2)), abs=1e-14)
    assert std == pytest.approx((pixels / 255).std(axis=(0, 1, 2)), abs=1e-14)


def test_statistics_of_a_full_dataset_do_not_overflow() -> None:
    """The sums of 100,000 images of 64 x 64 pixels, squared, need more than 64 bits."""
    counts = np.zeros((1, 256), np.int64)
    counts[0, 0] = counts[0, 255] = 100_000 * 64 * 64 // 2
    assert mean_and_std(counts) == ([0.5], [0.5])


def test_file_of_another_shape_or_kind_is_refused(tmp_path: Path) -> None:
    split = _split(tmp_path, 2)
    with pytest.raises(OrchestratorError, match="must have the columns"):
        checked_split(split.path, (8, 9, 3))
    split.path.write_bytes(b"something else")
    with pytest.raises(OrchestratorError, match="is not an Arrow IPC file"):
        checked_split(split.path, (8, 8, 3))


def test_new_split_takes_no_disk_and_no_memory_for_its_pixels(tmp_path: Path) -> None:
    labels = np.arange(40_000)
    split = create_split(tmp_path / "s.arrow", shape=(64, 64, 3), labels=labels)
    status = split.path.stat()
    assert status.st_size > 40_000 * 12_288
    assert status.st_blocks * 512 < 2**20
    opened, pixels = checked_split(split.path, split.shape)
    assert opened.pixels_at == split.pixels_at
    assert (opened.labels == labels).all()
    assert pixels.shape == (40_000, 64, 64, 3)
    assert pixels[39_999, 63, 63].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("as_path", [False, True])
def test_jpegs_of_the_right_size_have_pillow_s_pixels(mode: str, as_path: bool, tmp_path: Path):
    noise = np.random.RandomState(0).randint(0, 256, (48, 64, 3), np.uint8)
    content = sources.encoded(Image.fromarray(noise).convert(mode), "JPEG")
    (tmp_path / "a.jpg").write_bytes(content)
    fast = decode._jpeg_as_it_is(tmp_path / "a.jpg" if as_path else content, (48, 64))
    assert fast is not None
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(fast, expected)


def test_pillow_decodes_every_other_file():
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    content = sources.encoded(picture, "JPEG")
    for other in (
        sources.encoded(picture, "PNG"),
        sources.encoded(picture.convert("CMYK"), "JPEG"),
        content[:-20],
        content[: len(content) // 2],
        b"\xff\xd8 and nothing",
        b"",
    ):
        assert decode._jpeg_as_it_is(other, (8, 8)) is None
    assert decode._jpeg_as_it_is(content, (8, 9)) is None
