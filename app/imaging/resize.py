"""Pillow's antialiased resize, by vector instructions where a build of them is installed.

Both compute the same weighted sums, along rows and then along columns, in whole numbers of another
precision, so that a value may differ by one level of 255, very rarely by one for each direction; where the
edge of a BOX falls on the very middle of a pixel, they may put it on either side.
"""

from __future__ import annotations

from PIL import Image

try:
    import cykooz_resizer as vectors
except ImportError:  # not built for every machine
    vectors = None

FILTERS = {Image.Resampling.BOX: "box", Image.Resampling.BILINEAR: "bilinear"}

Box = tuple[float, float, float, float]  # left, top, right, bottom


def resize(
    image: Image.Image, size: tuple[int, int], resampling: Image.Resampling, box: Box | None = None
) -> Image.Image:
    """image: RGB; size: width, height; resampling: BOX or BILINEAR; box: what to keep, else all."""
    if vectors is None:
        return image.resize(size, resampling, box=box)
    left, top, right, bottom = box or (0.0, 0.0, *image.size)
    options = vectors.ResizeOptions(
        vectors.ResizeAlg.convolution(vectors.FilterType[FILTERS[resampling]]),
        use_alpha=False,
        crop_box=vectors.CropBox(left, top, right - left, bottom - top),
    )
    resized = Image.new("RGB", size)
    # A new one each time: threads may not share it, and it keeps buffers as large as its largest image.
    vectors.Resizer().resize_pil(image, resized, options)
    return resized
