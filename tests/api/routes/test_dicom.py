"""DICOM files in all kinds of uploads."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import VLWholeSlideMicroscopyImageStorage
from starlette.testclient import TestClient

from app.imaging import dicom_writer
from tests.fake_classifier import png
from tests.fakes import GREYS, zipped

DICOM = {"content-type": "application/dicom"}


def cell(grey: int) -> bytes:
    return dicom_writer.write(Image.new("RGB", (8, 6), (grey,) * 3))


@pytest.mark.parametrize("grey", GREYS)
def test_a_dicom_file_gets_the_prediction_of_its_image(client: TestClient, grey: int) -> None:
    (prediction,) = client.post("/predict", content=cell(grey), headers=DICOM).json()["predictions"]
    (expected,) = client.post("/predict", files={"files": png(grey)}).json()["predictions"]
    assert prediction.pop("image_sha256") != expected.pop("image_sha256")
    expected["filename"] = None
    assert prediction == expected


def test_a_form_may_mix_dicom_files_and_images(client: TestClient) -> None:
    files = [
        ("files", ("a.dcm", cell(GREYS[2]))),
        ("files", ("b.png", png(GREYS[2]))),
        ("files", ("c.dcm", cell(GREYS[0]))),
    ]
    predictions = client.post("/predict", files=files).json()["predictions"]
    assert [prediction["label"] for prediction in predictions] == ["monocyte", "monocyte", "eosinophil"]


def test_an_archive_may_contain_dicom_files(client: TestClient) -> None:
    archive = zipped({"monocyte/a.dcm": cell(GREYS[2]), "lymphocyte/b.dcm": cell(GREYS[1])})
    report = client.post("/evaluate", files={"archive": archive}).json()
    assert (report["n"], report["accuracy"], report["errors"]) == (2, 1.0, [])


def test_a_whole_slide_is_an_unsupported_format(client: TestClient) -> None:
    slide = dcmread(BytesIO(cell(64)))
    slide.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    file = BytesIO()
    slide.save_as(file)
    answer = client.post("/predict", content=file.getvalue(), headers=DICOM)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_format")
    assert "VL Whole Slide Microscopy Image Storage" in answer.json()["detail"]


def test_a_truncated_dicom_file_fails_alone(client: TestClient) -> None:
    whole = cell(GREYS[3])
    files = [("files", ("cut.dcm", whole[:-100])), ("files", ("whole.dcm", whole))]
    answer = client.post("/predict", files=files)
    assert answer.status_code == 200
    assert [(error["index"], error["status"]) for error in answer.json()["errors"]] == [(0, 422)]
