from __future__ import annotations

import io
import json
import logging
import os
import pty
import signal
from hashlib import sha256
from typing import Any

import pytest

from app.engine.bundle import CLASSES
from app.observability.logs import INTERVAL_S, MAX_TEXT, MOST_LINES, BoundedHandler, configure_logging
from app.settings import Settings
from tests.fake_classifier import png
from tests.fakes import CUT, GREYS, zipped
from tests.running import FAKE, running, serving

FIELDS = {
    "key": "lab-1",
    "request_id": "r-1",
    "image_sha256": ["ab"],
    "milliseconds": {"total": 12.04, "decode": 3.0},
}


pytestmark = pytest.mark.usefixtures("root_logger")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_are_json_unless_the_stream_is_a_terminal() -> None:
    stream = io.StringIO()
    configure_logging(Settings(), stream)
    logging.getLogger("leuko.request").info("POST %s", "/predict", extra={"fields": FIELDS})
    logging.getLogger("app").debug("too little")
    [line] = lines(stream)
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "info", "logger": "leuko.request", "message": "POST /predict", **FIELDS}


def test_an_exception_stays_on_its_line() -> None:
    stream = io.StringIO()
    configure_logging(Settings(), stream)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("app").exception("it failed")
    [line] = lines(stream)
    assert line["level"] == "error"
    assert "ValueError: two\nlines" in line["exception"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def complain(logger: logging.Logger, number: int) -> None:
    for each in range(number):
        logger.error("request %d failed", each)


def test_lines_for_debugging_are_counted_too_also_those_of_probes() -> None:
    stream = io.StringIO()
    handler = BoundedHandler(stream)
    for name in ("library", "leuko.request"):
        logger = logging.Logger(name)
        logger.addHandler(handler)
        for _ in range(MOST_LINES + 7):
            logger.debug("GET %s", "/healthz")
    assert stream.getvalue().splitlines() == ["GET /healthz"] * MOST_LINES
    handler.close()
    assert stream.getvalue().endswith(f"{MOST_LINES + 14} more lines like: GET %s\n")


def test_what_one_place_logs_again_and_again_is_counted() -> None:
    stream, clock = io.StringIO(), Clock()
    handler = BoundedHandler(stream, clock)
    logger = logging.Logger("library")
    logger.addHandler(handler)
    complain(logger, MOST_LINES + 7)
    logger.error("another place")
    for _ in range(2 * MOST_LINES):
        logger.info("no warning")
    logs = stream.getvalue().splitlines()
    assert len(logs) == MOST_LINES + 1 + 2 * MOST_LINES
    stream.truncate(0)
    clock.now = INTERVAL_S
    logger.info("later")
    assert stream.getvalue().strip("\0").splitlines() == ["7 more lines like: request %d failed", "later"]
    complain(logger, MOST_LINES + 1)
    handler.close()
    assert stream.getvalue().endswith("1 more lines like: request %d failed\n")


def test_the_lines_of_requests_are_limited_by_those_who_write_them() -> None:
    stream = io.StringIO()
    logger = logging.Logger("leuko.request")
    logger.addHandler(BoundedHandler(stream))
    complain(logger, 3 * MOST_LINES)
    assert len(stream.getvalue().splitlines()) == 3 * MOST_LINES


@pytest.mark.parametrize("asked", ["json", "text"])
def test_a_line_has_a_bound_whatever_a_library_puts_into_it(asked: str) -> None:
    stream = io.StringIO()
    configure_logging(Settings(log_format=asked), stream)
    try:
        raise ValueError("x" * 10**6)
    except ValueError:
        logging.getLogger("app").exception("%s", "y" * 10**6)
    assert len(stream.getvalue()) < 3 * MAX_TEXT


def test_a_terminal_gets_text_without_hashes() -> None:
    terminal = Terminal()
    configure_logging(Settings(), terminal)
    logging.getLogger("leuko.request").info("POST /predict 200", extra={"fields": FIELDS})
    text = terminal.getvalue()
    assert text.endswith("INFO POST /predict 200  total 12.0, decode 3.0 ms  key lab-1  request_id r-1\n")


@pytest.mark.parametrize(("asked", "is_json"), [("json", True), ("text", False)])
def test_the_setting_overrides_the_kind_of_stream(asked: str, is_json: bool) -> None:
    terminal = Terminal()
    configure_logging(Settings(log_format=asked), terminal)
    logging.getLogger("app").info("message")
    assert terminal.getvalue().startswith("{") is is_json


@pytest.fixture(scope="module")
def log() -> list[dict[str, Any]]:
    """Of one service: predictions first, then evaluations."""
    archive = zipped({f"{label}/{grey}.png": png(grey) for label, grey in zip(CLASSES, GREYS, strict=True)})
    made = {"labels": [*CLASSES], "predictions": [*CLASSES]}
    with running(FAKE) as service:
        with service.client() as client:
            files = [("files", ("mine.png", png(64))), ("files", ("cut.png", CUT))]
            client.post("/predict", files=files, headers={"x-request-id": "mine"})
            client.post("/predict", content=b"no image", headers={"content-type": "image/png"})
            client.get("/healthz")
            client.get("/metrics")
            client.get("/nowhere?name=mine.png")
            for accept in ("application/json", "text/event-stream"):
                client.post("/evaluate", files={"archive": ("a.zip", archive)}, headers={"accept": accept})
            client.post("/evaluate/predictions", json=made)
        assert service.end() == 0
    assert "mine.png" not in "".join(service.log)
    return [json.loads(line) for line in service.log]


def test_each_request_is_a_line_with_its_stages_and_hashes(log: list[dict[str, Any]]) -> None:
    first, second, third = log[:-3]
    assert (first["request_id"], first["method"], first["route"]) == ("mine", "POST", "/predict")
    assert (first["status"], first["model_sha256"]) == (200, "f" * 64)
    assert first["image_sha256"] == [sha256(data).hexdigest() for data in (png(64), CUT)]
    stages = first["milliseconds"]
    assert list(stages) == ["total", "receive", "queue", "decode", "infer", "respond"]
    assert all(0 <= value <= stages["total"] + 1 for value in stages.values())
    assert (second["status"], second["level"]) == (415, "info")
    assert (third["status"], third["route"]) == (404, None)


def test_an_evaluation_has_its_stages_and_its_accuracy_instead_of_hashes(log: list[dict[str, Any]]) -> None:
    *evaluations, predictions = log[-3:]
    assert len(evaluations) == 2
    for line in evaluations:
        assert list(line["milliseconds"]) == ["total", "receive", "queue", "decode", "infer", "respond"]
        assert (line["n"], line["accuracy"], line["errors"]) == (4, 1, 0)
        assert line["model_sha256"] == "f" * 64
        assert "image_sha256" not in line
    assert (predictions["route"], predictions["status"]) == ("/evaluate/predictions", 200)
    assert not {"image_sha256", "model_sha256"} & predictions.keys()


def test_lines_at_a_real_terminal_are_text() -> None:
    leader, follower = pty.openpty()
    try:
        with serving(FAKE, stderr=follower) as process:
            os.close(follower)
            text = b""
            while b"ready: fake" not in text:
                text += os.read(leader, 1000)
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
    finally:
        os.close(leader)
    assert b"INFO ready: fake 1.2 on fake, abacus" in text
