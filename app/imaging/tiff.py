"""Decode a TIFF to RGB: `tiff_samples` reads the samples, here they get their meaning.

docs/images.md has the table of what is read. Everything else is refused by its name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import UndecodableImage
from app.imaging import levels, tiff_channels, tiff_samples
from app.imaging import tiff_tags as tags
from app.imaging.limits import ImageLimits
from app.imaging.tiff_layout import CMYK, GREY, JPEG, PALETTE, WHITE_IS_ZERO, YCBCR, Layout
from app.imaging.tiff_samples import Reader, Samples
from app.imaging.tiff_tags import Page


@dataclass(frozen=True)
class Scale:
    """The stored values of black, white and opaque; 0 for opaque means that there is no alpha."""

    black: float
    white: float
    opaque: float


@dataclass(frozen=True)
class _Extremes:
    """The least and the greatest sample of the colours, and the greatest of the alpha."""

    least: float
    greatest: float
    alpha: float


def read(data: bytes, limits: ImageLimits) -> tuple[Image.Image, int]:
    """Return the image in RGB, and its orientation, 1 to 8.

    Raises UndecodableImage, TooLarge, and the exceptions of broken data (`decode.DECODER_ERRORS`).
    """
    pages = tags.pages(data)
    page = next(pages, None)
    if page is None:
        raise UndecodableImage("the TIFF has no image")
    layout = tiff_channels.join(page, pages, limits)
    tiff_samples.check_memory(layout, limits)
    image = _read(page, layout)
    return image, page.integer(tags.ORIENTATION, 1)


def _read(page: Page, layout: Layout) -> Image.Image:
    pieces = Reader(page, layout)
    scale = _find_scale(page, layout, pieces)
    palette = _read_palette(page, layout)
    image = Image.new("RGB", (layout.width, layout.height))
    for top, samples in pieces:
        piece = _to_rgb(samples, layout, scale, palette)
        if piece.height == layout.height:
            return piece
        image.paste(piece, (0, top))
    return image


def _find_scale(page: Page, layout: Layout, pieces: Reader) -> Scale:
    plain = layout.photometric == PALETTE or (layout.bits <= 8 and layout.kind == "u")
    if plain and layout.alpha is None:
        return Scale(0, 2**layout.bits - 1, 0)
    found = _measure(layout, pieces)
    if plain:
        return Scale(0, 2**layout.bits - 1, (2**layout.bits - 1) * (found.alpha > 0))
    black, white = _declared(page, layout, found) or (
        0,
        levels.find_white(found.greatest, layout.kind, layout.bits),
    )
    if found.least < black - white / 510:  # half of one of 255 levels
        raise UndecodableImage("the TIFF has samples below zero, and does not say which value is black")
    opaque = white if found.alpha <= white else levels.find_white(found.alpha, layout.kind, layout.bits)
    return Scale(black, white, opaque if found.alpha > 0 else 0)


def _measure(layout: Layout, pieces: Reader) -> _Extremes:
    found = []
    for _, samples in pieces:
        colours, alpha = samples[..., : layout.colours], _alpha(samples, layout)
        found.append(
            (float(colours.min()), float(colours.max()), 0.0 if alpha is None else float(alpha.max()))
        )
    least, greatest, opaque = zip(*found, strict=True)
    return _Extremes(float(np.min(least)), float(np.max(greatest)), float(np.max(opaque)))  # or not a number


def _declared(page: Page, layout: Layout, found: _Extremes) -> tuple[float, float] | None:
    """Return the values of black and white if the file has SMinSampleValue or SMaxSampleValue.

    MaxSampleValue counts as well where it is the greatest value of some number of bits.
    """
    greatest = max(page.numbers(tags.GREATEST), default=None)
    if greatest is None and tags.LEAST not in page:
        (greatest,) = page.numbers(tags.MAX_VALUE, (0,), most=1)
        if layout.kind == "f" or greatest < max(255, found.greatest) or int(greatest) & (int(greatest) + 1):
            return None
    black = min(page.numbers(tags.LEAST), default=0)
    white = levels.find_white(found.greatest, layout.kind, layout.bits) if greatest is None else greatest
    if not black <= found.least <= found.greatest <= white or black >= white:
        raise UndecodableImage("the TIFF has samples outside its SMinSampleValue and SMaxSampleValue")
    return black, white


def _alpha(samples: Samples, layout: Layout) -> Samples | None:
    if layout.alpha is None:
        return None
    return samples[..., -1 if layout.planar else layout.alpha]


def _read_palette(page: Page, layout: Layout) -> NDArray[np.uint8] | None:
    """Return the colours [entries, 3] of a palette, None for an image without one."""
    if layout.photometric != PALETTE:
        return None
    entries = 2**layout.bits
    colours = page.integers(tags.COLOURS, most=3 * entries)
    if len(colours) < 3 * entries:
        raise UndecodableImage("the TIFF's palette is missing or too short")
    table = np.array(colours, np.uint32).reshape(3, entries).T
    shift = 8 if table.max() > 255 else 0  # old writers stored 8 bits
    return np.ascontiguousarray(table >> shift, np.uint8)


def _to_rgb(samples: Samples, layout: Layout, scale: Scale, palette: NDArray[np.uint8] | None) -> Image.Image:
    colours = samples[..., : layout.colours]
    if palette is not None:
        image = Image.fromarray(palette[colours[..., 0]])
    else:
        image = _colour(levels.scale(colours, scale.white, scale.black), layout)
    alpha = _alpha(samples, layout)
    if alpha is None or not scale.opaque:
        return image
    cover = levels.scale(alpha, scale.opaque)
    if layout.associated:
        return Image.fromarray(_add_white(np.asarray(image), cover))
    image.putalpha(Image.fromarray(cover))
    return levels.lay_on_white(image)


def _colour(shades: NDArray[np.uint8], layout: Layout) -> Image.Image:
    """Convert 8-bit samples [rows, columns, colours] to RGB."""
    if layout.photometric in GREY:
        grey = shades[..., 0]
        return Image.fromarray(255 - grey if layout.photometric == WHITE_IS_ZERO else grey).convert("RGB")
    shades = np.ascontiguousarray(shades)
    if layout.photometric == CMYK:
        return _from_mode("CMYK", shades).convert("RGB")
    if layout.photometric == YCBCR and (layout.planar or layout.compression != JPEG):
        return _from_mode("YCbCr", shades).convert("RGB")  # libjpeg converts that of a JPEG
    return Image.fromarray(shades)


def _from_mode(mode: str, shades: NDArray[np.uint8]) -> Image.Image:
    return Image.frombytes(mode, (shades.shape[1], shades.shape[0]), shades.tobytes())


def _add_white(colours: NDArray[np.uint8], cover: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Compose colours that were multiplied by their cover on white."""
    light: NDArray[np.uint16] = colours.astype(np.uint16) + (255 - cover)[..., None]
    return np.minimum(light, 255).astype(np.uint8)
