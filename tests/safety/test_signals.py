"""Scenario 50: signals whose default action is to end a process at once."""

from __future__ import annotations

import fcntl
import os
import signal
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.fake_classifier import png
from tests.running import FAKE, PATIENCE_S, Running, linux, running, wait_until
from tests.safety.faulty import GO, HELD, HOLD, faulty

STOPPING = [signal.SIGHUP, signal.SIGQUIT]


def files(grey: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", ("cell.png", png(grey)))]


def hold(service: Running) -> httpx.Response:
    return httpx.post(f"{service.address}/predict", files=files(HOLD), timeout=PATIENCE_S)


def is_ready(service: Running) -> bool:
    return httpx.get(f"{service.address}/readyz", timeout=PATIENCE_S).status_code == 200


@pytest.mark.parametrize("sig", STOPPING)
def test_50_hangup_and_quit_drain_as_sigterm_does(tmp_path: Path, sig: signal.Signals) -> None:
    with faulty(tmp_path) as service, ThreadPoolExecutor() as pool:
        held = pool.submit(hold, service)
        wait_until((tmp_path / HELD).exists)
        service.process.send_signal(sig)
        wait_until(lambda: not is_ready(service))
        service.process.send_signal(signal.SIGHUP)  # once more: shell and kernel each send one
        (tmp_path / GO).touch()
        assert service.process.wait(PATIENCE_S) == 0
        assert held.result().status_code == 200


@linux
@pytest.mark.parametrize("sig", STOPPING)
@pytest.mark.parametrize("processes", ["1", "2"])
def test_50_a_signal_to_the_whole_group_drains_and_leaves_no_process(
    processes: str, sig: signal.Signals
) -> None:
    with running(FAKE, "--processes", processes, prepare=os.setsid) as service:
        family = service.processes
        os.killpg(service.process.pid, sig)
        assert service.process.wait(PATIENCE_S) == 0
        wait_until(lambda: not any(Path(f"/proc/{pid}/task").exists() for pid in family))
    assert "Traceback" not in "".join(service.log)


@linux
@pytest.mark.parametrize("processes", ["1", "2"])
def test_50_a_terminal_that_is_closed_drains_the_service(processes: str) -> None:
    ours, theirs = os.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    with running(FAKE, "--processes", processes, prepare=own_terminal) as service:
        os.close(theirs)
        os.close(ours)
        assert service.process.wait(PATIENCE_S) == 0


@linux
@pytest.mark.parametrize("processes", ["1", "2"])
def test_50_signals_without_a_meaning_end_nothing(processes: str) -> None:
    with running(FAKE, "--processes", processes) as service:
        family = service.processes
        for pid in family:
            for sig in (signal.SIGUSR1, signal.SIGUSR2):
                os.kill(pid, sig)
        answers = [httpx.post(f"{service.address}/predict", files=files(1)) for _ in range(8)]
        assert {answer.status_code for answer in answers} == {200}
        assert service.processes == family
        assert service.end() == 0


@linux
def test_50_decoders_outlive_the_signals_until_their_service_has_drained(tmp_path: Path) -> None:
    with faulty(tmp_path) as service, ThreadPoolExecutor() as pool:
        decoders = [pid for pid in service.processes if pid != service.process.pid]
        assert decoders
        for pid in decoders:
            for sig in (*STOPPING, signal.SIGINT, signal.SIGTERM):
                os.kill(pid, sig)
        held = pool.submit(hold, service)
        wait_until((tmp_path / HELD).exists)
        assert [pid for pid in service.processes if pid != service.process.pid] == decoders
        (tmp_path / GO).touch()
        assert held.result().status_code == 200


def test_50_a_service_started_by_nohup_stays() -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with running(FAKE, prepare=nohup) as service:
        service.process.send_signal(signal.SIGHUP)
        assert is_ready(service)
        assert service.end(signal.SIGQUIT) == 0


def test_50_a_second_quit_ends_the_process_at_once(tmp_path: Path) -> None:
    with faulty(tmp_path) as service, ThreadPoolExecutor() as pool:
        held = pool.submit(hold, service)
        wait_until((tmp_path / HELD).exists)
        service.process.send_signal(signal.SIGQUIT)
        wait_until(lambda: not is_ready(service))
        service.process.send_signal(signal.SIGQUIT)
        assert service.process.wait(PATIENCE_S) == 128 + signal.SIGQUIT
        assert isinstance(held.exception(), httpx.TransportError)
