"""Pillow's antialiased resize, with SIMD instructions where cykooz-resizer is installed.

Both compute the same weighted sums, along rows and then along columns, in integers of different precision.
A value may therefore differ by one level of 255, very rarely by one level per direction. Where the edge of a
BOX falls exactly on the middle of a pixel, the two may assign the pixel to different sides.
"""

from __future__ import annotations

from math import ceil, floor

from PIL import Image

try:
    import cykooz_resizer as vectors
except ImportError:  # there is no build for some platforms
    vectors = None

FILTERS = {Image.Resampling.BOX: "box", Image.Resampling.BILINEAR: "bilinear"}

Box = tuple[float, float, float, float]  # left, top, right, bottom


def resize(
    image: Image.Image, size: tuple[int, int], resampling: Image.Resampling, box: Box | None = None
) -> Image.Image:
    """Return the part `box` of an RGB image, by default all of it, resized to `size` (width, height).

    resampling: BOX or BILINEAR.
    """
    if box is not None:
        image, box = _cut(image, size, box)
    if vectors is None:
        return image.resize(size, resampling, box=box)
    left, top, right, bottom = box or (0.0, 0.0, *image.size)
    options = vectors.ResizeOptions(
        vectors.ResizeAlg.convolution(vectors.FilterType[FILTERS[resampling]]),
        use_alpha=False,
        crop_box=vectors.CropBox(left, top, right - left, bottom - top),
    )
    resized = Image.new("RGB", size)
    # A new Resizer per call: threads must not share one, and it never frees the buffers of its largest image.
    vectors.Resizer().resize_pil(image, resized, options)
    return resized


def _cut(image: Image.Image, size: tuple[int, int], box: Box) -> tuple[Image.Image, Box]:
    """Return the part of an image that counts for its part `box`, and the box in it.

    cykooz-resizer copies the image that it is given: 36 MB for each cell of 12 megapixels.
    """
    left, top, right, bottom = box
    across, down = (
        ceil((right - left) / size[0]) + 1,
        ceil((bottom - top) / size[1]) + 1,
    )  # reach of the filters
    x, y = max(0, floor(left) - across), max(0, floor(top) - down)
    part = (x, y, min(image.width, ceil(right) + across), min(image.height, ceil(bottom) + down))
    if part == (0, 0, *image.size):  # of which Pillow would make a copy
        return image, box
    return image.crop(part), (left - x, top - y, right - x, bottom - y)
