"""Engines and decoders that fail, hang or die, on a real server."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_classifier import NAN, png
from tests.pictures import encode, picture
from tests.running import PATIENCE_S, Running, linux, wait_until
from tests.safety.faulty import BREAK, GO, HANG, HELD, HOLD, KILL, LEAVE, POISON, faulty, wait_for
from tests.safety.halting_decoder import HALT, halted, resumed
from tests.safety.sending import alone, together


@dataclass(frozen=True)
class Faulty:
    """A service, and the folder of its faults."""

    service: Running
    folder: Path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """For tests of faults that a service survives; each leaves it working."""
    folder = tmp_path_factory.mktemp("faults")
    with faulty(folder, "--max-batch", "16") as service:
        yield Faulty(service, folder)


@pytest.fixture
def service(shared: Faulty) -> Running:
    return shared.service


def less(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("index", "filename")}


def is_ready(service: Running) -> bool:
    return httpx.get(f"{service.address}/readyz").status_code == 200


@pytest.mark.parametrize("bad", [POISON, LEAVE, NAN])
def test_19_one_poisonous_image_in_a_batch_of_16_leaves_15_answers_as_they_are_alone(
    service: Running, bad: int
) -> None:
    greys = [16 * number + 9 for number in range(15)]
    with service.client() as client:
        expected = [less(alone(client, png(grey)).json()["predictions"][0]) for grey in greys]
        images = [png(grey) for grey in greys[:7]] + [png(bad)] + [png(grey) for grey in greys[7:]]
        found = list(together(client, images))
        assert found.pop(7)["code"] == "engine_error"
        assert [less(item) for item in found] == expected


def test_24_an_engine_that_hangs_is_503_for_its_waiters_and_comes_back(
    tmp_path: Path,
) -> None:
    with faulty(tmp_path, "--engine-timeout-s", "1") as service:
        with ThreadPoolExecutor() as pool, service.client() as client:
            hanging = pool.submit(alone, client, png(HANG))
            waiting = [pool.submit(alone, client, png(0)) for _ in range(4)]
            seen = {hanging.result().status_code, *(answer.result().status_code for answer in waiting)}
            assert hanging.result().json()["code"] == "not_ready"
            assert int(hanging.result().headers["Retry-After"]) >= 1
            assert seen <= {200, 503}
            wait_until(lambda: is_ready(service))
            assert alone(client, png(0)).status_code == 200
            assert "leuko_engine_restarts_total 1.0" in client.get("/metrics").text
        # The thread that hangs does not keep the process.
        assert service.end() == 0


def test_24_an_engine_that_hangs_again_and_again_ends_the_process(tmp_path: Path) -> None:
    with faulty(tmp_path, "--engine-timeout-s", "0.2") as service, service.client() as client:
        for _ in range(4):
            assert alone(client, png(HANG)).status_code == 503
            wait_until(lambda: service.process.poll() is not None or is_up(service))
        assert service.process.wait(PATIENCE_S) == 1


def is_up(service: Running) -> bool:
    try:
        return is_ready(service)
    except httpx.TransportError:
        return False


@linux
def test_25_a_decoder_that_is_killed_costs_no_request_anything(shared: Faulty) -> None:
    service = shared.service
    [decoder], before = service.decoders(), lost(service)
    with ThreadPoolExecutor() as pool:
        halting = pool.submit(ask, service, HALT)
        wait_until(lambda: halted(shared.folder) == decoder)
        others = [pool.submit(ask, service, png(grey)) for grey in (0, 70)]
        with resumed(shared.folder):
            os.kill(decoder, signal.SIGKILL)
            assert [answer.result().status_code for answer in (halting, *others)] == [200] * 3
        assert lost(service) - before == 1
        [successor] = service.decoders()
        assert successor != decoder


@linux
def test_25_an_image_that_ends_its_decoder_twice_is_refused_and_others_go_on(shared: Faulty) -> None:
    service = shared.service
    before, ended = lost(service), set[int]()
    with ThreadPoolExecutor() as pool:
        halting = pool.submit(ask, service, HALT)
        others = [pool.submit(ask, service, png(grey)) for grey in (0, 70)]
        for _ in range(2):
            wait_until(lambda: halted(shared.folder) in {*service.decoders()} - ended)
            decoder = halted(shared.folder)
            ended.add(decoder)
            os.kill(decoder, signal.SIGKILL)
        refused = halting.result()
        assert (refused.status_code, refused.json()["code"]) == (422, "undecodable_image")
        assert "crashes its decoder" in refused.json()["detail"]
        assert [answer.result().status_code for answer in others] == [200, 200]
        assert lost(service) - before == 2


@linux
def test_25_an_image_that_holds_its_decoder_is_refused_and_the_engine_goes_on(tmp_path: Path) -> None:
    with faulty(tmp_path, "--engine-timeout-s", "1") as service:
        [held] = service.decoders()
        os.kill(held, signal.SIGSTOP)
        refused = ask(service, png(0))
        assert refused.status_code == 422
        # Stopped, it cannot end itself.
        wait_until(lambda: not Path(f"/proc/{held}/cmdline").exists())
        assert "takes longer than 1 s" in refused.json()["detail"]
        assert ask(service, png(0)).status_code == 200
        assert "leuko_engine_restarts_total 0.0" in httpx.get(f"{service.address}/metrics").text


@linux
def test_25_whatever_forks_the_decoders_may_die_too(service: Running) -> None:
    forking, *decoders = service.processes[1:]
    for pid in (forking, *decoders):
        os.kill(pid, signal.SIGKILL)
    assert ask(service, png(0)).status_code == 200
    assert len(service.processes) == 3


@linux
def test_25_decoders_end_with_their_service_and_by_no_signal_meant_for_it(tmp_path: Path) -> None:
    with faulty(tmp_path) as service:
        helpers = service.processes[1:]
        for pid, sig in itertools.product(helpers, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)):
            os.kill(pid, sig)
        assert ask(service, png(0)).status_code == 200
        assert lost(service) == 0
        service.process.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in helpers))


@linux
def test_25_a_decoder_may_open_no_file_and_start_no_process(service: Running) -> None:
    limits = Path(f"/proc/{service.decoders()[0]}/limits").read_text()
    for what in ("open files", "processes", "file size", "core file size"):
        assert re.search(rf"^Max {what} +0 +0 ", limits, re.MULTILINE), limits


def test_25_what_codecs_say_of_a_broken_picture_is_in_no_log(tmp_path: Path) -> None:
    whole = encode(picture(), "TIFF", compression="tiff_adobe_deflate")
    broken = whole[:60] + b"\xaa" * 40 + whole[100:]
    with faulty(tmp_path) as service:
        assert ask(service, broken).json()["code"] == "undecodable_image"
        service.end()
    assert "ZIPDecode" not in "".join(service.log)


@linux
def test_25_an_engine_that_crashes_takes_one_process_and_others_go_on(tmp_path: Path) -> None:
    with faulty(tmp_path, "--processes", "2") as service:
        for number in range(1, 4):
            with pytest.raises(httpx.RemoteProtocolError):
                ask(service, png(KILL))
            assert ask(service, png(0)).status_code == 200
            # Without successors the third would find nobody.
            wait_until(lambda count=number: replaced(service) == count)  # type: ignore[misc]


def ask(service: Running, image: bytes) -> httpx.Response:
    with service.client() as client:
        return alone(client, image)


def lost(service: Running) -> int:
    metrics = httpx.get(f"{service.address}/metrics").text
    [count] = re.findall(r"^leuko_decoders_lost_total (\d+)", metrics, re.MULTILINE)
    return int(count)


def restarts(client: httpx.Client) -> str:
    """As the metrics count them."""
    [count] = re.findall(r"^leuko_engine_restarts_total (\S+)", client.get("/metrics").text, re.MULTILINE)
    return str(count)


def replaced(service: Running) -> int:
    return sum("replacing it" in line for line in service.log)


def test_26_an_engine_that_always_fails_ends_the_process_with_an_error(tmp_path: Path) -> None:
    with faulty(tmp_path) as service, service.client() as client:
        assert alone(client, png(BREAK)).status_code == 500
        while service.process.poll() is None and is_up(service):
            alone(client, png(0))
        assert service.process.wait(PATIENCE_S) == 1
        service.end()
        assert any("the engine no longer gives the known answer" in line for line in service.log)


def test_26_images_that_always_fail_do_not(service: Running) -> None:
    with service.client() as client:
        before = restarts(client)
        assert {alone(client, png(POISON)).status_code for _ in range(50)} == {500}
        assert alone(client, png(0)).status_code == 200
        assert restarts(client) == before


def test_31_logits_that_are_not_finite_are_the_error_of_their_item_in_valid_json(service: Running) -> None:
    def refuse(token: str) -> None:
        raise AssertionError(token)

    with service.client() as client:
        files = [("files", ("a.png", png(NAN))), ("files", ("b.png", png(0)))]
        answer = json.loads(client.post("/predict", files=files).text, parse_constant=refuse)
        assert [error["code"] for error in answer["errors"]] == ["engine_error"]
        assert len(answer["predictions"]) == 1
        assert json.loads(alone(client, png(NAN)).text, parse_constant=refuse)["status"] == 500


@linux
def test_27_sigterm_under_load_fails_no_request_turns_readiness_first_and_leaves_no_process(
    tmp_path: Path,
) -> None:
    with faulty(tmp_path, seconds=0.02) as service, ThreadPoolExecutor(9) as pool:
        clients = [pool.submit(work_while_ready, service) for _ in range(8)]
        held = pool.submit(lambda: httpx.post(f"{service.address}/predict", files=form(HOLD), timeout=30))
        wait_for(tmp_path / HELD)
        processes = service.processes
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_ready(service))
        (tmp_path / GO).touch()
        assert service.process.wait(PATIENCE_S) == 0
        assert held.result().status_code == 200
        statuses = [status for client in clients for status in client.result()]
        assert len(statuses) >= 8
        assert set(statuses) == {200}
        wait_until(lambda: not any(Path(f"/proc/{pid}/task").exists() for pid in processes))


def work_while_ready(service: Running) -> list[int]:
    """Goes to another service when this one is not ready any more, as a balancer would have it."""
    statuses = []
    with service.client() as client:
        while client.get("/readyz").status_code == 200:
            statuses.append(client.post("/predict", files=form(0)).status_code)
    return statuses


def form(grey: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", ("cell.png", png(grey)))]


def test_28_a_second_sigterm_ends_the_process_at_once(tmp_path: Path) -> None:
    with faulty(tmp_path) as service, ThreadPoolExecutor() as pool:
        held = pool.submit(lambda: httpx.post(f"{service.address}/predict", files=form(HOLD), timeout=30))
        wait_for(tmp_path / HELD)
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_ready(service))
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        assert isinstance(held.exception(), httpx.TransportError)
