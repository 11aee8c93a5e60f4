"""Decode untrusted bytes to RGB pixels.

Rules for each kind of image:

- The format is recognised by the first bytes, whatever the file name: JPEG, PNG, WebP, TIFF, BMP, GIF and,
  with the extra `dicom`, DICOM. Any other format is `UnsupportedFormat`. An empty file or a truncated file
  of a known format is `UndecodableImage`.
- Of an animation, a multi-page TIFF or an MPO, only the first frame is read.
- Grey, palette and 1-bit images are converted to RGB. 16-bit grey is scaled, not clipped: 65535 is white.
  16-bit colour keeps its upper 8 bits. 32-bit integers and floats have no defined white: see `_white`.
  CMYK and YCCK are converted by the plain formula, without a colour profile.
- Alpha, a palette's alpha and an 8-bit colour key are composited on white.
- EXIF orientation is applied; a broken EXIF block is ignored. Colour profiles are ignored, broken or not.
- DICOM: `app/imaging/dicom.py` lists the transfer syntaxes.
- Run-length encoded BMP is refused: Pillow decodes it in Python, which takes seconds for a few kilobytes.
- An image of which a part is missing is `UndecodableImage`, also where Pillow would fill the part with black.

No image takes more memory than `ImageLimits.memory_bytes`: conversions work on strips, and nothing keeps a
reference to pixels that are no longer needed.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from app.errors import TooLarge, UndecodableImage, UnsupportedFormat
from app.image_signatures import SIGNATURES, Signature
from app.imaging import dicom
from app.imaging.dicom_elements import is_dicom
from app.imaging.limits import DEFAULT_LIMITS, NO_MEMORY, ImageLimits, check_bytes, check_size
from app.imaging.strip_metadata import MAX_SCANS, read_orientation, strip

ACCEPTED = tuple(SIGNATURES)

# Exceptions that Pillow raised on some hundred thousand broken images, and those that its source and the
# modules it uses raise on invalid data.
DECODER_ERRORS = (
    OSError,  # truncated or corrupt data; UnidentifiedImageError
    SyntaxError,  # broken headers and chunks
    ValueError,  # dimensions, tiles outside the image, oversized text
    TypeError,  # TIFF tags of a wrong type
    ArithmeticError,  # rationals over zero; counts past a C long
    LookupError,  # short headers, missing tags
    AttributeError,  # missing parts of a corrupt file
    EOFError,
    NotImplementedError,
    AssertionError,
    struct.error,
    zlib.error,
)

STRIP_PIXELS = 1 << 20  # an image of one cell is one strip

COVER = 2  # tiles may cover this many times the most pixels, since those at the edges are padded
UNWRITTEN = 173  # marks the pixels that a PNG must overwrite; rarely the value of a whole row

# sizes, samples and compression, strips, planes, tiles
_TIFF_LAYOUT = frozenset({256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 322, 323, 324, 325})
_TIFF_STRIPS = frozenset({TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS})
_TIFF_TILES = frozenset({TiffImagePlugin.TILEOFFSETS, TiffImagePlugin.TILEBYTECOUNTS})

_JPEG_SEGMENT = re.compile(rb"\xff+([^\x00\xff])(..)", re.DOTALL)  # marker and length
_JPEG_FRAMES = frozenset(bytes([marker]) for marker in range(0xC0, 0xD0)) - {b"\xc4", b"\xc8", b"\xcc"}

NOISY = r"(PIL|pydicom)\."  # pydicom's warnings quote the file's content

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Return the image in RGB, upright by its EXIF orientation.

    Raises UnsupportedFormat, TooLarge or UndecodableImage.
    """
    check_bytes(data, limits)
    _quieten()
    if is_dicom(data):
        return _decode_dicom(data, limits)
    kind = recognise(data)
    bare = strip(data, kind)
    with _refusing(kind, limits):
        image = _load(bare.data, kind, limits)
        orientation = read_orientation(bare.exif or image.info.get("exif", b""))
        image = to_rgb(image)
        return turn(image, orientation)


