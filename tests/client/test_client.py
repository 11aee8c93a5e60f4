"""Both clients against a running service, and against scripted responses that no service would give."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import re
import sys
import traceback
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import leuko_client
from app.edge.keys import add_key
from leuko_client import (
    AsyncClient,
    Client,
    Differential,
    Evaluation,
    LeukoError,
    ModelReference,
    Outcome,
    Prediction,
    Progress,
    Retries,
    protocol,
)
from leuko_client.models import build
from leuko_client.progress import Bar
from leuko_client.protocol import Events
from tests.fake_classifier import png
from tests.fakes import CUT, GREYS, zipped
from tests.own_labels import FIVE, THIRTY_TWO
from tests.reports.examples import count
from tests.running import FAKE, Running, running

ROOT = Path(__file__).parents[2]
LABELS = ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]


class Blocking:
    """The asynchronous client with the interface of the synchronous one, so that one test covers both."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, options

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def run(*args: Any, **kwargs: Any) -> Any:
            async with AsyncClient(self._url, **self._options) as client:
                result = getattr(client, name)(*args, **kwargs)
                return await result if isinstance(result, Awaitable) else [item async for item in result]

        return lambda *args, **kwargs: asyncio.run(run(*args, **kwargs))


KINDS = pytest.mark.parametrize("kind", [Client, Blocking], ids=["sync", "async"])


@KINDS
def test_one_image_is_classified(kind: Any, service: Running, tmp_path: Path) -> None:
    path = tmp_path / "cell.png"
    path.write_bytes(png(GREYS[3]))
    with kind(service.address) as client:
        for image in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
            prediction = client.predict(image)
            assert isinstance(prediction, Prediction)
            assert (prediction.label, prediction.probabilities["neutrophil"], prediction.review) == (
                "neutrophil",
                0.7,
                True,
            )
        assert client.predict(path).filename == "cell.png"


@KINDS
def test_many_images_are_classified_in_order_and_fail_alone(kind: Any, service: Running) -> None:
    images = [CUT if number % 10 == 3 else png(GREYS[number % 4]) for number in range(45)]
    with kind(service.address) as client:
        outcomes: list[Outcome] = list(client.predict_many(images, batch=4, concurrency=3))
    assert len(outcomes) == 45
    for number, outcome in enumerate(outcomes):
        if number % 10 == 3:
            assert isinstance(outcome.error, leuko_client.UndecodableImage)
        else:
            assert outcome.prediction is not None
            assert outcome.prediction.label == LABELS[number % 4]


@KINDS
def test_a_batch_of_bad_images_is_an_outcome_each(kind: Any, service: Running) -> None:
    with kind(service.address) as client:
        outcomes = list(client.predict_many([CUT, b"MZ"], batch=2))
    assert [type(outcome.error).__name__ for outcome in outcomes] == ["UndecodableImage", "UnsupportedFormat"]


@KINDS
def test_an_image_that_cannot_be_read_is_an_outcome(kind: Any, service: Running, tmp_path: Path) -> None:
    good = tmp_path / "cell.png"
    good.write_bytes(png(GREYS[3]))
    closed = io.BytesIO()
    closed.close()
    absent = tmp_path / "absent.png"
    images = [absent, good, tmp_path, CUT, str(absent), "a\0b.png", closed, good, absent]
    with kind(service.address) as client:
        outcomes = list(client.predict_many(images, batch=4))
    unreadable = [isinstance(outcome.error, leuko_client.UnreadableImage) for outcome in outcomes]
    assert unreadable == [True, False, True, False, True, True, True, False, True]
    assert [outcome.prediction is not None for outcome in outcomes] == [n in (1, 7) for n in range(9)]
    assert isinstance(outcomes[3].error, leuko_client.UndecodableImage)
    assert (outcomes[0].name, "No such file" in str(outcomes[0].error)) == ("absent.png", True)


@KINDS
def test_a_specimen_is_counted_and_reported(kind: Any, service: Running) -> None:
    with kind(service.address) as client:
        sent = client.differential([png(grey) for grey in GREYS], specimen="S-1")
        predictions = [outcome.prediction for outcome in client.predict_many([png(grey) for grey in GREYS])]
        counted = client.differential_of(predictions, specimen="S-1")
        fhir = client.report(predictions, "fhir", accession="A-1")
        hl7 = client.report(predictions, "hl7", accession="A-1")
    assert sent.counts == counted.counts == dict.fromkeys(LABELS, 1)
    assert (sent.specimen, sent.fingerprint) == ("S-1", counted.fingerprint)
    low, high = sent.intervals.wilson["monocyte"]
    assert low < 25 < high
    assert (fhir["resourceType"], "|A-1|" in hl7) == ("Bundle", True)


