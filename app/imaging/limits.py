"""Limits on an image's size, and the checks that need no decoder."""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import TooLarge, UndecodableImage
from app.units import MIB

# Memory for each pixel while an image is decoded, with all intermediate copies. The worst of each format was
# measured: tests/safety/test_decoders.py. JPEG 2000 in DICOM needs more, so fewer pixels are accepted.
PIXEL_BYTES = 16
JPEG_2000_PIXEL_BYTES = 20
FILE_COPIES = 4  # of the file's bytes, including the buffers of the codec
FIXED_BYTES = 64 * MIB  # for everything whose size does not depend on the image
STRIP_PIXELS = 1 << 20  # are converted at once; an image of one cell is one strip
NO_MEMORY = "decoding the image takes more memory than a decoder may use"


@dataclass(frozen=True)
class ImageLimits:
    """The largest image that is accepted."""

    max_bytes: int = 16 * MIB
    max_pixels: int = 25_000_000
    max_side: int = 12_000  # pixels

    @property
    def memory_bytes(self) -> int:
        """Return the most memory that decoding an image may take."""
        return PIXEL_BYTES * self.max_pixels + FILE_COPIES * self.max_bytes + FIXED_BYTES


DEFAULT_LIMITS = ImageLimits()


def check_bytes(data: bytes, limits: ImageLimits) -> None:
    """Raise TooLarge if the file exceeds the limit."""
    if len(data) > limits.max_bytes:
        raise TooLarge(f"the image has {len(data)} bytes; at most {limits.max_bytes} are accepted")


def check_size(width: int, height: int, limits: ImageLimits, kind: str = "") -> None:
    """Check the width and height in a header, in pixels. kind: Pillow's name of the format.

    Raises TooLarge, UndecodableImage.
    """
    if min(width, height) < 1:
        raise UndecodableImage("the image has no pixels")
    most = limits.max_pixels
    if kind == "JPEG2000":
        most = most * PIXEL_BYTES // JPEG_2000_PIXEL_BYTES
    if max(width, height) > limits.max_side or width * height > most:
        raise TooLarge(
            f"the image is {width} by {height} pixels; at most {most} pixels"
            f" and {limits.max_side} a side are accepted"
        )