def recognise(data: bytes) -> str:
    """Return Pillow's name of the format, recognised by the first bytes.

    Raises UndecodableImage, UnsupportedFormat.
    """
    if not data:
        raise UndecodableImage("the image is empty")
    for kind, variants in SIGNATURES.items():
        if any(_begins(data, signature) for signature in variants):
            return kind
    raise UnsupportedFormat(f"the image format is not supported; use {', '.join(ACCEPTED)}")


def _begins(data: bytes, signature: Signature) -> bool:
    # Data that ends within the signature counts as a truncated image.
    return all(mark.startswith(data[offset : offset + len(mark)]) for offset, mark in signature)


def _quieten() -> None:
    # Permanent filters: catch_warnings is not thread-safe. Warnings about broken metadata are ignored: they
    # need no action, and Python would keep the text of each for the life of the process.
    if ("ignore", None, UserWarning, re.compile(NOISY), 0) not in warnings.filters:
        warnings.filterwarnings("ignore", category=UserWarning, module=NOISY)
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def _decode_dicom(data: bytes, limits: ImageLimits) -> Image.Image:
    content = dicom.unwrap(data, limits)
    if isinstance(content, Image.Image):
        return to_rgb(content)
    with _refusing(content.kind, limits):
        image = _load(content.data, content.kind, limits, content)
        image = ImageOps.invert(image) if content.inverted else image
        return to_rgb(image)


def _load(data: bytes, kind: str, limits: ImageLimits, declared: dicom.Encoded | None = None) -> Image.Image:
    """Decode all pixels. kind: Pillow's name of the format; declared: what the DICOM file says of it."""
    if kind == "WEBP":  # Pillow allocates the pixels when it opens the file
        check_size(*_webp_size(data), limits)
    if kind == "PNG":
        return _load_png(data, limits)
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        _check(image, data, limits)
        if declared is not None:
            _compare(image, declared)
        image.load()
        return image.copy() if kind == "WEBP" else image  # the copy is without WebP's decoder and its buffers


def _load_png(data: bytes, limits: ImageLimits) -> Image.Image:
    # Pillow does not tell whether the data ended before the last row. So the last row is marked, and the mark
    # must be gone afterwards. An image whose last row is like the mark is decoded again with another mark.
    for mark in (UNWRITTEN, 0):
        image = _load_marked(data, limits, mark)
        if image is not None:
            return image
    raise UndecodableImage("the PNG has fewer rows than its header says")


