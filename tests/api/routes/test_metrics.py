from __future__ import annotations

from starlette.testclient import TestClient

from tests.fakes import metric, serving


def test_metrics_have_the_model_and_the_capacity_of_the_queue() -> None:
    with serving(max_queue=9) as client:
        assert metric(client, "leuko_queue_capacity") == 9
        assert metric(client, "leuko_queue_depth") == 0
        assert metric(client, "leuko_model_ready") == 1
        info = f'leuko_model_info{{name="fake",sha256="{"f" * 64}",verified_for="",version="1.2"}}'
        assert metric(client, info) == 1


def test_metrics_are_text_for_prometheus(client: TestClient) -> None:
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")
