"""What a service keeps of its requests: an audit line each, and nothing of whose pictures they are."""

from __future__ import annotations

import json
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from pydicom import dcmread

from app.edge.keys import add_key
from app.imaging import dicom_writer
from tests.fake_classifier import png
from tests.fakes import zipped
from tests.running import FAKE, Running, running

MARK = "DOE^JANE"
SEEN = "DOE"


def marked() -> bytes:
    """A picture that says whose it is in its EXIF data and its comment."""
    exif = Image.Exif()
    exif[0x010E] = exif[0x9286] = MARK  # ImageDescription, UserComment
    file = BytesIO()
    Image.new("RGB", (8, 6)).save(file, "JPEG", exif=exif, comment=MARK.encode())
    return file.getvalue()


def marked_dicom() -> bytes:
    """A cell that says whose it is where DICOM says so."""
    found = dcmread(BytesIO(dicom_writer.write(Image.new("RGB", (8, 6)))))
    found.PatientName = found.PatientID = found.AccessionNumber = MARK
    file = BytesIO()
    found.save_as(file)
    return file.getvalue()


def reviewed(said: str, **signature: Any) -> dict[str, Any]:
    """A body in which a person said something of a cell."""
    return {"predictions": [{"label": "monocyte", "filename": f"{MARK}.jpg", "reviewed": said}], **signature}


def former() -> dict[str, Any]:
    changed = {"index": 0, "filename": f"{MARK}.jpg", "label": "monocyte", "reviewed": "lymphocyte"}
    report = {"fingerprint": "e" * 64, "status": "final", "reviewer": MARK}
    return {**report, "counts": {"monocyte": 1}, "changes": [changed]}


def send_everything(service: Running) -> list[httpx.Response]:
    """Requests that are answered and refused, each with the mark wherever a client can put it."""
    whole, cut, name = marked(), marked()[:200], f"{MARK}.jpg"
    dicom = marked_dicom()
    evaluated = zipped({f"monocyte/{name}": whole, f"lymphocyte/{MARK}2.jpg": cut})
    mapping = json.dumps({name: MARK})
    whose = {"specimen": MARK, "accession": MARK}
    headers = {"User-Agent": MARK, "Referer": f"http://{MARK}", "Cookie": MARK}
    with httpx.Client(
        base_url=service.address, headers=headers, params={"patient": MARK}, timeout=30
    ) as client:
        post = client.post
        return [
            post("/predict", files=[("files", (name, whole)), ("files", (name, cut))]),
            post("/predict", files=[("files", (f"{MARK}.dcm", dicom)), ("files", (name, dicom[:-50]))]),
            post("/predict", content=dicom, headers={"content-type": "application/dicom"}),
            post("/predict", content=dicom[:300], headers={"content-type": "application/dicom"}),
            post("/predict", files={"files": dicom.replace(b"77.1.2", MARK[:6].encode())}),
            post("/predict", files={"files": (name, cut)}),
            post("/predict", files={MARK: (name, whole)}),
            post("/predict", content=MARK, headers={"content-type": "image/png"}),
            post("/predict", content=cut, headers={"content-type": f"image/{MARK}"}),
            post("/predict", content=cut, headers={"content-type": f"multipart/form-data; boundary={MARK}"}),
            post("/predict", params={"explain": MARK}, files={"files": (name, whole)}),
            *(
                post("/differential", headers={"accept": accept}, data=whose, files={"files": (name, one)})
                for accept in ("*/*", "application/fhir+json", "application/hl7-v2", f"text/{SEEN}")
                for one in (whole, cut)
            ),
            post("/differential", data=whose, files={"files": (name, whole), MARK: MARK}),
            post("/differential", data={"specimen": f"{MARK}\n"}, files={"files": (name, whole)}),
            post("/differential", json={"predictions": [{"label": "monocyte", "filename": name}], **whose}),
            post("/differential", json={"predictions": [{"label": MARK}], **whose}),
            *(
                post("/differential", json=reviewed(said, **signature), headers={"accept": accept})
                for accept in ("*/*", "application/fhir+json", "application/hl7-v2")
                for said, signature in (
                    ("lymphocyte", {"reviewer": MARK}),
                    ("lymphocyte", {"reviewer": MARK, "replaces": "e" * 64, "former": former()}),
                    ("lymphocyte", {"reviewer": f"{MARK}\n"}),
                    ("lymphocyte", {"reviewer": "A", "replaces": MARK}),
                    ("lymphocyte", {"reviewer": "A", "replaces": "e" * 64, "former": {MARK: MARK}}),
                    (MARK, {}),
                )
            ),
            post("/differential", json={"predictions": [{"label": "monocyte"}], "specimen": [MARK]}),
            post("/evaluate", files={"archive": (f"{MARK}.zip", evaluated)}),
            post("/evaluate", files={"archive": (f"{MARK}.zip", zipped({f"{MARK}/a.jpg": whole}))}),
            post("/evaluate", files={"files": (name, whole), "labels": (None, mapping)}),
            post("/evaluate/predictions", json={"labels": [MARK], "predictions": [MARK]}),
            client.get(f"/{MARK}"),
            client.put("/predict", content=MARK),
        ]