@KINDS
def test_a_report_names_the_model_of_its_predictions(kind: Any, service: Running) -> None:
    with kind(service.address) as client:
        prediction = client.predict(png(GREYS[0]))
        earlier = ModelReference("earlier", "0.9", "a" * 64)
        made = replace(prediction, model=earlier)
        bundle = client.report([made], "fhir", subject="Patient/1", effective="2026", transaction=True)
        assert client.differential_of([made]).model == earlier
        with pytest.raises(ValueError, match=r"several models \(fake 1.2, earlier 0.9\)"):
            client.report([prediction, made], "hl7")
        with pytest.raises(ValueError, match="FHIR"):
            client.report([made], "hl7", transaction=True)
    assert prediction.model is not None
    assert (prediction.model.name, bundle["type"], "earlier" in str(bundle)) == ("fake", "transaction", True)


@KINDS
def test_a_report_of_outcomes_says_what_it_lacks(kind: Any, service: Running, tmp_path: Path) -> None:
    images = [png(GREYS[0]), CUT, tmp_path / "absent.png", png(GREYS[1])]
    with kind(service.address) as client:
        outcomes = list(client.predict_many(images, batch=2))
        counted = client.differential_of(outcomes)
        reports = [str(client.report(outcomes, format)) for format in ("fhir", "hl7")]
    assert (counted.n, [error.index for error in counted.errors]) == (2, [1, 2])
    assert [error.code for error in counted.errors] == ["undecodable_image", "unreadable_image"]
    assert counted.errors[1].filename == "absent.png"
    for text in (*reports, str(counted.warnings)):
        assert "2 of 4 images could not be classified" in text


@KINDS
def test_a_review_is_counted_signed_and_corrected(kind: Any, service: Running) -> None:
    images = [png(GREYS[0]), CUT, png(GREYS[2])]
    with kind(service.address) as client:
        first, failed, second = client.predict_many(images)
        cells = [replace(first.prediction, reviewed="eosinophil"), failed, second]
        opened = client.differential_of(cells, reviewer="A. Smith")
        cells[2] = replace(second.prediction, reviewed="not_a_cell")
        final = client.differential_of(cells, specimen="S-1", reviewer="A. Smith")
        cells[2] = replace(second.prediction, reviewed="unidentified")
        corrected = client.differential_of(cells, specimen="S-1", reviewer="B. Jones", replaces=final)
        fhir, hl7 = (
            client.report(cells, form, reviewer="B. Jones", replaces=final) for form in ("fhir", "hl7")
        )
        third = client.differential_of(cells, reviewer="C. Brown", replaces=corrected)
        with pytest.raises(leuko_client.Unusable, match="replaces"):
            client.differential_of(cells, replaces=final)
        with pytest.raises(leuko_client.Unusable, match="former"):
            client.differential_of(cells, reviewer="B. Jones", replaces=opened)
        with pytest.raises(ValueError, match="without a fingerprint"):
            client.differential_of(cells, reviewer="B. Jones", replaces=replace(final, fingerprint=None))
        with pytest.raises(leuko_client.BadLabels):
            client.differential_of([replace(first.prediction, reviewed="mast cell")])
    assert (opened.status, [one.index for one in opened.review]) == ("preliminary", [1])
    assert (final.status, final.reviewer, final.n, final.not_a_cell) == ("final", "A. Smith", 1, 1)
    assert final.agreement == leuko_client.Agreement(reviewed=2, kept=1)
    (changed,) = final.changes
    assert isinstance(changed, leuko_client.ChangedCell)
    assert (changed.label, changed.reviewed) == ("monocyte", "not_a_cell")
    assert [error.index for error in final.errors] == [1]
    assert (corrected.status, corrected.replaces) == ("corrected", final.fingerprint)
    assert corrected.former == leuko_client.FormerReport(
        str(final.fingerprint), "final", "A. Smith", final.counts, final.changes
    )
    assert third.former == leuko_client.FormerReport(
        str(corrected.fingerprint),
        "corrected",
        "B. Jones",
        corrected.counts,
        corrected.changes,
        final.fingerprint,
        corrected.former,
    )
    assert (corrected.counts["unidentified"], corrected.model_counts["monocyte"]) == (1, 1)
    assert fhir["entry"][0]["resource"]["status"] == "corrected"
    assert "|C|||||||&B. Jones" in hl7


