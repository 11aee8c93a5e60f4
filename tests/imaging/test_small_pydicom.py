from __future__ import annotations

import subprocess
import sys

import pytest

from app.imaging import small_pydicom
from app.imaging.dicom_elements import KEPT

pydicom = pytest.importorskip("pydicom")


def test_the_entries_are_those_of_the_whole_dictionary() -> None:
    from pydicom._dicom_dict import DicomDictionary

    assert {tag: DicomDictionary[tag] for tag in small_pydicom.ENTRIES} == small_pydicom.ENTRIES
    assert small_pydicom.ENTRIES.keys() >= KEPT


def test_every_kind_of_file_is_read_with_these_entries_as_with_all() -> None:
    program = """
import hashlib, sys
from app.imaging import dicom, dicom_writer, small_pydicom
from app.imaging.decode import decode
from app.samples.smear import draw_smear
if sys.argv[1] == "small":
    small_pydicom.prepare()
image = draw_smear("neutrophil", seed=1)
for syntax in sorted({*dicom.NATIVE, *dicom.ENCODED}):
    pixels = decode(dicom_writer.write(image, syntax)).tobytes()
    print(syntax, hashlib.sha256(pixels).hexdigest())
from pydicom._dicom_dict import DicomDictionary
print(len(DicomDictionary) > 100, file=sys.stderr)
"""
    small, whole = (
        subprocess.run([sys.executable, "-c", program, kind], capture_output=True, text=True, check=True)
        for kind in ("small", "whole")
    )
    assert (small.stderr, whole.stderr) == ("False\n", "True\n")
    assert small.stdout == whole.stdout
