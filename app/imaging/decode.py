"""Decode untrusted bytes to RGB pixels.

Rules for each kind of image:

- The format is recognised by the first bytes, whatever the file name: JPEG, PNG, WebP, TIFF, BMP, GIF and,
  with the extra `dicom`, DICOM. Any other format is `UnsupportedFormat`. An empty file or a truncated file
  of a known format is `UndecodableImage`.
- Of an animation, a multi-page TIFF or an MPO, only the first frame is read, unless the pages of a TIFF are
  the channels of one image (`tiff_channels`).
- Grey, palette and 1-bit images are converted to RGB. Samples of more than 8 bits are scaled, not clipped;
  which value is white: `levels`. CMYK and YCCK are converted by the plain formula, without a colour profile.
- Alpha, a palette's alpha and an 8-bit colour key are composited on white. An image that is transparent
  everywhere is taken as opaque: its writer did not mean it.
- TIFF: `tiff`; what it does not read is refused by name.
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
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, ImageOps

from app.errors import TooLarge, UndecodableImage, UnsupportedFormat
from app.image_signatures import SIGNATURES, Signature
from app.imaging import dicom, png, tiff
from app.imaging.dicom_elements import add_preamble, is_dicom, is_headless
from app.imaging.levels import lay_on_white
from app.imaging.limits import DEFAULT_LIMITS, NO_MEMORY, ImageLimits, check_bytes, check_size
from app.imaging.strip_metadata import Bare, read_orientation, strip
from app.imaging.strips import by_strips, strips

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
    data = add_preamble(data)
    if is_dicom(data):
        return _decode_dicom(data, limits)
    kind = recognise(data)
    bare = strip(data, kind)
    with _refusing(kind, limits):
        if kind == "TIFF":
            return turn(*tiff.read(data, limits))
        image = _load_png(bare, limits) if kind == "PNG" else _load(bare.data, kind, limits)
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
    if is_headless(data):
        raise UnsupportedFormat(
            "the file looks like a DICOM data set without the header of a file: the preamble, DICM and the"
            " group 0002 with the transfer syntax (PS3.10, section 7.1); save it as a DICOM file"
        )
    formats = (*ACCEPTED, "DICOM") if dicom.installed() else ACCEPTED
    raise UnsupportedFormat(f"the image format is not supported; use {', '.join(formats)}")


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
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        _check(image, data, limits)
        if declared is not None:
            _compare(image, declared)
        image.load()
        return image.copy() if kind == "WEBP" else image  # the copy is without WebP's decoder and its buffers


def _load_png(bare: Bare, limits: ImageLimits) -> Image.Image:
    return png.read(bare.data, bare.bits, lambda image: _check(image, bare.data, limits))


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
    if image.format == "JPEG2000":
        _check_codestream(data)


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
    """Convert any of Pillow's modes with 8 bits to RGB; alpha is composited on white."""
    if image.has_transparency_data:
        return by_strips(image, _drop_alpha if _is_clear(image) else lay_on_white)
    return image if image.mode == "RGB" else image.convert("RGB")  # convert copies even RGB


def _drop_alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").convert("RGB")


def _is_clear(image: Image.Image) -> bool:
    """Return whether no pixel can be seen."""
    return not any(rows.convert("RGBA").getchannel("A").getbbox() for _, rows in strips(image))


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Turn the image upright. orientation: 1 to 8 as in EXIF."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
