from __future__ import annotations

from starlette.testclient import TestClient


def test_the_process_is_alive(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
