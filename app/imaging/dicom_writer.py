"""DICOM files of nobody, to try and to rehearse with; needs the extra `dicom`."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from app.imaging.dicom import (
    ENCODED,
    EXPLICIT,
    JPEG,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    MICROSCOPIC,
    RLE,
    require,
)
from app.imaging.dicom_elements import BIG_ENDIAN, IMPLICIT

if TYPE_CHECKING:
    from pydicom import Dataset

COLOURS = {JPEG: "YBR_FULL_422", JPEG_2000: "YBR_ICT", JPEG_2000_LOSSLESS: "YBR_RCT"}


def write(image: Image.Image, syntax: str = EXPLICIT) -> bytes:
    """A VL Microscopic Image (PS3.3, A.32.2) in any transfer syntax of `app.imaging.dicom`.

    Raises UnsupportedFormat without the extra.
    """
    require()
    from pydicom import dcmwrite
    from pydicom.encaps import encapsulate
    from pydicom.pixels.utils import compress

    found = _describe(image, syntax)
    if kind := ENCODED.get(syntax):
        frame = io.BytesIO()
        options = {"no_jp2": True, "irreversible": syntax == JPEG_2000} if kind == "JPEG2000" else {}
        image.convert("RGB").save(frame, kind, **options)
        found.PixelData = encapsulate([frame.getvalue()])
        found["PixelData"].is_undefined_length = True
    else:
        found.PixelData = image.convert("RGB").tobytes()
        found.PixelData += b"\0" * (len(found.PixelData) % 2)
    if syntax == RLE:
        compress(found, syntax, generate_instance_uid=False)
    file = io.BytesIO()
    encoding = {"implicit_vr": syntax == IMPLICIT, "little_endian": syntax != BIG_ENDIAN}
    dcmwrite(file, found, enforce_file_format=True, **encoding)
    return file.getvalue()


def _describe(image: Image.Image, syntax: str) -> Dataset:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, generate_uid

    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = UID(EXPLICIT if syntax == RLE else syntax)
    found.SOPClassUID = MICROSCOPIC
    found.SOPInstanceUID, found.StudyInstanceUID, found.SeriesInstanceUID = (generate_uid() for _ in range(3))
    found.PatientName = found.PatientID = found.StudyID = ""
    found.Modality = "GM"  # general microscopy
    found.SamplesPerPixel, found.PlanarConfiguration = 3, 0
    found.PhotometricInterpretation = COLOURS.get(syntax, "RGB")
    found.Columns, found.Rows = image.size
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 8, 8, 7, 0
    return found
