"""From untrusted bytes to RGB pixels, or to an error that says why not.

What becomes of each kind of picture:

- JPEG, PNG, WebP, TIFF, BMP, GIF and, with the extra `dicom`, DICOM are told by their first bytes,
  whatever their name; anything else is `UnsupportedFormat`. Nothing at all, or the beginning of a
  known format, is `UndecodableImage`.
- The first frame of an animation, a multi-page TIFF or an MPO; the rest is never visited.
- Grey, palette and 1-bit become RGB. 16-bit grey is scaled, not clipped: 65535 is white; 16-bit
  colour keeps its upper 8 bits. 32-bit integer and float have no white of their own: see `_white`.
  CMYK and YCCK by the plain formula.
- Alpha, a palette's alpha and an 8-bit colour key are laid on white.
- EXIF orientation is applied; a broken EXIF block counts as none. Colour profiles are ignored, so
  a broken one does no harm.
- DICOM: `app/imaging/dicom.py` lists the transfer syntaxes.
- Run-length coded BMP is refused: Pillow decodes it in Python, seconds for a few kilobytes.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from app.errors import TooLarge, UndecodableImage, UnsupportedFormat
from app.imaging import dicom
from app.imaging.dicom_elements import is_dicom
from app.imaging.limits import DEFAULT_LIMITS, ImageLimits, check_bytes, check_size
from app.imaging.strip_metadata import read_orientation, strip

# format → the bytes it has at which offsets
SIGNATURES: dict[str, tuple[tuple[tuple[int, bytes], ...], ...]] = {
    "JPEG": (((0, b"\xff\xd8\xff"),),),
    "PNG": (((0, b"\x89PNG\r\n\x1a\n"),),),
    "WEBP": (((0, b"RIFF"), (8, b"WEBP")),),
    "TIFF": (((0, b"II*\0"),), ((0, b"MM\0*"),), ((0, b"II+\0"),), ((0, b"MM\0+"),)),
    "BMP": (((0, b"BM"),),),
    "GIF": (((0, b"GIF87a"),), ((0, b"GIF89a"),)),
}
ACCEPTED = tuple(SIGNATURES)

# What Pillow was seen to raise on some hundred thousand broken pictures, and what its sources and
# the modules under it say they raise on data.
DECODER_ERRORS = (
    OSError,  # truncated or corrupt data; UnidentifiedImageError
    SyntaxError,  # broken headers and chunks
    ValueError,  # dimensions, tiles outside the picture, oversized text
    TypeError,  # TIFF tags of a wrong type
    ArithmeticError,  # rationals over zero; counts past a C long
    LookupError,  # short headers, missing tags
    AttributeError,  # parts of a picture that a corrupt file lacks
    EOFError,
    MemoryError,  # sizes that only a corrupt header claims
    NotImplementedError,
    AssertionError,
    struct.error,
    zlib.error,
)

NOISY = r"(PIL|pydicom)\."  # pydicom would repeat what a file says

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
    """The picture as it is meant to be seen, in RGB.

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
        return turn(to_rgb(image), orientation)


def recognise(data: bytes) -> str:
    """Pillow's name of the format, by the first bytes."""
    if not data:
        raise UndecodableImage("the image is empty")
    for kind, variants in SIGNATURES.items():
        if any(_begins(data, parts) for parts in variants):
            return kind
    raise UnsupportedFormat(f"the image is none of {', '.join(ACCEPTED)}")


def _begins(data: bytes, parts: tuple[tuple[int, bytes], ...]) -> bool:
    # data that stops within the signature counts as a truncated picture
    return all(part.startswith(data[place : place + len(part)]) for place, part in parts)


def _quieten() -> None:
    # Set for good, not by catch_warnings, which would mix up the filters of threads: broken metadata
    # is no news, and each warning's text would be remembered for ever.
    if ("ignore", None, UserWarning, re.compile(NOISY), 0) not in warnings.filters:
        warnings.filterwarnings("ignore", category=UserWarning, module=NOISY)
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def _decode_dicom(data: bytes, limits: ImageLimits) -> Image.Image:
    found = dicom.unwrap(data, limits)
    if isinstance(found, Image.Image):
        return to_rgb(found)
    with _refusing(found.kind, limits):
        image = _load(found.data, found.kind, limits)
        if image.size != found.size or image.mode not in ("L", "RGB"):
            raise UndecodableImage(f"the {found.kind} in the DICOM is not what the file says it is")
        return to_rgb(ImageOps.invert(image) if found.inverted else image)


def _load(data: bytes, kind: str, limits: ImageLimits) -> ImageFile.ImageFile:
    """With all its pixels. kind: Pillow's name of the format."""
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        _check(image, limits)
        image.load()
        return image


@contextmanager
def _refusing(kind: str, limits: ImageLimits) -> Iterator[None]:
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the image has more than {limits.max_pixels} pixels") from error
    except DECODER_ERRORS as error:
        raise UndecodableImage(f"the {kind} data is truncated, corrupt or of an unknown kind") from error


def _check(image: ImageFile.ImageFile, limits: ImageLimits) -> None:
    """What the header claims, before a pixel is decoded."""
    check_size(*image.size, limits)
    if any(tile.codec_name == "bmp_rle" for tile in image.tile):
        raise UndecodableImage("run-length coded BMP is not decoded")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiles(image, limits)


def _check_tiles(image: TiffImagePlugin.TiffImageFile, limits: ImageLimits) -> None:
    # libtiff decodes whole tiles, and a tile may be far larger than the picture that it is cut to
    width = image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 1)
    height = image.tag_v2.get(TiffImagePlugin.TILELENGTH, 1)
    if width * height > limits.max_pixels:
        raise TooLarge(f"the image's tiles have more than {limits.max_pixels} pixels")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes to RGB; 16-bit grey scaled to 8, alpha laid on white."""
    if image.mode.startswith("I;16"):
        return _scale(np.asarray(image), 65535)
    if image.mode in ("I", "F"):
        pixels = np.asarray(image)
        return _scale(pixels, _white(float(pixels.max()), image.mode))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Upright, by the EXIF orientation that the picture had."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _white(brightest: float, mode: str) -> float:
    """The least customary white that no pixel exceeds: 1 for floats, then 8, 16 and 32 bits."""
    whites = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0, 2.0**31)
    for white in whites:
        if brightest <= white:
            return white
    raise ValueError("no customary white is as bright as this picture, or a pixel is no number")


def _scale(pixels: NDArray[np.generic], white: float) -> Image.Image:
    levels = pixels.astype(np.float32)
    np.clip(levels, 0, white, out=levels)
    levels *= 255 / white
    np.rint(levels, out=levels)
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
