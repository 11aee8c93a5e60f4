from __future__ import annotations

from pathlib import Path

import pytest
from starlette.datastructures import Headers

from app.edge.access import Access, access_rules
from app.edge.keys import SCOPES, Keys, add_key
from app.edge.routing import Routes
from app.errors import Forbidden, Unauthenticated
from tests.fakes import HeldClassifier, build

ROUTES = Routes(build(HeldClassifier()))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def template(path: str) -> str | None:
    return ROUTES.match({"type": "http", "method": "GET", "path": path}).template


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode()) for name, value in pairs])


def bearer(secret: str) -> Headers:
    return headers(("authorization", f"Bearer {secret}"))


def rules_and_key(
    file: Path, scope: str, *, metrics: str = "keyed", docs: str = "open"
) -> tuple[Access, Headers]:
    secret = add_key(file, "lab", [scope])
    return access_rules(Keys(file), metrics=metrics, docs=docs), bearer(secret)


def admits(access: Access, path: str, credentials: Headers) -> bool:
    try:
        return access.authorize(template(path), credentials) is not None
    except Forbidden:
        return False


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_has_access_to_the_paths_of_its_scopes_and_to_those_for_any_key(file: Path, scope: str) -> None:
    access, credentials = rules_and_key(file, scope)
    needs = {
        "/predict": "predict",
        "/v1/predict": "predict",
        "/evaluate": "evaluate",
        "/evaluate/predictions": "evaluate",
        "/v1/evaluate/predictions": "evaluate",
        "/v2/models/a/infer": "predict",
        "/v1/evaluate": "evaluate",
        "/metrics": "metrics",
    }
    assert {path: admits(access, path, credentials) for path in needs} == {
        path: need == scope for path, need in needs.items()
    }
    assert admits(access, "/model", credentials)
    assert admits(access, "/whatever", credentials)


PRIVATE = "/predict /predict/ //predict //// /PREDICT /v1/predict /v1/healthz /healthz/x /docsx /model * x"


@pytest.mark.parametrize("path", PRIVATE.split())
def test_without_a_key_only_listed_paths_are_open(file: Path, path: str) -> None:
    access, _ = rules_and_key(file, "predict")
    with pytest.raises(Unauthenticated):
        access.authorize(template(path), headers())


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/readyz", "/", "/page/page.js", "/docs", "/openapi.json", "/swagger/a.js", "/problems/x"],
)
def test_probes_and_documents_need_no_key(file: Path, path: str) -> None:
    access, _ = rules_and_key(file, "predict")
    assert access.authorize(template(path), headers()) is None


def test_documents_can_be_keyed_and_metrics_can_be_open(file: Path) -> None:
    access, credentials = rules_and_key(file, "predict", metrics="open", docs="keyed")
    assert access.authorize("/metrics", headers()) is None
    assert access.authorize("/", headers()) is None
    for path in ("/docs", "/openapi.json", "/swagger/a.js", "/problems/x"):
        with pytest.raises(Unauthenticated):
            access.authorize(template(path), headers())
        assert admits(access, path, credentials)


def test_a_key_is_sent_as_a_bearer_token_or_in_x_api_key_exactly_once(file: Path) -> None:
    secret = add_key(file, "lab", ["predict"])
    access = access_rules(Keys(file), metrics="keyed", docs="open")
    good = ("authorization", f"bearer {secret}"), ("x-api-key", secret)
    for pair in good:
        assert admits(access, "/predict", headers(pair))
    basic, bare = ("authorization", f"Basic {secret}"), ("authorization", secret)
    for wrong in (good, (good[0], good[0]), (basic,), (bare,)):
        with pytest.raises(Unauthenticated):
            access.authorize("/predict", headers(*wrong))


def test_without_keys_every_request_is_authorized() -> None:
    assert access_rules(None, metrics="keyed", docs="keyed").authorize("/predict", headers()) is None
