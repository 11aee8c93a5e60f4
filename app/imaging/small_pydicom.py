"""Import pydicom with only the dictionary entries that our files need, for processes that decode.

The whole dictionary takes 30 MiB and 0.2 s, the library that pydicom would download examples with as long
again. Files reach pydicom with few elements (`dicom_elements.KEPT`).
"""

from __future__ import annotations

import sys
from types import ModuleType

# Tag → value representation, multiplicity, name, retired or "", keyword: as in pydicom's `DicomDictionary`.
ENTRIES = {
    0x0002_0000: ("UL", "1", "File Meta Information Group Length", "", "FileMetaInformationGroupLength"),
    0x0002_0001: ("OB", "1", "File Meta Information Version", "", "FileMetaInformationVersion"),
    0x0002_0002: ("UI", "1", "Media Storage SOP Class UID", "", "MediaStorageSOPClassUID"),
    0x0002_0003: ("UI", "1", "Media Storage SOP Instance UID", "", "MediaStorageSOPInstanceUID"),
    0x0002_0010: ("UI", "1", "Transfer Syntax UID", "", "TransferSyntaxUID"),
    0x0002_0012: ("UI", "1", "Implementation Class UID", "", "ImplementationClassUID"),
    0x0002_0013: ("SH", "1", "Implementation Version Name", "", "ImplementationVersionName"),
    0x0008_0005: ("CS", "1-n", "Specific Character Set", "", "SpecificCharacterSet"),
    0x0008_0016: ("UI", "1", "SOP Class UID", "", "SOPClassUID"),
    0x0008_0018: ("UI", "1", "SOP Instance UID", "", "SOPInstanceUID"),
    0x0008_0060: ("CS", "1", "Modality", "", "Modality"),
    0x0010_0010: ("PN", "1", "Patient's Name", "", "PatientName"),
    0x0010_0020: ("LO", "1", "Patient ID", "", "PatientID"),
    0x0020_000D: ("UI", "1", "Study Instance UID", "", "StudyInstanceUID"),
    0x0020_000E: ("UI", "1", "Series Instance UID", "", "SeriesInstanceUID"),
    0x0020_0010: ("SH", "1", "Study ID", "", "StudyID"),
    0x0028_0002: ("US", "1", "Samples per Pixel", "", "SamplesPerPixel"),
    0x0028_0004: ("CS", "1", "Photometric Interpretation", "", "PhotometricInterpretation"),
    0x0028_0006: ("US", "1", "Planar Configuration", "", "PlanarConfiguration"),
    0x0028_0008: ("IS", "1", "Number of Frames", "", "NumberOfFrames"),
    0x0028_0010: ("US", "1", "Rows", "", "Rows"),
    0x0028_0011: ("US", "1", "Columns", "", "Columns"),
    0x0028_0100: ("US", "1", "Bits Allocated", "", "BitsAllocated"),
    0x0028_0101: ("US", "1", "Bits Stored", "", "BitsStored"),
    0x0028_0102: ("US", "1", "High Bit", "", "HighBit"),
    0x0028_0103: ("US", "1", "Pixel Representation", "", "PixelRepresentation"),
    **{
        0x0028_1101 + i: (
            "US or SS",
            "3",
            f"{colour} Palette Color Lookup Table Descriptor",
            "",
            f"{colour}PaletteColorLookupTableDescriptor",
        )
        for i, colour in enumerate(("Red", "Green", "Blue"))
    },
    **{
        0x0028_1201 + i: (
            "OW",
            "1",
            f"{colour} Palette Color Lookup Table Data",
            "",
            f"{colour}PaletteColorLookupTableData",
        )
        for i, colour in enumerate(("Red", "Green", "Blue"))
    },
    0x7FE0_0008: ("OF", "1", "Float Pixel Data", "", "FloatPixelData"),
    0x7FE0_0009: ("OD", "1", "Double Float Pixel Data", "", "DoubleFloatPixelData"),
    0x7FE0_0010: ("OB or OW", "1", "Pixel Data", "", "PixelData"),
}


def prepare() -> None:
    """Have pydicom, when this process imports it, use `ENTRIES` and no library for downloads."""
    if "pydicom" in sys.modules:
        return
    _stand_in("pydicom._dicom_dict", DicomDictionary=ENTRIES, RepeatersDictionary={})
    _stand_in("pydicom._private_dict", private_dictionaries={})
    for name in ("requests", "tqdm"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # the import system's own mark


def _stand_in(name: str, **content: object) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module
