"""The route that is found before a request is admitted is the one that answers it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import PlainTextResponse

from app.edge.routing import NOWHERE, Matched, Routes
from tests.fakes import HeldClassifier, build

FILES = "files"
WORK = ("/predict", "/evaluate", "/evaluate/predictions")
METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS")
PATHS = (
    *(
        "/",
        "//",
        "/nowhere",
        "/predict",
        "/predict/",
        "/predict\n",
        "/v1/predict",
        "/v1//predict",
        "//predict",
    ),
    *("/model", "/v1/model", "/v1", "/v1/v1/predict", "/evaluate/predictions", "/evaluate/x", "/evaluate\n"),
    *("/problems/x", "/problems/x/y", "/problems/", "/page", "/page/", "/page/x/predict", "/page/a\nb"),
    *("/v2", "/v2/", "/v2/models/a", "/v2/models/a/infer", "/v2/models/a/infer\n", "/v2/models/a\nb/infer"),
    *(
        "/v2/models/a/versions/1/infer",
        "/v2/models/a/b/infer",
        "/v2/models//infer",
        "/v2/models/versions/infer",
    ),
)


def application() -> FastAPI:
    """An application put together like the service's; each route answers with its own path."""
    app = FastAPI(redirect_slashes=False, openapi_url=None)
    versioned, v2 = APIRouter(), APIRouter(prefix="/v2")
    for path in WORK:
        add(versioned, "POST", path)
    add(versioned, "GET", "/model")
    app.include_router(versioned)
    app.include_router(versioned, prefix="/v1")
    add(v2, "GET", "")
    for path in ("/models/{name}", "/models/{name}/versions/{version}"):
        add(v2, "GET", path)
        add(v2, "POST", f"{path}/infer")
    app.include_router(v2)
    add(app.router, "GET", "/problems/{code}")
    add(app.router, "GET", "/")
    app.mount("/page", PlainTextResponse(FILES))
    return app


def add(router: APIRouter, method: str, path: str) -> None:
    async def endpoint() -> PlainTextResponse:
        return PlainTextResponse(router.prefix + path)

    router.add_api_route(path, endpoint, methods=[method])


APP = application()
ROUTES = Routes(APP)


def match(routes: Routes, method: str, path: str) -> Matched:
    return routes.match({"type": "http", "method": method, "path": path, "headers": []})


async def ask(method: str, path: str) -> httpx.Response:
    url = httpx.URL("http://localhost").copy_with(raw_path=path.replace("\n", "%0a").encode())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(APP)) as client:
        return await client.request(method, url)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", PATHS)
def test_the_route_that_is_matched_is_the_one_that_answers(method: str, path: str) -> None:
    matched, sent = match(ROUTES, method, path), asyncio.run(ask(method, path))
    if sent.status_code == 404:
        assert matched == NOWHERE
    elif sent.status_code == 405:
        assert matched.name in (*WORK, "/model", "/problems/{code}", "/") or "/v2" in str(matched.name)
        assert not matched.takes_body
    else:
        assert sent.text == ("" if method == "HEAD" else matched.name or FILES)
        assert matched.takes_body == (method == "POST" and matched.name is not None)


def test_a_template_has_the_prefix_of_its_route_and_a_name_has_not() -> None:
    routes = Routes(build(HeldClassifier()))
    for path, template, name in (
        ("/predict", "/predict", "/predict"),
        ("/v1/predict", "/v1/predict", "/predict"),
        ("/predict\n", "/predict", "/predict"),
        ("/v2/models/a/infer", "/v2/models/{name}/infer", "/v2/models/{name}/infer"),
        ("/openapi.json", "/openapi.json", "/openapi.json"),
        ("/page/page.js", "/page", None),
        ("/predict/", None, None),
    ):
        matched = match(routes, "POST", path)
        assert (path, matched.template, matched.name) == (path, template, name)
