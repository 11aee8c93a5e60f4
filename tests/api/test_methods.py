"""HEAD and OPTIONS on every route, from a running service; pages of other origins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.edge.cors import origins_of
from app.edge.keys import add_key
from app.errors import SettingsError
from app.settings import Settings
from tests.fake_classifier import png
from tests.fakes import HeldClassifier, build, caller, started
from tests.running import FAKE, Running, running

ORIGIN = "https://lis.example.org:8443"


def paths(method: str) -> set[str]:
    """Return the paths of the OpenAPI document that have the method, with values for parameters."""
    document = build(HeldClassifier()).openapi()
    found = {path for path, item in document["paths"].items() if method in item}
    values = {
        "{code}": "not_found",
        "{name}": "wbc-resnet18",
        "{model}": "wbc-resnet18",
        "{version}": "0.0.1",
    }
    for name, value in values.items():
        found = {path.replace(name, value) for path in found}
    assert not any("{" in path for path in found)
    return found


PAGES = {"/", "/docs", "/openapi.json", "/page/page.js", "/swagger/swagger-ui.css", "/v1/model"}


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(FAKE) as service:
        yield service


def test_head_has_the_status_and_headers_of_get_and_no_content(service: Running) -> None:
    changing = {"x-request-id", "date"}
    with service.client() as client:
        for path in sorted(paths("get") | PAGES):
            head, get = client.head(path), client.get(path)
            assert (path, head.status_code) == (path, get.status_code)
            assert head.content == b""
            if path != "/metrics":  # another request has been counted meanwhile
                assert [item for item in head.headers.items() if item[0] not in changing] == [
                    item for item in get.headers.items() if item[0] not in changing
                ]


def test_options_has_the_methods_of_each_path(service: Running) -> None:
    get, post = paths("get") | PAGES, paths("post")
    with service.client() as client:
        for path in sorted(get | post):
            answer = client.options(path)
            methods = {"OPTIONS"}
            methods |= {"GET", "HEAD"} if path in get else set()
            methods |= {"POST"} if path in post else set()
            assert (path, answer.status_code, answer.content) == (path, 204, b"")
            assert (path, {*answer.headers["allow"].split(", ")}) == (path, methods)
            refused = client.request("PATCH", path)
            assert (path, refused.status_code) == (path, 405)
            assert refused.headers["allow"] == answer.headers["allow"]
        assert client.options("/nowhere").status_code == client.head("/nowhere").status_code == 404
        assert client.head("/predict").status_code == 405


def ask(origins: str, headers: dict[str, str]) -> httpx.Response:
    async def posted() -> httpx.Response:
        async with started(cors_origins=origins) as app, caller(app) as client:
            return await client.post("/predict", content=png(0), headers=headers)

    return asyncio.run(posted())


def test_a_page_of_another_origin_can_use_the_service_only_where_it_is_allowed() -> None:
    page = {"origin": ORIGIN, "sec-fetch-site": "cross-site", "content-type": "image/png"}
    refused = ask("none", page)
    assert (refused.status_code, refused.json()["code"]) == (403, "cross_site")
    assert "access-control-allow-origin" not in refused.headers

    for other in ("https://lis.example.org", "http://lis.example.org:8443", "https://evil.example.org"):
        refused = ask(ORIGIN, page | {"origin": other})
        assert (refused.status_code, "access-control-allow-origin" in refused.headers) == (403, False)

    answer = ask(f"http://localhost:3000, {ORIGIN}", page)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert "Origin" in answer.headers["vary"]


def test_a_browser_may_ask_for_leave_without_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    add_key(keys, "lis", ["predict"])
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }

    async def exchange() -> None:
        async with started(cors_origins=ORIGIN, keys=str(keys)) as app, caller(app) as client:
            leave = await client.options("/predict", headers=asked)
            assert (leave.status_code, leave.headers["access-control-allow-origin"]) == (200, ORIGIN)
            assert "POST" in leave.headers["access-control-allow-methods"]
            assert "Authorization" in leave.headers["access-control-allow-headers"]
            other = await client.options("/predict", headers=asked | {"origin": "https://x"})
            assert other.status_code == 400
            assert (await client.options("/predict")).status_code == 401
            refused = await client.post("/predict", headers={"origin": ORIGIN})
            assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)

    asyncio.run(exchange())


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "null",
        "https://*.example.org",
        "https://a/",
        "https://a/b",
        "lis.example.org",
        "https://A",
        "a b",
        ",",
    ],
)
def test_only_exact_origins_can_be_allowed(text: str) -> None:
    with pytest.raises(SettingsError, match="LEUKO_CORS_ORIGINS has"):
        origins_of(text)
    with pytest.raises(SettingsError, match="LEUKO_CORS_ORIGINS has"):
        build(HeldClassifier(), cors_origins=f"https://a,{text}")


def test_no_origin_is_allowed_by_default() -> None:
    assert origins_of(Settings().cors_origins) == frozenset()
