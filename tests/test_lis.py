"""Run the examples of docs/lis.md and docs/oip.md unchanged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from fhir.resources.R4B.bundle import Bundle
from hl7apy.parser import parse_message

from app.wire.problems import GENERIC, STATUS
from tests.fake_classifier import png
from tests.fakes import GREYS
from tests.fields import field_png
from tests.running import Running

DOCS = Path(__file__).parents[1] / "docs"
GUIDE, PROTOCOL = ((DOCS / name).read_text() for name in ("lis.md", "oip.md"))


def examples(language: str, text: str = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, grey in enumerate((GREYS[0], GREYS[2]), 1):
        (tmp_path / f"cell{number}.jpg").write_bytes(png(grey))
    return tmp_path


def shell(script: str, service: Running, folder: Path) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is absent")
    script = script.replace("http://127.0.0.1:8000", service.address)
    done = subprocess.run(["sh", "-ec", script], cwd=folder, capture_output=True, check=True, timeout=60)
    return done.stdout.decode()


def test_curl_gets_a_differential_a_bundle_and_a_message(service: Running, folder: Path) -> None:
    for number in (1, 2):
        (folder / f"field{number}.jpg").write_bytes(field_png())
    plain, fhir, hl7, fields = (shell(script, service, folder) for script in examples("sh"))
    (script,) = examples("shell")
    shell(script, service, folder)
    transaction = (folder / "transaction.json").read_text()
    assert Bundle.model_validate_json(transaction).type == "transaction"
    assert json.loads(transaction)["entry"][0]["request"]["ifNoneExist"].startswith("identifier=")
    assert json.loads(plain)["counts"] == {"eosinophil": 1, "lymphocyte": 0, "monocyte": 1, "neutrophil": 0}
    assert json.loads(plain)["specimen"] == "S-1001"
    # The fake frames whole images, so each is one cell; tests/api/routes/test_cells.py has the others.
    assert (json.loads(fields)["n"], json.loads(fields)["empty"]) == (2, [])
    assert Bundle.model_validate_json(fhir).type == "collection"
    assert parse_message(hl7, find_groups=False).obr.obr_3.to_er7() == "A-77"


def test_curl_takes_a_report_from_preliminary_to_corrected(service: Running, folder: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is absent")
    (script,) = examples("bash")
    shell(script, service, folder)
    preliminary, final, corrected = (
        json.loads((folder / f"{status}.json").read_text())
        for status in ("preliminary", "final", "corrected")
    )
    assert [one["status"] for one in (preliminary, final, corrected)] == ["preliminary", "final", "corrected"]
    assert (preliminary["counts"]["monocyte"], final["counts"]["monocyte"]) == (1, 0)
    assert (final["counts"]["lymphocyte"], corrected["counts"]["unidentified"]) == (1, 1)
    assert final["agreement"] == {"reviewed": 2, "kept": 1}
    assert (final["reviewer"], corrected["reviewer"]) == ("A. Smith", "B. Jones")
    assert corrected["former"]["counts"] == final["counts"]
    bundle = json.loads((folder / "corrected.fhir.json").read_text())
    assert Bundle.model_validate(bundle).type == "collection"
    assert bundle["entry"][0]["resource"]["status"] == "corrected"
    message = parse_message((folder / "corrected.hl7").read_bytes().decode(), find_groups=False)
    assert message.obr.obr_25.to_er7() == "C"
    assert final["fingerprint"] in message.to_er7()


def test_python_counts_more_images_than_a_request_takes(
    service: Running, folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    scope: dict[str, Any] = {}
    (code,) = examples("python")
    exec(code, scope)
    with httpx.Client(base_url=service.address) as client:
        paths = [*sorted(folder.iterdir()) * 3, broken, broken]
        differential = scope["differential"](client, paths, "S-1", "A-1", batch=2)
    assert (differential["n"], differential["counts"]["monocyte"]) == (6, 3)
    assert differential["accession"] == "A-1"
    assert [error["index"] for error in differential["errors"]] == [0, 3, 6, 9, 10]


def test_the_open_inference_protocol_answers_its_examples(
    service: Running, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = folder / "cell1.jpg"
    image.rename(folder / "cell.jpg")
    substitutes = {"wbc-resnet18": "fake", "127.0.0.1:8000": service.address.removeprefix("http://")}
    substitutes['"cell.jpg"'] = repr(str(folder / "cell.jpg"))
    (code,), (script,) = examples("python", PROTOCOL), examples("sh", PROTOCOL)
    for documented, actual in substitutes.items():
        code, script = code.replace(documented, actual), script.replace(documented, actual)
    exec(code, {})
    assert capsys.readouterr().out.startswith("[b'eosinophil'] [[0.7 ")
    (_, label) = json.loads(shell(script, service, folder))["outputs"]
    assert label["data"] == ["eosinophil"]


def test_what_the_protocol_lacks_here_is_not_found(service: Running) -> None:
    table = PROTOCOL[PROTOCOL.index("What is not there") :]
    absent = re.findall(r"`(GET|POST) (/v2/[^`]+)`", table)
    assert len(absent) >= 10
    with httpx.Client(base_url=service.address) as client:
        for method, path in absent:
            response = client.request(method, path.replace("{name}", "fake"))
            assert (path, response.status_code) == (path, 404)
            assert response.json()["error"]


def test_every_status_that_a_problem_may_have_is_in_the_table() -> None:
    table = GUIDE[GUIDE.index("| Status |") : GUIDE.index("## Retry a request")]
    documented = {int(number) for number in re.findall(r"\b\d{3}\b", table)}
    assert {*STATUS.values(), *GENERIC} - {404, 405} <= documented
