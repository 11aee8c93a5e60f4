"""From DICOM files of single cells to what `decode` goes on with; needs the extra `dicom`.

- SOP classes: VL Microscopic Image and VL Slide-Coordinates Microscopic Image (PS3.3, C.8.12.1), one frame.
- Transfer syntaxes: see NATIVE and ENCODED.
- 8 bits a sample. Photometric interpretations: see PHOTOMETRIC. MONOCHROME1 is inverted, palettes are
  looked up.
  What a JPEG's own markers (JFIF, Adobe) say of its colours goes before the photometric interpretation, which
  is used where there are none.

Anything else is refused by its name.
"""

from __future__ import annotations

import io
import logging
import struct
from dataclasses import dataclass
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

# What pydicom raises on what it was not made for.
READER_ERRORS = (AttributeError, LookupError, TypeError, ValueError, RuntimeError, EOFError, struct.error)

_MARKERS = (b"JFIF\0", b"Adobe")
_NOT_TRANSFORMED = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # Adobe's marker: RGB as it is


@dataclass(frozen=True)
class Encoded:
    """kind: Pillow's name of the format; size: width and height in pixels, as the file has them."""

    kind: str
    data: bytes
    size: tuple[int, int]
    inverted: bool


def unwrap(data: bytes, limits: ImageLimits) -> Encoded | Image.Image:
    """A picture in L or RGB, or the compressed one that the file holds.

    Raises UnsupportedFormat, TooLarge or UndecodableImage.
    """
    require()
    syntax, _ = dicom_elements.read_syntax(data)
    kind = ENCODED.get(syntax)
    if kind is None and syntax not in NATIVE:
        name = _name(syntax, "transfer syntax")
        raise UnsupportedFormat(f"DICOM in the {name} is not accepted")
    try:
        return _unwrap(dicom_elements.strip(data), kind, limits)
    except READER_ERRORS as error:
        raise UndecodableImage("the DICOM file's pixels are truncated, corrupt or incomplete") from error


def installed() -> bool:
    return find_spec("pydicom") is not None


def require() -> None:
    if not installed():
        raise UnsupportedFormat("DICOM needs Leuko's extra dicom, which is not installed here")


def _unwrap(bare: bytes, kind: str | None, limits: ImageLimits) -> Encoded | Image.Image:
    from pydicom import dcmread
    from pydicom.encaps import get_frame

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    found = dcmread(io.BytesIO(bare))
    _check_class(found)
    photometric = _check_pixels(found, kind)
    size = (int(found.Columns), int(found.Rows))
    check_size(*size, limits)
    if kind is None:
        return _picture(found, photometric)
    frame = get_frame(found.PixelData, 0, number_of_frames=1)
    if kind == "JPEG":
        frame = _name_colours(strip_metadata.strip(frame, kind).data, photometric)
    return Encoded(kind, frame, size, photometric == "MONOCHROME1")


def _check_class(found: Dataset) -> None:
    if found.SOPClassUID not in (MICROSCOPIC, SLIDE_COORDINATES):
        name = _name(found.SOPClassUID, "SOP class")
        raise UnsupportedFormat(
            f"the DICOM is of the {name}; accepted are VL Microscopic and VL Slide-Coordinates"
            " Microscopic Images of single cells"
        )


def _check_pixels(found: Dataset, kind: str | None) -> str:
    """Its photometric interpretation."""
    if (found.get("NumberOfFrames") or 1) != 1:
        raise UndecodableImage("the DICOM has several frames; send each as an image of its own")
    if (found.BitsAllocated, found.BitsStored, found.PixelRepresentation) != (8, 8, 0):
        raise UndecodableImage("the DICOM has other samples than unsigned 8-bit ones, the only ones accepted")
    photometric = str(found.PhotometricInterpretation)
    if photometric not in PHOTOMETRIC[kind]:
        known = sorted(PHOTOMETRIC[kind])
        raise UndecodableImage(f"the DICOM's photometric interpretation is none of {', '.join(known)}")
    if found.SamplesPerPixel != (1 if photometric in GREY | {"PALETTE COLOR"} else 3):
        raise UndecodableImage("the DICOM's samples do not match its photometric interpretation")
    return photometric


def _picture(found: Dataset, photometric: str) -> Image.Image:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    pixels = pixel_array(found)
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, found)
        if pixels.dtype == np.uint16:  # PS3.3, C.7.6.3.1.6: 16 bits an entry, white is 65535
            pixels = pixels >> 8
    elif photometric == "MONOCHROME1":
        pixels = 255 - pixels
    return Image.fromarray(np.ascontiguousarray(pixels, np.uint8))


def _name_colours(frame: bytes, photometric: str) -> bytes:
    """A JPEG that does not say what its colours are, as what the file says they are."""
    head = frame[: frame.find(b"\xff\xda")]
    if photometric != "RGB" or any(mark in head for mark in _MARKERS):
        return frame
    return frame[:2] + _NOT_TRANSFORMED + frame[2:]


def _name(uid: str, what: str) -> str:
    """As the standard has it; never the identifier itself, which anybody may have chosen."""
    from pydicom._uid_dict import UID_dictionary
    from pydicom.uid import UID

    return f"{what} {UID(uid).name}" if uid in UID_dictionary else f"unknown {what}"