@KINDS
def test_a_service_that_ignores_a_review_is_refused(kind: Any) -> None:
    older = count(LABELS, ["monocyte"]).model_dump(mode="json")
    del older["status"]
    answer = httpx.Response(200, json=older)
    cell = build(Prediction, CELL)
    client, _ = scripted(kind, answer, answer, answer)
    with client:
        assert client.differential_of([cell]).status is None
        for cells, reviewer in (([cell], "A. Smith"), ([replace(cell, reviewed="monocyte")], None)):
            with pytest.raises(leuko_client.UnexpectedAnswer, match="too old for reviews"):
                client.differential_of(cells, reviewer=reviewer)


@KINDS
def test_an_archive_is_evaluated_with_progress(kind: Any, service: Running) -> None:
    archive = zipped(
        {f"{LABELS[n % 4]}/{n}.png": png(GREYS[n % 4]) for n in range(8)}
        | {"monocyte/x.png": CUT, "notes.txt": b"a text"}
    )
    seen: list[Progress] = []
    with kind(service.address) as client:
        report = client.evaluate(archive, on_progress=seen.append, group_pattern="([0-9x])[.]")
    assert isinstance(report, Evaluation)
    assert (report.n, report.accuracy, report.per_class["monocyte"].support) == (8, 1.0, 2)
    assert [error.code for error in report.errors] == ["undecodable_image"]
    assert seen[0].total == 9
    assert [warning.code for warning in report.warnings] == ["files_left_out"]
    earlier = {field: value for field, value in asdict(report).items() if field != "warnings"}
    assert (
        build(Evaluation, json.loads(json.dumps(earlier))).warnings == []
    )  # of a service that does not send them


@KINDS
def test_an_archive_may_have_any_character_in_its_names(kind: Any, service: Running) -> None:
    name = "a\x85b\u2028c\u2029d\x0be\x0cf\x1cg\x1dh\x1ei é\U0001f600.png"
    with kind(service.address) as client:
        report = client.evaluate(zipped({f"monocyte/{name}": CUT, "monocyte/x.png": png(GREYS[2])}))
    assert [error.filename for error in report.errors] == [f"monocyte/{name}"]


@KINDS
def test_predictions_made_elsewhere_are_evaluated(kind: Any, service: Running) -> None:
    with kind(service.address) as client:
        report = client.evaluate_predictions(LABELS, predictions=["eosinophil"] * 4)
        assert (report.accuracy, report.per_class["monocyte"].precision) == (0.25, None)
        with pytest.raises(leuko_client.BadLabels):
            client.evaluate_predictions(["basophil"], predictions=["monocyte"])


@KINDS
def test_the_model_and_its_readiness_are_described(kind: Any, service: Running) -> None:
    with kind(service.address) as client:
        model = client.model()
        assert (model.name, model.labels, model.limits.max_files) == ("fake", LABELS, 256)
        assert client.ready()
        assert client.live()
    with kind("http://127.0.0.1:9", retries=Retries(1)) as client:
        assert not client.ready()
        assert not client.live()
        with pytest.raises(leuko_client.TransportError, match="no answer from http"):
            client.model()


@KINDS
def test_errors_of_the_service_are_exceptions(kind: Any, service: Running) -> None:
    with kind(service.address) as client:
        with pytest.raises(leuko_client.UndecodableImage, match="truncated") as caught:
            client.predict(CUT)
        assert (caught.value.status, caught.value.code) == (422, "undecodable_image")
        assert caught.value.request_id
        assert caught.value.errors[0]["index"] == 0
        with pytest.raises(leuko_client.UnsupportedFormat):
            client.predict(b"MZ")
        with pytest.raises(leuko_client.BadArchive):
            client.evaluate(b"no zip")


