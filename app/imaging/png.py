"""Decode a PNG: all of its rows must be there, and samples of 16 bits are scaled by what is in them.

Pillow keeps the upper 8 bits of 16-bit colour, of which little is left if the samples have 10 or 12 bits
(`levels`). Then a second pass reads the lower 8 bits, by Pillow's name for the opposite byte order.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from app.errors import UndecodableImage
from app.imaging import levels
from app.imaging.strips import by_strips, strips

UNWRITTEN = 173  # marks the pixels that a PNG must overwrite; rarely the value of a whole row
_GREY_AND_ALPHA, _RGB_AND_ALPHA = 4, 6  # PNG 3, 11.2.1: colour types
_LOWER = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}  # byte order → the other

Check = Callable[[ImageFile.ImageFile], None]  # of the header


def read(data: bytes, significant: bytes, check: Check) -> Image.Image:
    """Return the image in one of Pillow's modes with 8 bits.

    significant: the content of the chunk sBIT, empty without it. Raises UndecodableImage, what `check`
    raises, and Pillow's exceptions.
    """
    bits, colour = data[24:26] if len(data) > 25 else (8, 2)
    if bits != 16:
        return _load(data, check)
    declared = max(significant, default=0)
    if colour == _GREY_AND_ALPHA:
        return _scale_grey_alpha(_load(_as_rgba(data), check), declared)
    image = _load(data, check)
    if image.mode.startswith("I;16"):
        (_, greatest) = cast(tuple[int, int], image.getextrema())
        white = _find_white(greatest, declared)
        return by_strips(image, lambda rows: _grey(levels.scale(np.asarray(rows), white)))
    if _find_white(_greatest(image, slice(3)), declared) == 65535:
        return image
    return _scale_colour(image, _load(data, check, lower=True), declared)


def _find_white(greatest: int, declared: int) -> float:
    """Return the white of 16-bit samples. declared: their significant bits, or 0.

    The standard wants them shifted up, so that white is 65535 whatever their number. Where no sample exceeds
    the number that these bits hold, they were not shifted.
    """
    if declared and greatest >= 1 << max(8, declared):
        return 65535
    return (1 << max(8, declared)) - 1 if declared else levels.find_white(greatest, "u", 16)


def _greatest(upper: Image.Image, bands: slice) -> int:
    """Return the greatest 16-bit sample as if its lower byte were 255, as that of every white is."""
    extrema = cast(tuple[tuple[int, int], ...], upper.getextrema())
    return max(greatest for _, greatest in extrema[bands]) << 8 | 255


def _scale_colour(upper: Image.Image, lower: Image.Image, declared: int) -> Image.Image:
    """Return RGB or RGBA with 8 bits from the bytes of 16-bit samples."""
    white = _find_white(_greatest(upper, slice(3)), declared)
    opaque = _opaque(_greatest(upper, slice(3, 4)), white) if upper.mode == "RGBA" else 65535
    scaled = Image.new(upper.mode, upper.size)
    for (top, high), (_, low) in zip(strips(upper), strips(lower), strict=True):
        samples = np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
        piece = Image.fromarray(levels.scale(samples[..., :3], white))
        if upper.mode == "RGBA":
            piece.putalpha(Image.fromarray(levels.scale(samples[..., 3], opaque)))
        scaled.paste(piece, (0, top))
    return scaled


def _scale_grey_alpha(octets: Image.Image, declared: int) -> Image.Image:
    """Return RGBA with 8 bits from the four bytes of grey and alpha of 16 bits."""
    white = _find_white(_greatest(octets, slice(1)), declared)
    opaque = _opaque(_greatest(octets, slice(2, 3)), white)

    def convert(rows: Image.Image) -> Image.Image:
        high, low, alpha_high, alpha_low = np.asarray(rows).astype(np.uint16).transpose(2, 0, 1)
        piece = _grey(levels.scale(high << 8 | low, white))
        piece.putalpha(Image.fromarray(levels.scale(alpha_high << 8 | alpha_low, opaque)))
        return piece

    return by_strips(octets, convert, "RGBA")


def _opaque(greatest: int, white: float) -> float:
    """Return the value of an opaque pixel: that of white, unless the alpha has more bits than the colours."""
    return white if greatest <= white else 65535


def _grey(shades: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(shades).convert("RGB")


def _as_rgba(data: bytes) -> bytes:
    """Declare grey and alpha of 16 bits as RGBA of 8, whose pixels have four bytes and the same filters."""
    header = data[12:24] + bytes([8, _RGB_AND_ALPHA]) + data[26:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4) + data[33:]


def _load(data: bytes, check: Check, *, lower: bool = False) -> Image.Image:
    # Pillow does not tell whether the data ended before the last row. So the last row is marked, and the mark
    # must be gone afterwards. An image whose last row is like the mark is decoded again with another mark.
    for mark in (UNWRITTEN, 0):
        image = _load_marked(data, check, mark, lower=lower)
        if image is not None:
            return image
    raise UndecodableImage("the PNG has fewer rows than its header says")


def _load_marked(data: bytes, check: Check, mark: int, *, lower: bool) -> Image.Image | None:
    """Decode a PNG over an image whose last pixels are `mark`; return None if they still are."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        check(image)
        if lower:
            image.tile = [tile._replace(args=_LOWER[str(tile.args)]) for tile in image.tile]
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
