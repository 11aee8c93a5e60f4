from __future__ import annotations

from starlette.testclient import TestClient


def test_a_living_process_says_so(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