@KINDS
def test_a_key_is_sent_and_never_printed(kind: Any, tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys", "lab", ["predict"])
    with running(FAKE, "--keys", str(tmp_path / "keys")) as service:
        with kind(service.address) as client, pytest.raises(leuko_client.Unauthenticated):
            client.model()
        with kind(service.address, key=secret) as client:
            assert client.model().name == "fake"
            with pytest.raises(leuko_client.Forbidden) as caught:
                client.evaluate_predictions(["monocyte"], predictions=["monocyte"])
    assert secret not in f"{caught.value}{caught.value!r}{Client(key=secret)!r}{AsyncClient(key=secret)!r}"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "key", ["hidden\n", "hidden\r", "hidden\0", " hidden", "hidd\ten", "hiddené", "\ud800", ""]
)
def test_a_key_that_cannot_be_sent_is_refused_at_once_and_not_shown(kind: Any, key: str) -> None:
    with pytest.raises(ValueError, match="the key must be") as caught:
        kind(key=key)
    assert "hid" not in f"{caught.value!r}"
    assert not isinstance(caught.value, UnicodeError)


@KINDS
@pytest.mark.parametrize(
    "answer", [httpx.ConnectError("x"), httpx.Response(502, text=""), httpx.Response(200, text="<html>")]
)
def test_the_user_of_an_address_is_sent_and_never_shown(
    kind: Any, answer: httpx.Response | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    sent = []

    def respond(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["authorization"])
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, content=answer.content)

    client = kind(
        "http://hidden%40:secret@leuko/below", transport=httpx.MockTransport(respond), retries=Retries(1)
    )
    with client, pytest.raises(LeukoError, match="http://leuko/below") as caught:
        client.model()
    assert sent == ["Basic " + b64encode(b"hidden@:secret").decode()]
    text = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "secret" not in text
    assert "hidden%40" not in text


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_does_not_show_the_user_of_its_address(kind: Any) -> None:
    assert repr(kind("http://hidden:secret@leuko/")) == f"{kind.__name__}('http://leuko/')"
    with pytest.raises(ValueError, match="'http://leuko' is not the address") as caught:
        kind("http://hidden:sec/ret@leuko")
    assert caught.value.__suppress_context__


@KINDS
@pytest.mark.parametrize("url", ["hidden:secret@leuko", "ftp://hidden:secret@leuko"])
def test_an_address_that_is_none_shows_no_user_either(kind: Any, url: str) -> None:
    with (
        kind(url) as client,
        pytest.raises(leuko_client.TransportError, match="must begin with http") as caught,
    ):
        client.model()
    text = "".join(traceback.format_exception(caught.value))
    assert "leuko is not the address" in text
    assert "hidden" not in text
    assert "secret" not in text


@KINDS
def test_all_cells_of_images_are_asked_for(kind: Any, service: Running) -> None:
    """The fake classifier takes each image as one cell."""
    with kind(service.address) as client:
        [cell] = client.predict_cells(png(GREYS[3]))
        outcomes = list(client.predict_many([png(GREYS[1]), CUT], cells="all"))
        count = client.differential([png(GREYS[1])], cells="all")
        later = client.differential_of(outcomes)
    assert (cell.cell, cell.label) == (0, "neutrophil")
    assert [(len(outcome.cells), outcome.prediction) for outcome in outcomes] == [(1, None), (0, None)]
    assert outcomes[1].error is not None
    assert (count.n, later.n, count.fingerprint) == (1, 1, later.fingerprint)


# --- scripted responses ------------------------------------------------------------------------------


def scripted(kind: Any, *answers: httpx.Response | Exception, **options: Any) -> tuple[Any, list[float]]:
    """Return a client that gets these responses in turn, and the list of its waits in seconds."""
    left, waited = list(answers), []

    def answer(_: httpx.Request) -> httpx.Response:
        response = left.pop(0)
        if isinstance(response, Exception):
            raise response
        return httpx.Response(response.status_code, content=response.content, headers=response.headers)

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    pause = waited.append if kind is Client else sleep
    transport = httpx.MockTransport(answer)
    return kind("http://leuko", transport=transport, sleep=pause, **options), waited


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    problem = {
        "type": "",
        "title": "Title",
        "status": status,
        "detail": "why",
        "code": code,
        "request_id": "r",
    }
    return httpx.Response(status, json=problem, headers=headers)


