"""Decodes image files into a split's file, on all cores.

The parent distributes members in chunks. Each worker reads files and members of a zip itself,
decodes its chunk and writes the pixels to their place in the file. So no pixel is sent between
processes, and memory is bounded by the chunks in progress.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from orchestrator.data.archives.read import Content
from orchestrator.data.archives.zip_member import ZipMember
from orchestrator.data.arrow import Histogram, Pixels, SplitFile, histogram
from orchestrator.errors import OrchestratorError, UsageError
from trainables import limits

MAX_PIXELS = 64 * 10**6
# Other formats are refused, so that rarely used decoders never see untrusted files.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PROBLEMS = 10  # listed in one error
_CHUNK_IMAGES = 256
_CHUNK_BYTES = 2**24
_IN_PROCESS_IMAGES = 512  # below this, starting workers takes longer than decoding

_Chunk = list[tuple[int, str, Content]]  # rows of a split with the members to decode
_Decoded = tuple[Histogram, list[str], int]  # of a chunk: its problems, its number of images


def decode_split(
    split: SplitFile,
    members: Iterable[tuple[str, Content]],
    row_of: Mapping[str, int],
    *,
    resize: bool,
    pool: Executor | None = None,
    update: Callable[[int], None] = lambda done: None,
) -> Histogram:
    """Decode members to RGB, write each to its row, and return the histogram, (3, 256).

    `members` are those of `read_members`, in any order; `row_of` is the row of each. With `resize`,
    the centre square of an image is resized to the split's image size; without, an image of another
    size is an error. `pool` is of `decoders`; None: decode in this process. `update` is
    called with the number of images done so far.

    Raises:
        UsageError: images that are broken, too large or of a wrong size; all are named, up to
            `MAX_PROBLEMS`.
    """
    total: Histogram = np.zeros((split.shape[2], 256), np.int64)
    problems: list[str] = []
    done = 0
    decode_chunk = partial(_decode_chunk, split, resize)
    for counts, found, images in _run(decode_chunk, _chunks(members, row_of), pool):
        total += counts
        problems += found
        done += images
        update(done)
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        more = " There may be more." if len(problems) >= MAX_PROBLEMS else ""
        raise UsageError(" ".join(problems[:MAX_PROBLEMS]) + more)
    return total


def _chunks(members: Iterable[tuple[str, Content]], row_of: Mapping[str, int]) -> Iterator[_Chunk]:
    chunk: _Chunk = []
    size = 0
    for name, content in members:
        chunk.append((row_of[name], name, content))
        size += len(content) if isinstance(content, bytes) else 0
        if len(chunk) == _CHUNK_IMAGES or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _workers() -> int:
    return min(limits.num_cpus(), 16)


@contextmanager
def decoders(images: int) -> Iterator[ProcessPoolExecutor | None]:
    """Yield a pool of decoding processes, one per CPU; None if there are few images to decode."""
    if images < _IN_PROCESS_IMAGES or _workers() == 1:
        yield None
        return
    # Spawned, not forked: the parent has threads (Arrow's, a progress bar's).
    pool = ProcessPoolExecutor(_workers(), get_context("spawn"), initializer=_follow_parent)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise OrchestratorError(
            "A decoding process ended without an error, most often for lack of memory. Free some "
            "memory and run the same command again."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run(
    decode_chunk: Callable[[_Chunk], _Decoded], chunks: Iterator[_Chunk], pool: Executor | None
) -> Iterator[_Decoded]:
    """Decode chunks in this process, or in the pool with few of them in progress."""
    if pool is None:
        yield from map(decode_chunk, chunks)
        return
    under_way: set[Future[_Decoded]] = set()
    for chunk in chunks:
        under_way.add(pool.submit(decode_chunk, chunk))
        if len(under_way) >= 3 * _workers():
            finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    yield from (future.result() for future in under_way)


def _follow_parent() -> None:
    """Ignore Ctrl+C, which the parent handles, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _decode_chunk(split: SplitFile, resize: bool, chunk: _Chunk) -> _Decoded:
    """Decode and write one chunk."""
    height, width, channels = split.shape
    pixels = np.zeros((len(chunk), height, width, channels), np.uint8)
    problems: list[str] = []
    first = chunk[0][2]  # all are members of the same zip, or none is one
    zipped = first.archive.open("rb") if isinstance(first, ZipMember) else nullcontext()
    with split.path.open("r+b") as file, zipped as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unusual metadata of a camera is not an error
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for index, (_, name, content) in enumerate(chunk):
            try:
                if isinstance(content, ZipMember):
                    content = content.read(archive)  # noqa: PLW2901
                pixels[index] = decode(content, (height, width), resize=resize)
            except MemoryError as error:
                raise OrchestratorError(f"There is too little memory to read {name!r}.") from error
            except Exception as error:  # decoders raise nearly anything on broken files
                problems.append(f"The image {name!r} cannot be used: {_reason(error, content)}.")
        # Most members are in the order of their rows, so few pieces need to be written.
        rows = [row for row, _, _ in chunk]
        starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)]
        for start, end in itertools.pairwise(starts):
            file.seek(split.pixels_at + rows[start] * split.image_bytes)
            file.write(pixels[start:end].data)
    return histogram(pixels, channels), problems, len(chunk)