def _load_marked(data: bytes, limits: ImageLimits, mark: int) -> Image.Image | None:
    """Decode a PNG over an image whose last pixels are `mark`; return None if they still are."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        _check(image, data, limits)
        last = _last_pixels(*image.size, interlaced=bool(image.info.get("interlace")))
        canvas = Image.new(image.mode, image.size, None)
        canvas.paste(mark, last)
        before = canvas.crop(last).tobytes()
        image.im = canvas.im
        image.load()
        return None if image.crop(last).tobytes() == before else image


def _last_pixels(width: int, height: int, *, interlaced: bool) -> tuple[int, int, int, int]:
    """Return the box that a PNG's decoder writes last (PNG 3, 8.1: Adam7 ends with the odd rows)."""
    if not interlaced:
        return 0, height - 1, width, height
    if height > 1:
        top = height // 2 * 2 - 1
        return 0, top, width, top + 1
    left = max(0, width // 2 * 2 - 1)  # of a single row, the odd columns
    return left, 0, left + 1, 1


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return the width and height in the header (RFC 9649, section 2.5 to 2.7)."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _compare(image: ImageFile.ImageFile, declared: dicom.Encoded) -> None:
    """Raise UndecodableImage if the frame is not as the DICOM file says; it could take far more memory."""
    if image.size != declared.size or image.mode not in ("L", "RGB") or not declared.has_bytes:
        raise UndecodableImage(
            f"the {declared.kind} frame does not match the size or colours that the DICOM file declares"
        )


@contextmanager
def _refusing(kind: str, limits: ImageLimits) -> Iterator[None]:
    """Turn Pillow's exceptions into TooLarge and UndecodableImage."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the image has more than {limits.max_pixels} pixels") from error
    except MemoryError as error:
        raise TooLarge(NO_MEMORY) from error
    except DECODER_ERRORS as error:
        raise UndecodableImage(
            f"the {kind} data is truncated, corrupt or of an unsupported variant"
        ) from error


def _check(image: ImageFile.ImageFile, data: bytes, limits: ImageLimits) -> None:
    """Check the sizes in the header, before any pixel is decoded."""
    check_size(*image.size, limits, image.format or "")
    if any(tile.codec_name == "bmp_rle" for tile in image.tile):
        raise UndecodableImage("run-length encoded BMP is not supported")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tags(data, image.tag_v2)
        _check_tiles(image, limits)
        if image.tile[0].codec_name != "libtiff":
            _check_raw(image, limits)
        elif image.info["compression"] == "jpeg":
            _check_jpegs(image.tag_v2, data, limits)
    if image.format == "JPEG2000":
        _check_codestream(data)


def _check_tags(data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """Check that Pillow and libtiff read the same: what is checked here must be what libtiff decodes."""
    order = "<" if data.startswith(b"II") else ">"
    form, start, size = ("Q", 8, 20) if b"+" in data[2:4] else ("H", 2, 12)  # of a BigTIFF, and else
    (count,) = struct.unpack_from(order + form, data, tags.offset)
    start += tags.offset
    places = range(start, min(start + size * count, len(data) - 1), size)
    numbers = [struct.unpack_from(order + "H", data, place)[0] for place in places]
    if len(set(numbers)) < len(numbers):  # Pillow reads the last, libtiff the first
        raise UndecodableImage("a tag of the TIFF occurs twice")
    if any(number not in tags for number in _TIFF_LAYOUT.intersection(numbers)):  # Pillow knows fewer types
        raise UndecodableImage("a tag of the TIFF has an unsupported type")
    if not _TIFF_STRIPS.isdisjoint(numbers) and not _TIFF_TILES.isdisjoint(numbers):  # libtiff mixes them
        raise UndecodableImage("the TIFF has both strips and tiles")


def _check_tiles(image: TiffImagePlugin.TiffImageFile, limits: ImageLimits) -> None:
    # libtiff decodes whole tiles, and a tile may be far larger than the image. Strips end with its last row.
    tags = image.tag_v2
    width, height = tags.get(TiffImagePlugin.TILEWIDTH, 1), tags.get(TiffImagePlugin.TILELENGTH, 1)
    across = -(-tags[TiffImagePlugin.IMAGEWIDTH] // width)
    down = -(-tags[TiffImagePlugin.IMAGELENGTH] // height)
    if width * height > limits.max_pixels or across * width * down * height > COVER * limits.max_pixels:
        raise TooLarge(f"the image's tiles have more than {limits.max_pixels} pixels")


def _check_raw(image: TiffImagePlugin.TiffImageFile, limits: ImageLimits) -> None:
    """Check that the uncompressed strips or tiles cover the image; Pillow decodes just those in the table."""
    planes = len(image.getbands()) if image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2 else 1
    boxes = [tile.extents or (0, 0, 0, 0) for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if covered > COVER * limits.max_pixels * planes:
        raise TooLarge(f"the image's strips have more than {limits.max_pixels} pixels")
    if covered < image.width * image.height * planes or any(tile.offset == 0 for tile in image.tile):
        raise UndecodableImage("the TIFF lacks some of its strips or tiles")


def _check_jpegs(tags: TiffImagePlugin.ImageFileDirectory_v2, data: bytes, limits: ImageLimits) -> None:
    if TiffImagePlugin.TILEOFFSETS in tags:
        offsets, lengths = tags[TiffImagePlugin.TILEOFFSETS], tags[TiffImagePlugin.TILEBYTECOUNTS]
    else:
        offsets, lengths = tags[TiffImagePlugin.STRIPOFFSETS], tags[TiffImagePlugin.STRIPBYTECOUNTS]
    if sum(lengths) > limits.max_bytes:  # strips that share bytes
        raise TooLarge(f"the image's strips have more than {limits.max_bytes} bytes")
    for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        _check_jpeg(data, offset, offset + length, _part_size(tags, number))


def _part_size(tags: TiffImagePlugin.ImageFileDirectory_v2, number: int) -> tuple[int, int]:
    """Return the width and height of a TIFF's strip or tile with this number; of planes, 1 by 1."""
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2:
        return 1, 1  # they may be subsampled
    if TiffImagePlugin.TILEWIDTH in tags:
        return tags[TiffImagePlugin.TILEWIDTH], tags[TiffImagePlugin.TILELENGTH]
    width, height = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
    rows = tags.get(TiffImagePlugin.ROWSPERSTRIP, height)
    return width, min(rows, height - number * rows)


def _check_jpeg(data: bytes, start: int, end: int, least: tuple[int, int]) -> None:
    """Check a JPEG in a TIFF as a JPEG alone: its scans, and that its rows and its end are there."""
    if data.count(b"\xff\xda", start, end) > MAX_SCANS:
        raise TooLarge(f"a JPEG in the TIFF has more than {MAX_SCANS} scans")
    width, height = _jpeg_size(data, start, end)
    if width < least[0] or height < least[1] or data.rfind(b"\xff\xd9", start, end) < 0:
        raise UndecodableImage("a JPEG in the TIFF is truncated")


def _jpeg_size(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Return the width and height in the frame header of a JPEG (ISO 10918-1, B.2.2), or zeros."""
    start += 2
    while (segment := _JPEG_SEGMENT.match(data, start, end)) is not None:
        if segment[1] in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, segment.end() + 1)
            return width, height
        start = segment.end(1) + int.from_bytes(segment[2])
    return 0, 0


def _check_codestream(data: bytes) -> None:
    """Check that no tile of a JPEG 2000 is missing (ISO 15444-1, A.4.2 and A.5.1)."""
    start = data.index(b"\xff\x4f\xff\x51")
    right, bottom, _, _, width, height, x, y = struct.unpack_from(">8L", data, start + 8)
    place, tiles = start + 2, set()
    while (marker := data[place : place + 2]) != b"\xff\x90":  # the main header, up to the first tile
        if not marker:
            raise UndecodableImage("the JPEG2000 has no tiles")
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    while data[place : place + 2] == b"\xff\x90":
        _, _, tile, length = struct.unpack_from(">HHHL", data, place)
        tiles.add(tile)
        place = place + max(length, 12) if length else len(data)  # 0: up to the end
    if len(tiles) < -(-(right - x) // width) * -(-(bottom - y) // height):
        raise UndecodableImage("the JPEG2000 lacks some of its tiles")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB; 16-bit grey is scaled to 8 bits, alpha composited on white."""
    if image.mode.startswith("I;16"):
        return _by_strips(image, lambda rows: _scale(np.asarray(rows), 65535))
    if image.mode in ("I", "F"):
        brightest = np.max([np.asarray(rows).max() for _, rows in _strips(image)])  # or not a number
        white = _white(float(brightest), image.mode)
        return _by_strips(image, lambda rows: _scale(np.asarray(rows), white))
    if image.has_transparency_data:
        return _by_strips(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")  # convert copies even RGB


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert to RGB with little memory besides the result."""
    if image.width * image.height <= STRIP_PIXELS:
        return convert(image)
    converted = Image.new("RGB", image.size)
    for top, rows in _strips(image):
        converted.paste(convert(rows), (0, top))
    return converted


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the rows in strips of about STRIP_PIXELS, each with its top row."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Turn the image upright. orientation: 1 to 8 as in EXIF."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _white(brightest: float, mode: str) -> float:
    """Return the lowest usual white that no pixel exceeds.

    Integers: white in 8, 16 or 32 bits. Floats: 1, or white in 8 or 16 bits. Raises ValueError.
    """
    whites = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0, 2.0**31)
    for white in whites:
        if brightest <= white:
            return white
    raise ValueError("a pixel is brighter than every usual white, or not a number")


def _scale(pixels: NDArray[np.generic], white: float) -> Image.Image:
    levels = pixels.astype(np.float32)
    np.clip(levels, 0, white, out=levels)
    levels *= 255 / white
    np.rint(levels, out=levels)
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