MODEL = {
    "name": "m", "version": "1", "sha256": "f", "labels": LABELS, "preprocessing": {}, "temperature": 1.0,
    "review": {"confidence": 0.5, "ood_score": 3}, "training": {}, "scores": {}, "engine": "e", "device": "d",
    "service_version": "1", "later": "unknown",
    "limits": {"max_body_mib": 1, "max_image_mib": 1, "max_pixels": 1, "max_side": 1, "max_files": 1,
               "max_archive_entries": 1, "deadline_s": 1, "evaluate_deadline_s": 1.5},
}  # fmt: skip
GOOD = httpx.Response(200, json=MODEL)


@KINDS
def test_the_client_waits_for_retry_after(kind: Any) -> None:
    client, waited = scripted(
        kind,
        refusal(429, "queue_full", **{"Retry-After": "3"}),
        refusal(503, "not_ready", **{"Retry-After": "7"}),
        GOOD,
    )
    with client:
        assert client.model().name == "m"
    assert waited == [3, 7]


@KINDS
def test_a_lost_connection_is_tried_again_after_growing_waits(kind: Any) -> None:
    client, waited = scripted(kind, *[httpx.ConnectError("x")] * 3, GOOD)
    with client:
        client.model()
    assert all(2**n / 2 <= seconds <= 2**n for n, seconds in enumerate(waited))
    assert len(waited) == 3


@KINDS
def test_the_client_gives_up_after_its_attempts(kind: Any) -> None:
    client, waited = scripted(kind, *[refusal(429, "queue_full", **{"Retry-After": "1"})] * 6)
    with client, pytest.raises(leuko_client.QueueFull) as caught:
        client.model()
    assert (waited, caught.value.retry_after) == ([1] * 5, 1)
    client, waited = scripted(kind, refusal(503, "not_ready", **{"Retry-After": "600"}))
    with client, pytest.raises(leuko_client.NotReady):
        client.model()
    assert waited == []


@KINDS
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refusal(500, "internal_error"), leuko_client.ServerError),
        (refusal(418, "teapot"), leuko_client.ProblemError),
        (refusal(504, "deadline_passed"), leuko_client.DeadlinePassed),
        (httpx.Response(502, text="<html>"), leuko_client.UnexpectedAnswer),
        (httpx.Response(200, text="<html>"), leuko_client.UnexpectedAnswer),
        (httpx.Response(200, json={"name": "m"}), leuko_client.UnexpectedAnswer),
        (httpx.Response(200, json=MODEL | {"labels": 3}), leuko_client.UnexpectedAnswer),
        (httpx.Response(200, json=MODEL | {"temperature": True}), leuko_client.UnexpectedAnswer),
    ],
)
def test_anything_else_is_raised_at_once(kind: Any, answer: httpx.Response, error: type[LeukoError]) -> None:
    client, waited = scripted(kind, answer)
    with client, pytest.raises(error):
        client.model()
    assert waited == []


@KINDS
def test_an_evaluation_that_breaks_off_is_an_error(kind: Any) -> None:
    client, _ = scripted(
        kind,
        httpx.Response(
            200, text='event: progress\ndata: {"done": 1, "total": 2, "images_per_second": 1}\n\n'
        ),
    )
    with client, pytest.raises(leuko_client.UnexpectedAnswer, match="broke off"):
        client.evaluate(b"")


PROGRESS = {"done": 1, "total": 2, "images_per_second": 1}


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_end_at_the_line_ends_of_event_streams_only(end: str, size: int) -> None:
    lines = ["event: progress", f"data: {json.dumps(PROGRESS)}", "", "event: error"]
    lines += ["data: " + json.dumps(refusal(500, "x\x85y\u2028z\u2029").json(), ensure_ascii=False), "", ""]
    stream = end.join(lines).encode()
    events, seen = Events(), list[Progress | Evaluation]()

    def read() -> None:
        for start in range(0, len(stream), size):
            seen.extend(events.feed(stream[start : start + size]))

    with pytest.raises(leuko_client.ServerError) as caught:
        read()
    assert seen == [Progress(done=1, total=2, images_per_second=1)]
    assert caught.value.code == "x\x85y\u2028z\u2029"


@KINDS
@pytest.mark.parametrize("event", ["event: result\ndata: {\n\n", "event: error\ndata: {}\n\n"])
def test_an_event_that_is_not_leuko_s_is_an_error(kind: Any, event: str) -> None:
    client, waited = scripted(kind, httpx.Response(200, text=event))
    with client, pytest.raises(leuko_client.UnexpectedAnswer):
        client.evaluate(b"")
    assert waited == []


