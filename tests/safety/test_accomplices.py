"""Decoders that do not read, fail for ever or tell secrets, and a process that forks them and is stopped."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.fake_classifier import png
from tests.pictures import encode
from tests.running import FAKE, Running, linux, running, wait_until
from tests.safety.accomplice import ABETTED, DEAF, DETAILS, ENVIRON, FAILING, SECRET, SHORT, SIPPING, message
from tests.safety.sending import alone

ONE = ("--decode-workers", "1")
# Larger than the buffers of a socket.
NOISE = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
LARGE = encode(Image.fromarray(NOISE), "PNG", compress_level=0)


def metric(client: httpx.Client, name: str) -> float:
    [value] = re.findall(rf"^{name} (\S+)", client.get("/metrics").text, re.MULTILINE)
    return float(value)


@linux
@pytest.mark.parametrize("how", [DEAF, SIPPING])
def test_25_a_decoder_that_does_not_read_costs_its_image_only(how: str) -> None:
    with (
        running(ABETTED, *ONE, "--engine-timeout-s", "2", environ=ENVIRON) as service,
        service.client() as client,
    ):
        for count in (1, 2):
            assert alone(client, message(how)).status_code == 200
            [decoder] = service.decoders()
            refused = alone(client, LARGE)
            assert (refused.status_code, refused.json()["detail"]) == (
                422,
                "the image takes longer than 2 s to decode",
            )
            wait_until(lambda pid=decoder: pid not in service.decoders())  # type: ignore[misc]
            assert client.get("/readyz").status_code == 200
            assert alone(client, LARGE).status_code == 200
            assert metric(client, "leuko_decoders_lost_total") == count
        assert metric(client, "leuko_engine_restarts_total") == 0
        assert service.end() == 0


@linux
def test_42_a_process_that_forks_decoders_and_is_stopped_is_replaced_and_no_engine_restarts() -> None:
    with running(FAKE, *ONE, "--engine-timeout-s", "1") as service, service.client() as client:
        for _ in range(2):
            forking, decoder = service.processes[1:]
            os.kill(forking, signal.SIGSTOP)
            os.kill(decoder, signal.SIGKILL)
            answer = alone(client, png(0))
            assert answer.status_code == 200 or answer.json()["code"] == "not_ready"
            wait_until(lambda: client.get("/readyz").status_code == 200)
            assert alone(client, png(0)).status_code == 200
        assert metric(client, "leuko_engine_restarts_total") == 0
        assert service.end() == 0
    assert sum("replacing the process that forks decoders" in line for line in service.log) == 2


@pytest.fixture(scope="module")
def abetted() -> Iterator[Running]:
    with running(ABETTED, *ONE, environ=ENVIRON) as service:
        yield service
        service.end()
        assert SECRET not in "".join(service.log)


@linux
def test_39_a_decoder_that_reports_a_defect_is_replaced_and_quotes_no_image_in_the_log(
    abetted: Running,
) -> None:
    with abetted.client() as client:
        before = metric(client, "leuko_decoders_lost_total")
        for count in (1, 2):
            failed = alone(client, message(FAILING))
            assert (failed.status_code, failed.json()["code"]) == (500, "engine_error")
            assert SECRET not in failed.text
            assert alone(client, png(0)).status_code == 200
            assert metric(client, "leuko_decoders_lost_total") - before == count


@linux
def test_39_a_decoder_can_tell_a_client_only_a_short_printable_text(abetted: Running) -> None:
    with abetted.client() as client:
        for name in DETAILS:
            refused = alone(client, message(name))
            assert (refused.status_code, refused.json()["detail"]) == (
                422,
                "the image crashes its decoder",
            ), name
        assert alone(client, message("short")).json()["detail"] == SHORT
        assert alone(client, png(0)).status_code == 200
