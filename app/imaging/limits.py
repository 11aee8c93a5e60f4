"""Limits on an image's size, and the checks that need no decoder."""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import TooLarge, UndecodableImage
from app.units import MIB

PIXEL_BYTES = 16  # memory for each pixel while an image is decoded, with all intermediate copies
FILE_COPIES = 6  # of the file's bytes, including the buffers of the codec
FIXED_BYTES = 64 * MIB  # for everything whose size does not depend on the image
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


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Check the width and height in a header, in pixels. Raises TooLarge, UndecodableImage."""
    if min(width, height) < 1:
        raise UndecodableImage("the image has no pixels")
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise TooLarge(
            f"the image is {width} by {height} pixels; at most {limits.max_pixels} pixels"
            f" and {limits.max_side} a side are accepted"
        )