def read_image(content: bytes | Path, name: str, shape: tuple[int, int, int]) -> Pixels:
    """Return the pixels of one image: its centre square, resized, in RGB or grey.

    `shape` is height, width and channels (1 or 3) of the result; `name` is the image's, for errors.

    Raises:
        UsageError: it is missing, broken, too large or of an unknown format.
    """
    if isinstance(content, Path) and content.is_dir():
        raise UsageError(f"There is no image in the folder {name!r}. Name image files.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as for a dataset; `decode` checks the size
            pixels = decode(content, shape[:2], resize=True)
    except FileNotFoundError as error:
        raise UsageError(f"There is no image {name!r}. Check the path.") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken files
        raise UsageError(
            f"The image {name!r} cannot be used: {_reason(error, content)}."
        ) from error
    if shape[2] == 1:
        return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    return pixels


def _reason(error: Exception, content: Content) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"it has more than the {MAX_PIXELS:,} pixels accepted"
    if isinstance(error, UnidentifiedImageError):
        data = content.read_bytes() if isinstance(content, Path) else content
        if not data:
            return "it is empty"
        if isinstance(data, bytes) and data.startswith(b"version https://git-lfs"):
            return "it is a pointer of Git LFS; run `git lfs pull` in its repository"
        return f"it is no image in a known format ({', '.join(FORMATS)}); convert or remove it"
    if "MAX_TEXT" in str(error):
        return "its text metadata unpacks to more than 1 MiB; save it without metadata"
    return str(error).rstrip(".") or type(error).__name__


def decode(content: bytes | Path, size: tuple[int, int], *, resize: bool) -> Pixels:
    """Return the pixels of one image file in RGB, (height, width, 3).

    Grey (8 or 16 bits), palette and CMYK become RGB; transparency is dropped; of an animation the
    first frame is used. With `resize`, the camera's orientation is applied, and the centre square
    is cropped and resized with Pillow's (antialiased) bicubic filter; without, the image must have
    this size, (height, width), already.

    Raises:
        Exception: any error of the decoder on a broken file; ValueError for a wrong size.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # the default; another library may have changed it
    height, width = size
    if not resize and (pixels := _jpeg_as_it_is(content, size)) is not None:
        return pixels
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    with Image.open(file, formats=FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:  # known from the header, nothing decoded yet
            raise Image.DecompressionBombError
        # Pillow opens a PGM of 16 bits in its mode for 32.
        is_pgm = opened.format == "PPM" and opened.mode == "I"
        image: Image.Image = opened.convert("I;16") if is_pgm else opened
        if not resize:
            if (image.height, image.width) != size:
                got = f"{image.height} x {image.width}"
                raise ValueError(f"it must be {height} x {width} pixels; it is {got}")
            return np.asarray(_to_rgb(image))
        # A JPEG decoder can leave out detail that is not visible at four times the image size;
        # several times faster on photographs. Other formats ignore this.
        image.draft(None, (4 * width, 4 * height))
        upright = ImageOps.exif_transpose(image)
        edge = min(upright.size)
        left, top = (upright.width - edge) // 2, (upright.height - edge) // 2
        square = _to_rgb(upright.crop((left, top, left + edge, top + edge)))
        return np.asarray(square.resize((width, height), Image.Resampling.BICUBIC))


def _jpeg_as_it_is(content: bytes | Path, size: tuple[int, int]) -> Pixels | None:
    """Decode a whole JPEG of the right size in a third of Pillow's time, to the same pixels.

    None for any other file: Pillow reads more formats and describes the errors.
    """
    data = content.read_bytes() if isinstance(content, Path) else content
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        if (height, width) != size or colours not in ("YCbCr", "Gray"):
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError:
        return None
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            "its pixels are signed, of 32 bits or fractions; save it with 8 or 16 bits"
        )
    return image.convert("RGB")
