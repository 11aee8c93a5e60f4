"""Paths that a router, a proxy and a table of rights could each read in another way, to a running service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from app.edge.keys import add_key
from tests.running import FAKE, Running, running
from tests.safety.raw import connected, head, rest, statuses


@dataclass(frozen=True)
class Keyed:
    service: Running
    secrets: dict[str, str]  # by scope

    def status(self, method: str, target: str, scope: str | None = None) -> int:
        key = [] if scope is None else [f"Authorization: Bearer {self.secrets[scope]}"]
        with connected(self.service.port) as client:
            client.sendall(head(f"{method} {target} HTTP/1.1", "Connection: close", *key))
            (status,) = statuses(rest(client))
            return status


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    secrets = {scope: add_key(file, scope, [scope]) for scope in ("predict", "evaluate", "metrics")}
    with running(FAKE, "--keys", str(file)) as service:
        yield Keyed(service, secrets)


ROUTES = (
    "POST /predict",
    "POST /v1/evaluate",
    "POST /v2/models/a/infer",
    "GET /healthz",
    "GET /metrics",
    "GET /model",
    "GET /page/page.js",
    "GET /problems/too_large",
    "GET /",
    "GET /nowhere",
    "DELETE /predict",
)
CONTROLS = (
    *(f"%{code:02x}" for code in (*range(0x20), 0x7F)),
    "%0D%0A",
    "%0a/",
    "%c2%80",
    "%C2%9F",
    "%e2%80%a8",
    "%e2%80%a9",
    "%ff",
    "%c0%8a",  # a line feed in UTF-8 of two bytes, which is not allowed
    "%ed%a0%80",
    "\x01",
    "\x0b",
    "\x7f",
    "\x85",
    "\xff",
)


@pytest.mark.parametrize("route", ROUTES)
def test_38_a_control_character_in_a_path_is_400_with_any_key_or_none(keyed: Keyed, route: str) -> None:
    method, path = route.split()
    for control in CONTROLS:
        # Inside the path, a parser may end at it.
        for target in (path + control, path[:-1] + control + path[-1]):
            for scope in (None, "metrics", "predict"):
                assert (target, keyed.status(method, target, scope)) == (target, 400)


VARIANTS = (
    "{path}",
    "{path}?",
    "{path}?/healthz",
    "{path}#/healthz",
    "/v1{path}",
    "/v1%2f{name}",
    "/%{first:02x}{rest}",
    "{path}/",
    "{path}%2f",
    "{path}%20",
    "{path}%3f",
    "{path}%23",
    "{path};params",
    "{path}%3bparams",
    "{path}\\",
    "{path}%5c",
    "{path}/.",
    "{path}/..",
    "{path}/../{name}",
    "{path}.",
    "{path}%250a",
    "{path}%252f",
    "{path}%e2%80%8b",
    "/{path}",
    "/.{path}",
    "/x/..{path}",
    "/%2e%2e{path}",
    "/%2f{name}",
    "/healthz/..{path}",
    "/healthz{path}",
    "/page/..{path}",
    "/page/%2e%2e{path}",
    "/page/..%2f{name}",
    "/problems{path}",
    "/problems/..%2f{name}",
    "/v1/{path}",
    "/v1/v1{path}",
    "http://healthz{path}",
    "http://localhost{path}",
)


@pytest.mark.parametrize("path", ["/predict", "/evaluate", "/evaluate/predictions", "/differential"])
def test_38_another_way_to_write_a_path_needs_the_same_key_or_leads_nowhere(keyed: Keyed, path: str) -> None:
    scope = "evaluate" if "evaluate" in path else "predict"
    other = "predict" if scope == "evaluate" else "evaluate"
    reached = set()
    for variant in (*VARIANTS, path.upper(), path.title()):
        target = variant.format(path=path, name=path[1:], first=ord(path[1]), rest=path[2:])
        wanted = keyed.status("POST", target, scope)
        found = (keyed.status("POST", target), keyed.status("POST", target, other))
        assert (target, keyed.status("POST", target, "metrics")) == (target, found[1])
        if wanted == 415:  # the route itself has refused the body
            reached.add(variant)
            assert (target, *found) == (target, 401, 403)
        else:  # open routes that lack the method, or no route
            assert (target, wanted, *found) in ((target, 404, 401, 404), (target, 405, 405, 405))
    assert reached == {*VARIANTS[:7], "http://healthz{path}", "http://localhost{path}"}


def test_38_a_model_s_name_cannot_change_whose_key_is_needed(keyed: Keyed) -> None:
    for name in ("a", "..", "a;b", "%2e%2e", "a%5cb", "infer", "health"):
        for path in (f"/v2/models/{name}/infer", f"/v2/models/{name}/versions/1/infer"):
            found = [keyed.status("POST", path, scope) for scope in (None, "metrics", "predict")]
            assert (path, *found) == (path, 401, 403, 404)
    for path in ("/v2/models/a%2fb/infer", "/v2/models/a/infer/", "/v2/models//infer", "/v2//models/a/infer"):
        found = [keyed.status("POST", path, scope) for scope in (None, "metrics", "predict")]
        assert (path, *found) == (path, 401, 404, 404)
