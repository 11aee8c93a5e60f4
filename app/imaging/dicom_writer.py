"""Write DICOM files without patient data, for demonstrations and tests; needs the extra `dicom`."""

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
    """Return a VL Microscopic Image (PS3.3, A.32.2) in any transfer syntax of `app.imaging.dicom`.

    Raises UnsupportedFormat if the extra is not installed.
    """
    require()
    from pydicom import dcmwrite
    from pydicom.encaps import encapsulate
    from pydicom.pixels.utils import compress

    dataset = _describe(image, syntax)
    if kind := ENCODED.get(syntax):
        frame = io.BytesIO()
        options = {"no_jp2": True, "irreversible": syntax == JPEG_2000} if kind == "JPEG2000" else {}
        image.convert("RGB").save(frame, kind, **options)
        dataset.PixelData = encapsulate([frame.getvalue()])
        dataset["PixelData"].is_undefined_length = True
    else:
        dataset.PixelData = image.convert("RGB").tobytes()
        dataset.PixelData += b"\0" * (len(dataset.PixelData) % 2)
    if syntax == RLE:
        compress(dataset, syntax, generate_instance_uid=False)
    file = io.BytesIO()
    encoding = {"implicit_vr": syntax == IMPLICIT, "little_endian": syntax != BIG_ENDIAN}
    dcmwrite(file, dataset, enforce_file_format=True, **encoding)
    return file.getvalue()


def _describe(image: Image.Image, syntax: str) -> Dataset:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT if syntax == RLE else syntax)
    dataset.SOPClassUID = MICROSCOPIC
    dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (
        generate_uid() for _ in range(3)
    )
    dataset.PatientName = dataset.PatientID = dataset.StudyID = ""
    dataset.Modality = "GM"  # general microscopy
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PhotometricInterpretation = COLOURS.get(syntax, "RGB")
    dataset.Columns, dataset.Rows = image.size
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    return dataset
