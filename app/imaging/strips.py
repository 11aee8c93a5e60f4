"""Convert an image a few rows at a time, so that little memory is needed besides the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from PIL import Image

from app.imaging.limits import STRIP_PIXELS


def by_strips(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image], mode: str = "RGB"
) -> Image.Image:
    """Return the image converted to `mode` by `convert`, which gets about STRIP_PIXELS at once."""
    if image.width * image.height <= STRIP_PIXELS:
        return convert(image)
    converted = Image.new(mode, image.size)
    for top, rows in strips(image):
        converted.paste(convert(rows), (0, top))
    return converted


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the rows in strips, each with its top row."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))
