from __future__ import annotations

import json

import httpx
import pytest
from starlette.testclient import TestClient

from app.wire.problems import MEANINGS, uri
from tests.fake_classifier import png
from tests.fakes import CUT, GREYS, LOCAL, HeldClassifier, build, wait_ready, zipped


@pytest.mark.parametrize("code", sorted(MEANINGS))
def test_the_type_of_a_problem_leads_to_its_meaning(client: TestClient, code: str) -> None:
    problem_type = client.get(uri(code)).json()
    assert (problem_type["type"], problem_type["code"], problem_type["meaning"]) == (
        uri(code),
        code,
        MEANINGS[code],
    )
    assert 400 <= problem_type["status"] < 600


def test_there_is_no_page_for_a_problem_that_does_not_exist(client: TestClient) -> None:
    answer = client.get("/problems/nonsense")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


ARCHIVE = {"archive": ("a.zip", zipped({"monocyte/a.png": png(GREYS[2]), "monocyte/x.png": CUT}))}


def types(client: TestClient, headers: dict[str, str]) -> dict[str, str]:
    """Return the types of all kinds of problems by where they are from."""
    cells = [("files", ("a.png", png(GREYS[0]))), ("files", ("b.png", CUT))]
    stream = {**headers, "accept": "text/event-stream"}
    bad = {"archive": ("a.zip", zipped({"monocyte/x.png": CUT}))}
    event = client.post("evaluate", files=bad, headers=stream).text.split("data: ")[-1]
    return {
        "unknown path": client.get("nothing", headers=headers).json()["type"],
        "method": client.delete("v1/predict", headers=headers).json()["type"],
        "all images": client.post("v1/predict", files=cells[1:], headers=headers).json()["errors"][0]["type"],
        "an image": client.post("predict", files=cells, headers=headers).json()["errors"][0]["type"],
        "of a count": client.post("differential", files=cells, headers=headers).json()["errors"][0]["type"],
        "invalid": client.post("evaluate/predictions", json={}, headers=headers).json()["type"],
        "an archive": client.post("evaluate", files=ARCHIVE, headers=headers).json()["errors"][0]["type"],
        "an event": json.loads(event)["type"],
        "refused": client.post("predict", content=b"", headers={**headers, "content-encoding": "x"}).json()[
            "type"
        ],
        "its own": client.get("problems/too_large", headers=headers).json()["type"],
    }


@pytest.mark.parametrize(
    ("sent", "prefix"),
    [
        ([], ""),
        (["/leuko"], "/leuko"),
        (["/lab/leuko/"], "/lab/leuko"),
        (["/lab, /leuko"], "/lab/leuko"),
        (["/lab", "/leuko"], "/lab/leuko"),
        (["/"], ""),
        (["//other.example"], ""),
        (["/a//b"], ""),
        (["leuko"], ""),
        (["/le uko"], ""),
        (['/"'], ""),
        (["https://other.example"], ""),
        (["/" + "x" * 300], ""),
    ],
)
def test_the_type_of_a_problem_has_the_prefix_that_a_proxy_names(
    client: TestClient, sent: list[str], prefix: str
) -> None:
    headers = [("X-Forwarded-Prefix", value) for value in sent]
    for path in ("/nothing", "/problems/too_large"):
        answer = client.get(path, headers=httpx.Headers(headers))
        assert answer.json()["type"].rpartition("/")[0] == f"{prefix}/problems"
        assert len(answer.content) == int(answer.headers["content-length"])


def test_every_problem_below_a_prefix_leads_to_its_meaning(client: TestClient) -> None:
    found = types(client, {"X-Forwarded-Prefix": "/leuko"})
    assert {place: kind.rpartition("/")[0] for place, kind in found.items()} == dict.fromkeys(
        found, "/leuko/problems"
    )


def test_a_service_that_is_mounted_below_a_path_names_it() -> None:
    app = build(HeldClassifier())
    with TestClient(app, f"{LOCAL}/leuko/", root_path="/leuko", raise_server_exceptions=False) as client:
        wait_ready(client, app)
        for kind in types(client, {}).values():
            assert kind.startswith("/leuko/problems/")
            assert client.get(f"{LOCAL}{kind}").status_code == 200
