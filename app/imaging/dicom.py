"""Read the pixels, or the compressed frame, of DICOM files of single cells; needs the extra `dicom`.

- SOP classes: VL Microscopic Image and VL Slide-Coordinates Microscopic Image (PS3.3, C.8.12.1), one frame.
- Transfer syntaxes: see NATIVE and ENCODED.
- 8 bits a sample. Photometric interpretations: see PHOTOMETRIC. MONOCHROME1 is inverted, palette colours are
  looked up. A JPEG's own colour markers (JFIF, Adobe) take precedence over the photometric interpretation.

Anything else is refused with an error that names it.
"""

from __future__ import annotations

import io
import logging
import struct
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from app.errors import UndecodableImage, UnsupportedFormat
from app.imaging import dicom_elements, strip_metadata
from app.imaging.limits import ImageLimits, check_size

if TYPE_CHECKING:
    from pydicom import Dataset

MICROSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.2"
SLIDE_COORDINATES = "1.2.840.10008.5.1.4.1.1.77.1.3"

EXPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"
JPEG, JPEG_2000, JPEG_2000_LOSSLESS = (f"1.2.840.10008.1.2.4.{number}" for number in (50, 91, 90))
NATIVE = frozenset({dicom_elements.IMPLICIT, EXPLICIT, dicom_elements.BIG_ENDIAN, RLE})
ENCODED = {JPEG: "JPEG", JPEG_2000: "JPEG2000", JPEG_2000_LOSSLESS: "JPEG2000"}  # → Pillow's name
GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
YBR = frozenset({"YBR_FULL", "YBR_FULL_422"})
PHOTOMETRIC = {
    "JPEG": GREY | YBR | {"RGB"},
    "JPEG2000": GREY | {"RGB", "YBR_RCT", "YBR_ICT"},
    None: GREY | YBR | {"RGB", "PALETTE COLOR"},
}

# Exceptions that pydicom raises on invalid files.
READER_ERRORS = (AttributeError, LookupError, TypeError, ValueError, RuntimeError, EOFError, struct.error)

_CODESTREAM = b"\xff\x4f\xff\x51"  # JPEG 2000: its start, then the marker with the sizes
_MARKERS = (b"JFIF\0", b"Adobe")
_NOT_TRANSFORMED = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # Adobe's marker: RGB, not YCbCr


@dataclass(frozen=True)
class Encoded:
    """A compressed frame. kind: Pillow's name of the format; size: width and height in the DICOM header."""

    kind: str
    data: bytes
    size: tuple[int, int]
    inverted: bool

    @property
    def has_bytes(self) -> bool:
        """Return whether no sample of a JPEG 2000 codestream has more than 8 bits (ISO 15444-1, A.5.1)."""
        start = self.data.find(_CODESTREAM)
        if self.kind != "JPEG2000" or start < 0:
            return True
        (samples,) = struct.unpack_from(">H", self.data, start + 40)
        depths = self.data[start + 42 : start + 42 + 3 * samples : 3]
        return all(depth & 0x7F < 8 for depth in depths)


def unwrap(data: bytes, limits: ImageLimits) -> Encoded | Image.Image:
    """Return the image in L or RGB, or the compressed frame if the file holds one.

    Raises UnsupportedFormat, TooLarge or UndecodableImage.
    """
    require()
    syntax, _ = dicom_elements.read_syntax(data)
    kind = ENCODED.get(syntax)
    if kind is None and syntax not in NATIVE:
        raise UnsupportedFormat(f"the DICOM file's transfer syntax is not supported: {_name(syntax)}")
    try:
        return _unwrap(dicom_elements.strip(data), kind, limits)
    except READER_ERRORS as error:
        raise UndecodableImage("the DICOM file's pixels are truncated, corrupt or incomplete") from error


@cache  # a confined decoder may not look for files
def installed() -> bool:
    return find_spec("pydicom") is not None


def require() -> None:
    """Raise UnsupportedFormat if pydicom is not installed."""
    if not installed():
        raise UnsupportedFormat("DICOM files need Leuko's extra dicom, which is not installed")


def _unwrap(bare: bytes, kind: str | None, limits: ImageLimits) -> Encoded | Image.Image:
    from pydicom import dcmread
    from pydicom.encaps import get_frame

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    dataset = dcmread(io.BytesIO(bare))
    _check_class(dataset)
    photometric = _check_pixels(dataset, kind)
    size = (int(dataset.Columns), int(dataset.Rows))
    check_size(*size, limits)
    if kind is None:
        return _to_image(dataset, photometric)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if kind == "JPEG":
        frame = _mark_rgb(strip_metadata.strip(frame, kind).data, photometric)
    return Encoded(kind, frame, size, photometric == "MONOCHROME1")


def _check_class(dataset: Dataset) -> None:
    if dataset.SOPClassUID not in (MICROSCOPIC, SLIDE_COORDINATES):
        raise UnsupportedFormat(
            f"the DICOM file's SOP class is not supported: {_name(dataset.SOPClassUID)}; use VL Microscopic"
            " or VL Slide-Coordinates Microscopic Image Storage, with a single cell"
        )


def _check_pixels(dataset: Dataset, kind: str | None) -> str:
    """Check the elements that describe the pixels; return the photometric interpretation."""
    if (dataset.get("NumberOfFrames") or 1) != 1:
        raise UndecodableImage("the DICOM file has several frames; send each frame as a separate image")
    if (dataset.BitsAllocated, dataset.BitsStored, dataset.PixelRepresentation) != (8, 8, 0):
        raise UndecodableImage("the DICOM file's samples are not unsigned 8-bit integers")
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in PHOTOMETRIC[kind]:
        supported = ", ".join(sorted(PHOTOMETRIC[kind]))
        raise UndecodableImage(f"the DICOM file's photometric interpretation is none of {supported}")
    if dataset.SamplesPerPixel != (1 if photometric in GREY | {"PALETTE COLOR"} else 3):
        raise UndecodableImage(
            "the DICOM file's samples per pixel do not match its photometric interpretation"
        )
    return photometric


def _to_image(dataset: Dataset, photometric: str) -> Image.Image:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    pixels = pixel_array(dataset)
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        if pixels.dtype == np.uint16:  # PS3.3, C.7.6.3.1.6: 16 bits an entry, white is 65535
            pixels = pixels >> 8
    elif photometric == "MONOCHROME1":
        pixels = 255 - pixels
    return Image.fromarray(np.ascontiguousarray(pixels, np.uint8))


def _mark_rgb(frame: bytes, photometric: str) -> bytes:
    """Mark a JPEG as RGB if the DICOM file says that it is and the JPEG has no colour marker of its own."""
    head = frame[: frame.find(b"\xff\xda")]
    if photometric != "RGB" or any(mark in head for mark in _MARKERS):
        return frame
    return frame[:2] + _NOT_TRANSFORMED + frame[2:]


def _name(uid: str) -> str:
    """Return the name in the standard, or unknown; never the UID itself, which can hold private data."""
    from pydicom._uid_dict import UID_dictionary
    from pydicom.uid import UID

    return UID(uid).name if uid in UID_dictionary else "unknown"
