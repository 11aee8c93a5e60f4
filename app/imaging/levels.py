"""Which stored value is white, and the way from stored values to 8 bits.

Files hold values of 10 or 12 bits in samples of 16, or floats, and few say so. The rule, for one image:

1. What the file says: its bits if they are no multiple of 8, SMinSampleValue and SMaxSampleValue of a TIFF,
   sBIT of a PNG.
2. Otherwise the lowest white in `INTEGER_WHITES` or `FLOAT_WHITES` that no sample exceeds. So an image whose
   greatest value is below 4096 is taken for one of 12 bits, and an image of 16 bits that is darker than a
   quarter of its white is brightened, unless the file says that its white is 65535.

Samples of 8 bits or fewer are taken as they are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import UndecodableImage

Kind = Literal["u", "i", "f"]  # unsigned, signed, float: as NumPy names them

INTEGER_WHITES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits
FLOAT_WHITES = (1, *INTEGER_WHITES)


def find_white(brightest: float, kind: Kind, bits: int) -> float:
    """Return the value that is white in samples of this kind, of which the greatest is `brightest`.

    Raises UndecodableImage.
    """
    if kind == "f":
        whites: tuple[float, ...] = FLOAT_WHITES
    else:
        top: int = 2 ** (bits - (kind == "i")) - 1
        if bits <= 8 or bits % 8:
            return top
        whites = (*(white for white in INTEGER_WHITES if white < top), top)
    for white in whites:
        if brightest <= white:
            return white
    raise UndecodableImage("a sample is brighter than every usual white, or not a number")


def scale(samples: NDArray[np.generic], white: float, black: float = 0.0) -> NDArray[np.uint8]:
    """Scale to 8 bits: `black` and below become 0, `white` and above 255."""
    if samples.dtype == np.uint8 and (black, white) == (0, 255):
        return samples  # type: ignore[return-value]
    if samples.dtype.kind == "f":  # an alpha may have any value
        samples = np.clip(samples.astype(np.float64), black, white)
    # 32 bits hold no integer above 2^24; the difference is less than one of 255 levels.
    levels = samples.astype(np.float32)
    levels -= np.float32(black)
    levels *= np.float32(255 / (white - black))
    np.clip(levels, 0, 255, out=levels)
    np.rint(levels, out=levels)
    return levels.astype(np.uint8)


def lay_on_white(image: Image.Image) -> Image.Image:
    """Compose an image of any mode with transparency on white; return RGB."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
