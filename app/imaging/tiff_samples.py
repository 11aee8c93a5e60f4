"""Read the samples of a TIFF as NumPy arrays, whatever they mean.

Pillow and libtiff decompress; the rest is done here, because Pillow ignores some of the tags. Each group of
strips or tiles is written into a TIFF of its own, whose tags say that it is grey with 8 bits and as wide as a
row has bytes. So neither library interprets samples, and neither reads any tag of the file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from app.errors import TooLarge, UndecodableImage
from app.imaging import tiff_jpeg
from app.imaging import tiff_tags as tags
from app.imaging.limits import NO_MEMORY, PIXEL_BYTES, STRIP_PIXELS, ImageLimits
from app.imaging.tiff_layout import BLACK_IS_ZERO, CMYK, JPEG, RAW, UNASSOCIATED, YCBCR, Layout
from app.imaging.tiff_tags import Page

Samples = NDArray[np.generic]  # [rows, columns, samples of a pixel]
Rows = Callable[[int, int], Samples]  # the rows from one to before another

_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]


class Reader:
    """The rows of an image, which can be read more than once."""

    def __init__(self, page: Page, layout: Layout) -> None:
        self._page, self._layout = page, layout
        self._groups = groups(layout)
        self._kept: list[Rows] = []  # of an image that is one group

    def __iter__(self) -> Iterator[tuple[int, Samples]]:
        """Yield the rows in pieces of about STRIP_PIXELS pixels, from the top, each with its first row."""
        layout = self._layout
        height = max(1, STRIP_PIXELS // (layout.width * max(1, layout.stride * layout.bits // 32)))
        for first, end in self._groups:
            planes = self._kept or self._decompress(first, end)
            top = first * layout.part_height
            bottom = min(end * layout.part_height, layout.height)
            for start in range(top, bottom, height):
                rows = start - top, min(start + height, bottom) - top
                samples = [plane(*rows)[:, : layout.width] for plane in planes]
                yield start, samples[0] if len(samples) == 1 else np.concatenate(samples, axis=2)
            del planes  # before the next group is decompressed

    def _decompress(self, first: int, end: int) -> list[Rows]:
        planes = [_decompress(self._page, self._layout, plane, first, end) for plane in self._layout.planes]
        if len(self._groups) == 1:
            self._kept = planes
        return planes


def groups(layout: Layout) -> list[tuple[int, int]]:
    """Return rows of strips or tiles, from one to before another, of about STRIP_PIXELS pixels each."""
    size = max(1, STRIP_PIXELS // (layout.part_height * layout.part_width * layout.across))
    return [(first, min(first + size, layout.down)) for first in range(0, layout.down, size)]


def check_memory(layout: Layout, limits: ImageLimits) -> None:
    """Raise TooLarge if decompressing takes more memory than a decoder may use, or shares bytes."""
    if layout.compression == RAW:
        return
    if sum(layout.sizes) > limits.max_bytes:
        raise TooLarge(f"the TIFF's strips or tiles have more than {limits.max_bytes} bytes")
    rows = max(end - first for first, end in groups(layout)) * layout.part_height
    pixels = rows * layout.part_width * layout.across
    # libtiff decodes a strip or tile as a whole; the copy in Pillow's image is the second.
    planes = len(layout.planes)
    part = layout.part_width * layout.part_height * layout.stride * layout.bits / 8
    held = pixels * planes * layout.stride * layout.bits / 8
    image = 4 * layout.width * layout.height  # Pillow's RGB; it is made after the only group was decompressed
    needed = held + max(part, image) if len(groups(layout)) == 1 else held + part + image
    if needed > PIXEL_BYTES * limits.max_pixels:
        raise TooLarge(NO_MEMORY)


def _decompress(page: Page, layout: Layout, plane: int, first: int, end: int) -> Rows:
    """Return the samples of a plane in some rows of parts, decompressed."""
    if layout.compression == RAW:
        rows = _raw_rows(page, layout, plane, first, end)
        return lambda top, bottom: _unpack(rows[top:bottom], layout)
    numbers = range(*(plane * layout.down * layout.across + row * layout.across for row in (first, end)))
    if any(layout.offsets[n] + layout.sizes[n] > len(page.data) for n in numbers):
        raise UndecodableImage("the TIFF is truncated")
    parts = [page.data[layout.offsets[n] : layout.offsets[n] + layout.sizes[n]] for n in numbers]
    height = min(end * layout.part_height, layout.height) - first * layout.part_height
    if layout.compression == JPEG:
        image = _load_jpegs(page, layout, parts, height)
        return lambda top, bottom: np.atleast_3d(_rows(image, top, bottom))
    image = _load_bytes(layout, parts, height)
    return lambda top, bottom: _unpack(_rows(image, top, bottom), layout)


def _rows(image: Image.Image, top: int, bottom: int) -> NDArray[np.uint8]:
    whole = (top, bottom) == (0, image.height)
    return np.asarray(image if whole else image.crop((0, top, image.width, bottom)))


def _raw_rows(page: Page, layout: Layout, plane: int, first: int, end: int) -> NDArray[np.uint8]:
    """Return the bytes [rows, bytes] of parts that are not compressed."""
    bands = []
    for row in range(first, end):
        height = layout.part_height
        if not layout.tiled:
            height = min(height, layout.height - row * height)
        start = (plane * layout.down + row) * layout.across
        parts = [_raw_part(page, layout, layout.offsets[start + n], height) for n in range(layout.across)]
        bands.append(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))
    rows = bands[0] if len(bands) == 1 else np.concatenate(bands)
    return _REVERSED[rows] if layout.reversed_bits else rows


def _raw_part(page: Page, layout: Layout, offset: int, height: int) -> NDArray[np.uint8]:
    size = height * layout.row_bytes
    if offset + size > len(page.data):
        raise UndecodableImage("the TIFF is truncated")
    return np.frombuffer(page.data, np.uint8, size, offset).reshape(height, layout.row_bytes)


def _load_bytes(layout: Layout, parts: list[bytes], height: int) -> Image.Image:
    """Return the bytes of the parts, decompressed, as a grey image."""
    width = layout.row_bytes * layout.across
    described = _describe(layout, width, height) | {
        tags.BITS: (8,),
        tags.PHOTOMETRIC: (BLACK_IS_ZERO,),
        tags.SAMPLES: (1,),
    }
    if layout.tiled:
        described[tags.TILE_WIDTH] = (layout.row_bytes,)
    return _load(tags.write(described, parts, tiled=layout.tiled), "L", (width, height))


def _load_jpegs(page: Page, layout: Layout, parts: list[bytes], height: int) -> Image.Image:
    """Return the pixels of parts that are JPEGs; libjpeg converts YCbCr to RGB."""
    _check_jpegs(layout, parts, height)
    width = layout.part_width * layout.across if layout.tiled else layout.width
    mode = {1: "L", 3: "RGB", 4: "CMYK" if layout.photometric == CMYK else "RGBA"}[layout.stride]
    described = _describe(layout, width, height) | {
        tags.BITS: (layout.bits,) * layout.stride,
        tags.SAMPLES: (layout.stride,),
        tags.PHOTOMETRIC: (BLACK_IS_ZERO if layout.stride == 1 else layout.photometric,),
    }
    if tags.JPEG_TABLES in page:
        described[tags.JPEG_TABLES] = page.octets(tags.JPEG_TABLES)
    if layout.photometric == YCBCR and not layout.planar:
        described[tags.YCBCR_SUBSAMPLING] = page.integers(tags.YCBCR_SUBSAMPLING, (2, 2), most=2)
    if mode == "RGBA":
        described[tags.EXTRAS] = (UNASSOCIATED,)
    return _load(tags.write(described, parts, tiled=layout.tiled), mode, (width, height))


def _check_jpegs(layout: Layout, parts: list[bytes], height: int) -> None:
    for number, part in enumerate(parts):
        left = height - number * layout.part_height  # of strips, the last may be lower
        tiff_jpeg.check(
            part, layout.part_width, layout.part_height if layout.tiled else min(layout.part_height, left)
        )


def _describe(layout: Layout, width: int, height: int) -> dict[int, tuple[int, ...] | bytes]:
    described: dict[int, tuple[int, ...] | bytes] = {
        tags.WIDTH: (width,),
        tags.HEIGHT: (height,),
        tags.COMPRESSION: (layout.compression,),
        tags.FILL_ORDER: (2 if layout.reversed_bits else 1,),
    }
    if layout.tiled:
        return described | {tags.TILE_WIDTH: (layout.part_width,), tags.TILE_HEIGHT: (layout.part_height,)}
    return described | {tags.STRIP_ROWS: (layout.part_height,)}


def _load(data: bytes, mode: str, size: tuple[int, int]) -> Image.Image:
    # Not Image.open: its limit on pixels is meant for pixels, and here they may be bytes.
    with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as image:
        if image.mode != mode:
            raise UndecodableImage("the TIFF's combination of compression and samples is not supported")
        image.im = Image.new(mode, size, None).im
        image.load()
        return image


def _unpack(rows: NDArray[np.uint8], layout: Layout) -> Samples:
    """Return the samples [rows, columns, samples] in bytes [rows, bytes]; columns include tiles' padding."""
    columns = layout.part_width * layout.across if layout.tiled else layout.width
    count = columns * layout.stride
    if layout.predictor == 3:
        samples = _restore_floats(rows, layout)
    elif layout.bits % 8:
        samples = _unpack_bits(rows, count, layout.bits)
    else:
        kind = "u" if layout.predictor == 2 else layout.kind
        stored = np.dtype(f"{layout.order}{kind}{layout.bits // 8}")
        samples = np.ascontiguousarray(rows).view(stored).astype(stored.newbyteorder("="), copy=False)
    samples = samples.reshape(len(rows), columns, layout.stride)
    if layout.predictor == 2:
        pieces = samples.reshape(len(rows), layout.across, -1, layout.stride)
        samples = np.add.accumulate(pieces, axis=2, dtype=pieces.dtype).reshape(samples.shape)
        samples = samples.view(f"{layout.kind}{layout.bits // 8}")
    return samples


def _unpack_bits(rows: NDArray[np.uint8], count: int, bits: int) -> Samples:
    """Return `count` samples of each row; they are packed from the high bit down, in either byte order."""
    size = 8 if bits < 8 else 16
    padded = np.zeros((len(rows), count, size), np.uint8)
    flat = np.unpackbits(rows, axis=1, count=count * bits)
    padded[:, :, size - bits :] = flat.reshape(len(rows), count, bits)
    packed = np.packbits(padded, axis=2)
    return packed if size == 8 else packed.view(">u2").astype(np.uint16)


def _restore_floats(rows: NDArray[np.uint8], layout: Layout) -> Samples:
    """Undo the floating-point predictor (Adobe Photoshop TIFF Technical Note 3).

    Each row of a part holds the differences of its bytes, the high bytes of all samples first.
    """
    size = layout.bits // 8
    pieces = rows.reshape(len(rows), layout.across, -1, layout.stride)
    summed = np.add.accumulate(pieces, axis=2, dtype=np.uint8)
    planes = summed.reshape(len(rows), layout.across, size, -1)
    whole = np.ascontiguousarray(planes.transpose(0, 1, 3, 2))
    return whole.view(f">f{size}").astype(f"f{size}")