def test_34_a_marked_name_is_in_no_log_metric_audit_line_error_or_temporary_file(tmp_path: Path) -> None:
    audit, temporary = tmp_path / "audit.jsonl", tmp_path / "temporary"
    temporary.mkdir()
    arguments = ("--audit", str(audit), "--log-level", "debug")
    with running(FAKE, *arguments, environ={"TMPDIR": str(temporary)}) as service:
        answers = send_everything(service)
        metrics = httpx.get(f"{service.address}/metrics").text
        assert service.end() == 0
    assert {answer.status_code for answer in answers} == {200, 400, 404, 405, 406, 415, 422}
    # A request has a line, or is counted in one.
    assert sum(json.loads(line).get("count", 1) for line in audit.read_text().splitlines()) == len(answers)
    kept = [*service.log, metrics, audit.read_text(), *(str(answer.headers) for answer in answers)]
    kept += [answer.json().get("detail", "") for answer in answers if answer.is_error]
    assert [text for text in kept if SEEN in text] == []
    assert list(temporary.iterdir()) == []


def test_the_audit_log_says_who_asked_for_what_and_what_came_out(tmp_path: Path) -> None:
    keys, audit = tmp_path / "keys", tmp_path / "audit.jsonl"
    headers = {"authorization": f"Bearer {add_key(keys, 'lab-1', ['predict'])}", "x-request-id": "mine"}
    with running(FAKE, "--keys", str(keys), "--audit", str(audit)) as service:
        with httpx.Client(base_url=service.address, headers=headers) as client:
            files = [("files", ("a.png", png(64))), ("files", ("b.png", png(64)[:40]))]
            client.post("/predict", files=files)
            client.post("/evaluate", files=files)
            client.get("/healthz")
        httpx.get(f"{service.address}/model")
        assert service.end() == 0  # a line is written after its response
    first, second, third = (json.loads(line) for line in audit.read_text().splitlines())
    assert first.pop("time") < second["time"] < third["time"]
    assert first.pop("seconds") >= 0
    assert first == {
        "request_id": "mine",
        "key": "lab-1",
        "method": "POST",
        "route": "/predict",
        "status": 200,
        "model_sha256": "f" * 64,
        "images": [
            {
                "sha256": sha256(png(64)).hexdigest(),
                "label": "lymphocyte",
                "confidence": 0.7,
                "ood_score": 1.5,
                "review": True,
                "review_reasons": ["out_of_distribution"],
            },
            {"sha256": sha256(png(64)[:40]).hexdigest(), "error": "undecodable_image"},
        ],
    }
    assert (second["route"], second["status"], second["key"]) == ("/evaluate", 403, "lab-1")
    assert (third["status"], third["key"]) == (401, None)


def test_the_audit_log_has_the_report_of_a_review_and_not_the_name_of_the_reviewer(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    cells = [{"label": "monocyte", "image_sha256": f"{i:064x}", "reviewed": "monocyte"} for i in range(3)]
    cells[0]["reviewed"] = "unidentified"
    with running(FAKE, "--audit", str(audit)) as service:
        with httpx.Client(base_url=service.address, timeout=30) as client:
            signed = {"predictions": cells, "reviewer": "Jane Doe"}
            final = client.post("/differential", json=signed).json()
            signed |= {"replaces": final["fingerprint"], "former": final}
            corrected = client.post("/differential", json=signed).json()
            client.post("/differential", json={"predictions": [{"label": "monocyte"}]})
        assert service.end() == 0
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [line.get("report") for line in lines] == [
        {"status": status, "fingerprint": made["fingerprint"], "replaces": replaces, "reviewed": 3, "kept": 2}
        for status, made, replaces in (
            ("final", final, None),
            ("corrected", corrected, final["fingerprint"]),
        )
    ] + [None]
    assert [(line["status"], line["n"]) for line in lines] == [(200, 3), (200, 3), (200, 1)]
    assert "Jane" not in audit.read_text()