def test_a_caller_may_stop_before_the_end(service: Running) -> None:
    with Client(service.address) as client:
        for outcome in client.predict_many(png(GREYS[0]) for _ in range(1000)):
            assert outcome.prediction
            break


# --- progress and packaging -------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_a_terminal_and_erased() -> None:
    now = iter([0.0, 2.0])
    stream = Terminal()
    bar = Bar(8, stream, lambda: next(now))
    bar.advance(4)
    bar.close()
    assert "4/8 2/s 2 s left" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_progress_prints_nothing_without_a_terminal() -> None:
    stream = io.StringIO()
    bar = Bar(None, stream)
    bar.advance(3)
    bar.close()
    assert stream.getvalue() == ""
    assert bar.line().startswith("3 images")


def test_the_client_needs_only_httpx() -> None:
    for path in (ROOT / "client/leuko_client").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.partition(".")[0]
                assert top in {"httpx", "leuko_client"} | sys.stdlib_module_names


def test_the_readme_s_example_runs(
    service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cell.jpg").write_bytes(png(GREYS[0]))
    (tmp_path / "cut.jpg").write_bytes(CUT)
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "client/README.md").read_text(), re.DOTALL):
        exec(code.replace("http://127.0.0.1:8000", service.address), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("eosinophil 0.7 {")
    assert lines[1] == "cell.jpg eosinophil"
    assert lines[2].startswith("cut.jpg Image cannot be decoded (422)")
    assert lines[-1].startswith("final Agreement(reviewed=1, kept=0) corrected {'eosinophil': 0, ")


@pytest.mark.parametrize("labels", [FIVE, THIRTY_TWO], ids=["5 labels", "32 labels"])
def test_a_count_of_any_labels_is_read_as_the_service_sends_it(labels: tuple[str, ...]) -> None:
    for found in (labels, ["platelet"]):
        sent = count(labels, found).model_dump(mode="json")
        received = build(Differential, sent)
        assert (received.n, received.leukocytes) == (sent["n"], sent["leukocytes"])
        assert received.percent == sent["percent"]
        assert received.per_100_leukocytes == sent["per_100_leukocytes"]
        older = {name: value for name, value in sent.items() if "leukocytes" not in name}
        assert build(Differential, older).per_100_leukocytes == {}


CELL = {
    "index": 0, "filename": "f.png", "image_sha256": "0" * 64, "label": "monocyte", "confidence": 0.9,
    "probabilities": {"monocyte": 0.9}, "ood_score": 1.0, "review": False, "review_reasons": [],
    "frame": {"left": 0, "top": 0, "width": 1, "height": 1, "nucleus": True}, "cam": None,
}  # fmt: skip


def cells(*places: tuple[int, int], empty: tuple[int, ...] = ()) -> httpx.Response:
    answer = {
        "request_id": "r",
        "model": {"name": "m", "version": "1", "sha256": "f" * 64},
        "predictions": [{**CELL, "index": index, "cell": cell} for index, cell in places],
        "empty": [{"index": index, "filename": None} for index in empty],
        "errors": [],
    }
    return httpx.Response(200, json=answer)


@KINDS
def test_an_image_may_have_any_number_of_cells(kind: Any) -> None:
    client, _ = scripted(kind, cells((0, 0), (0, 1), (2, 0), empty=(1,)), cells(empty=(0,)))
    with client:
        outcomes = list(client.predict_many([b"a", b"b", b"c"], cells="all"))
        assert client.predict_cells(b"d") == []
    assert [[cell.cell for cell in outcome.cells] for outcome in outcomes] == [[0, 1], [], [0]]
    document = protocol.differential_of(outcomes, {}, "json", None).options["json"]
    assert [one["cell"] for one in document["predictions"]] == [0, 1, 0]
    assert (document["empty"], document["errors"]) == ([{"index": 1, "filename": "image"}], [])
    assert all(outcome.error is None for outcome in outcomes)


@KINDS
def test_an_answer_that_lacks_an_image_is_refused(kind: Any) -> None:
    client, _ = scripted(kind, cells((0, 0), (0, 1)), cells((0, 0), (0, 1)))
    with client, pytest.raises(leuko_client.UnexpectedAnswer):
        list(client.predict_many([b"a", b"b"], cells="all"))
    client, _ = scripted(kind, cells((0, 0), (0, 1)))
    with client, pytest.raises(leuko_client.UnexpectedAnswer):
        list(client.predict_many([b"a"]))
