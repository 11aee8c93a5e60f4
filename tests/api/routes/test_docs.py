from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.edge.keys import add_key
from tests.fakes import serving


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref")
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from references(child)


def has_example(media: dict[str, Any]) -> bool:
    return "example" in media or bool(media.get("examples"))


@pytest.mark.parametrize("address", ["/", "/docs"])
def test_the_pages_get_everything_from_this_service(client: TestClient, address: str) -> None:
    page = client.get(address)
    assert page.headers["content-type"].startswith("text/html")
    paths = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(paths) >= 4
    for path in paths:
        assert client.get(f"/{path}").status_code == 200, path
    starter = client.get("/swagger/init.js").text
    assert "validatorUrl: null" in starter
    assert 'url: "openapi.json"' in starter
    assert "//" not in page.text.replace("<!DOCTYPE html>", "")
    assert "http" not in starter


@pytest.mark.parametrize("address", ["/", "/docs"])
def test_the_pages_may_not_run_inline_scripts_nor_call_other_hosts(client: TestClient, address: str) -> None:
    page = client.get(address)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert "connect-src 'self'" in policy
    assert "http" not in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text


def test_every_operation_has_an_id_a_summary_and_tags(document: dict[str, Any]) -> None:
    names = {operation["operationId"] for operation in operations(document)}
    assert names == {
        "predict",
        "differential",
        "evaluate",
        "evaluate_predictions",
        "model",
        "healthz",
        "readyz",
        "metrics",
        "problem",
    }
    assert all(operation["summary"] and operation["tags"] for operation in operations(document))


def test_every_operation_has_examples_of_its_bodies(document: dict[str, Any]) -> None:
    for operation in operations(document):
        name = operation["operationId"]
        for media, body in operation.get("requestBody", {"content": {}})["content"].items():
            assert media.startswith(("image/", "application/dicom")) or has_example(body), name
        for status, response in operation["responses"].items():
            assert response["description"], (name, status)
            for media in response.get("content", {}).values():
                assert has_example(media), (name, status)


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known


def test_errors_are_documented_as_problems_and_never_as_anything_else(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for operation in operations(document):
        for status, response in operation["responses"].items():
            if status[0] in "45":
                assert list(response["content"]) == ["application/problem+json"]


def test_429_and_503_have_retry_after(document: dict[str, Any]) -> None:
    for operation in operations(document):
        for status in {"429", "503"} & set(operation["responses"]):
            assert "Retry-After" in operation["responses"][status]["headers"]


def test_with_keys_the_document_lists_where_they_are_needed(tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "lab", ["predict"])
    with serving(keys=str(tmp_path / "keys")) as client:
        document = client.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    firsts = {path: next(iter(operations.values())) for path, operations in document["paths"].items()}
    keyed = {path for path, operation in firsts.items() if "security" in operation}
    assert keyed == {"/predict", "/differential", "/evaluate", "/evaluate/predictions", "/model", "/metrics"}
    assert all({"401", "403"} <= {*firsts[path]["responses"]} for path in keyed)


def test_without_keys_the_document_has_no_security_schemes(document: Any) -> None:
    assert "securitySchemes" not in document["components"]


def test_documents_and_metrics_can_be_closed() -> None:
    with serving(docs="closed", metrics="closed") as client:
        for path in ("/docs", "/openapi.json", "/swagger/swagger-ui.css", "/metrics"):
            assert client.get(path).status_code == 404
        assert client.get("/problems/too_large").status_code == 200
