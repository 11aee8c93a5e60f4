from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from starlette.testclient import TestClient

from app import errors
from app.api.application import create_app
from app.engine.classifier import Classifier
from app.errors import BundleError, LeukoError, RemoteError, RequestError, StartupError, Unreadable
from app.inference.batcher import Postponed
from app.settings import Settings
from app.units import MIB
from app.wire import problems
from tests.fake_classifier import FakeClassifier, png
from tests.fakes import LOCAL, HeldClassifier, build, metric, serving, wait_ready

ROOT = Path(__file__).parents[2]
DOCS = "\n".join(path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
IMAGE = {"content-type": "image/png"}


def below(kind: type[LeukoError]) -> Iterator[type[LeukoError]]:
    """Every subclass at any depth; not those that tests define."""
    for child in kind.__subclasses__():
        if child.__module__.startswith("app."):
            yield child
            yield from below(child)


@contextmanager
def failing(error: Exception) -> Iterator[tuple[TestClient, list[Exception]]]:
    def load(_: Settings) -> Classifier:
        raise error

    failures: list[Exception] = []
    app = create_app(Settings(), load, failures.append)
    with TestClient(app, LOCAL) as client:
        wait_ready(client, app)
        yield client, failures


def test_while_the_model_loads_the_process_is_alive_and_refuses_work() -> None:
    go = threading.Event()

    def load(_: Settings) -> Classifier:
        assert go.wait(30)
        return cast(Classifier, HeldClassifier())

    app = create_app(Settings(), load)
    with TestClient(app, LOCAL) as client:
        assert client.get("/healthz").status_code == 200
        for answer in (client.get("/readyz"), client.get("/model"), client.post("/predict")):
            assert answer.status_code == 503
            assert answer.json()["code"] == "not_ready"
            assert int(answer.headers["retry-after"]) > 0
        assert client.get("/readyz").json()["detail"] == "the model is being loaded"
        assert metric(client, "leuko_model_ready") == 0
        go.set()
        wait_ready(client, app)
        assert client.get("/readyz").json() == {"status": "ready"}
        assert metric(client, "leuko_model_ready") == 1


def test_every_batch_size_is_warm_before_the_service_is_ready() -> None:
    classifier = HeldClassifier()
    with serving(classifier, max_batch=7):
        assert classifier.warmed == [7]


def test_the_default_batch_size_is_the_engine_s() -> None:
    classifier = HeldClassifier()
    with serving(classifier, max_batch=0):
        assert classifier.warmed == [classifier.engine.batch]


def test_a_service_that_ends_while_it_loads_does_not_wait_for_the_load() -> None:
    go = threading.Event()

    def load(_: Settings) -> Classifier:
        assert go.wait(30)
        return cast(Classifier, HeldClassifier())

    with TestClient(create_app(Settings(), load), LOCAL):
        pass
    go.set()


def test_a_failed_load_calls_on_failure_and_the_service_is_never_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = BundleError("model.safetensors was changed")
    with failing(error) as (client, failures):
        assert failures == [error]
        assert client.get("/readyz").json()["detail"] == "the model could not be loaded"
        assert client.get("/healthz").status_code == 200
    (record,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert record.getMessage() == "cannot start: model.safetensors was changed"
    assert not record.exc_info


def test_an_unexpected_failure_to_load_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with failing(RuntimeError("odd")) as (_, failures):
        assert len(failures) == 1
    assert any(record.exc_info for record in caplog.records)


def test_a_warm_up_that_fails_counts_as_a_failed_load() -> None:
    class Wrong(FakeClassifier):
        def warm_up(self, max_batch: int) -> None:
            raise BundleError(f"wrong answer at {max_batch}")

    failures: list[Exception] = []
    app = create_app(Settings(), lambda _: cast(Classifier, Wrong()), failures.append)
    with TestClient(app, LOCAL) as client:
        wait_ready(client, app)
        assert client.get("/readyz").status_code == 503
    assert len(failures) == 1


def test_a_draining_service_is_not_ready_and_still_accepts_work() -> None:
    app = build(HeldClassifier())
    with TestClient(app, LOCAL) as client:
        wait_ready(client, app)
        app.state.lifecycle.drain()
        assert client.get("/readyz").json()["detail"] == "the service is stopping"
        assert client.post("/predict", content=png(9), headers=IMAGE).status_code == 200


def test_a_drain_during_the_load_is_not_undone_by_its_end() -> None:
    app = build(HeldClassifier())
    app.state.lifecycle.drain()
    with TestClient(app, LOCAL) as client:
        wait_ready(client, app)
        assert client.get("/readyz").status_code == 503


def test_every_error_that_a_response_can_contain_has_a_status_a_title_and_a_meaning() -> None:
    """A StartupError or RemoteError ends a command or a process, Postponed goes no further than the batcher,
    Unreadable is of commands; RequestError is only a base class."""
    kinds = [*below(LeukoError)]
    assert errors.BadLabels in kinds
    for kind in kinds:
        internal = (
            issubclass(kind, StartupError | RemoteError | Postponed | Unreadable) or kind is RequestError
        )
        assert (kind in problems.STATUS) != internal, kind
    assert {kind.code for kind in problems.STATUS} <= set(problems.MEANINGS)
    assert set(problems.GENERIC.values()) <= set(problems.MEANINGS)


def test_an_error_that_has_no_status_gets_that_of_its_base_class_or_500() -> None:
    class TooWide(errors.TooLarge):
        pass

    assert problems.problem(TooWide("12,001 pixels"), "r1").status == 413
    assert problems.image_problem(StartupError("cannot fork"), 0, "cell.png").status == 500


def test_a_problem_is_an_rfc_9457_document_with_the_request_s_id(client: TestClient) -> None:
    answer = client.get("/nowhere", headers={"x-request-id": "ward-7"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "ward-7"
    assert answer.json() == {
        "type": "/problems/not_found",
        "title": "Not found",
        "status": 404,
        "detail": "Not Found",
        "code": "not_found",
        "request_id": "ward-7",
        "errors": [],
    }


def test_a_wrong_method_is_answered_with_the_allowed_ones(client: TestClient) -> None:
    answer = client.get("/predict")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "OPTIONS, POST"


def test_the_response_to_a_defect_contains_only_the_request_id(caplog: pytest.LogCaptureFixture) -> None:
    app = build(HeldClassifier())

    @app.get("/defect")
    async def defect() -> None:
        raise RuntimeError("patient DOE, JANE")

    with TestClient(app, LOCAL, raise_server_exceptions=False) as client:
        answer = client.get("/defect", headers={"x-request-id": "r1"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "r1"
    assert answer.json()["code"] == "internal_error"
    assert "JANE" not in answer.text
    assert "request r1 failed" in caplog.text


def test_refusals_are_counted_once_each_by_reason() -> None:
    with serving(max_body_mib=1) as client:
        client.post("/predict", content=bytes(2**20 + 1), headers=IMAGE)
        client.post("/predict", content=(bytes(2**10) for _ in range(2**10 + 1)), headers=IMAGE)
        client.get("/nowhere")
        assert metric(client, 'leuko_rejected_total{reason="too_large"}') == 2


def test_requests_are_measured_by_route_and_never_by_path(client: TestClient) -> None:
    client.get("/problems/queue_full")
    client.get("/DOE_JANE")
    text = client.get("/metrics").text
    assert 'code="200",method="GET",route="/problems/{code}"' in text
    assert 'code="404",method="GET",route="unmatched"' in text
    assert "DOE" not in text


def test_settings_come_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKO_MAX_QUEUE", "7")
    assert create_app().state.lifecycle.settings.max_queue == 7
    assert create_app(Settings()).state.lifecycle.settings.max_queue == 256


@pytest.mark.parametrize("path", sorted(build(HeldClassifier()).openapi()["paths"]))
def test_every_route_is_in_the_documentation(path: str) -> None:
    assert path in DOCS


def test_operation_ids_are_unique() -> None:
    paths = build(HeldClassifier()).openapi()["paths"]
    ids = [operation["operationId"] for operations in paths.values() for operation in operations.values()]
    assert sorted(set(ids)) == sorted(ids)
    assert not any(path.startswith("/v1") for path in paths)


def test_a_body_is_refused_for_the_memory_that_its_kind_takes() -> None:
    """Within the limit on bytes, but one caller cannot have eight times its size for what it expands to."""
    path, headers = "/v2/models/fake/infer", {"content-encoding": "gzip", "content-type": "application/json"}
    with serving(max_body_mib=2, max_reserved_mib=1) as client:
        plain = client.post(path, content=bytes(MIB), headers=headers | {"content-encoding": "identity"})
        compressed = client.post(path, content=bytes(7 * MIB // 4), headers=headers)
    assert (plain.status_code, compressed.status_code) == (400, 413)
    assert "bytes of memory" in compressed.json()["error"]
