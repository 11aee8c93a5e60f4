"""Before a real server is ready, and while it runs short of files and disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx

from tests.fake_classifier import png
from tests.running import FAKE, PATIENCE_S, free_port, linux, running, serving, wait_until
from tests.safety.faulty import BROKEN, FAULTY, GO, LOAD
from tests.safety.halting_decoder import FOLDER
from tests.safety.sending import alone

FILES = 64


def status(address: str, path: str) -> int | None:
    try:
        return httpx.get(address + path).status_code
    except httpx.TransportError:
        return None


@contextmanager
def loading(folder: Path) -> Iterator[tuple[Popen[str], str]]:
    """A service that loads until GO; its address."""
    (folder / LOAD).touch()
    port = free_port()
    with serving(FAULTY, "--port", str(port), environ={FOLDER: str(folder)}) as process:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: status(address, "/healthz") == 200)
        yield process, address


def test_30_before_the_engine_is_warm_healthz_is_200_and_readyz_and_work_are_503(tmp_path: Path) -> None:
    with loading(tmp_path) as (_, address):
        assert status(address, "/readyz") == 503
        refused = httpx.post(f"{address}/predict", content=png(0), headers={"content-type": "image/png"})
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert int(refused.headers["Retry-After"]) >= 1
        (tmp_path / GO).touch()
        wait_until(lambda: status(address, "/readyz") == 200)


def test_30_a_warm_up_that_fails_is_never_ready_and_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / BROKEN).touch()
    with loading(tmp_path) as (process, address):
        assert status(address, "/readyz") == 503
        (tmp_path / GO).touch()
        seen = set()
        while process.poll() is None:
            seen.add(status(address, "/readyz"))
        assert seen <= {503, None}
        assert process.returncode == 1


def test_28_sigterm_while_the_weights_are_loading_ends_the_process_with_0(tmp_path: Path) -> None:
    with loading(tmp_path) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


@linux
def test_33_with_64_files_at_most_more_connections_are_503_and_then_it_recovers() -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))

    with running(FAKE, prepare=few) as service:
        with ExitStack() as idle:
            refused = None
            while refused is None:
                idle.enter_context(socket.create_connection(("127.0.0.1", service.port)))
                with service.client() as client:
                    answer = alone(client, png(0))
                    refused = answer if answer.status_code != 200 else None
            assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.headers["Connection"] == "close"
            # Far more than there are files: whoever is not answered waits or is turned away.
            for _ in range(2 * FILES):
                idle.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            assert service.process.poll() is None
        wait_until(lambda: answers(service.address))
        assert service.end() == 0
        assert not any("Traceback" in line for line in service.log), service.log


def answers(address: str) -> bool:
    try:
        answer = httpx.post(f"{address}/predict", content=png(0), headers={"content-type": "image/png"})
    except httpx.TransportError:
        return False
    return answer.status_code == 200


def test_33_a_full_or_absent_temporary_folder_does_not_matter(tmp_path: Path) -> None:
    with running(FAKE, environ={"TMPDIR": str(tmp_path / "absent")}) as service, service.client() as client:
        big = png(0) + os.urandom(3_000_000)  # where a framework would spill it to a file
        assert client.post("/predict", files={"files": ("cell.png", big)}).status_code == 200


@linux
def test_33_a_full_disk_under_the_audit_log_is_503_until_there_is_room(tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    log, full = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"

    def answered() -> int:
        """Requests, not lines: the full disk cuts a line anywhere, and it is written again."""
        entries = whole((full.read_text() + log.read_text()).splitlines())
        return len({entry["request_id"] for entry in entries if entry.get("status") == 200})

    with running(FAKE, "--audit", str(log), prepare=small) as service, service.client() as client:
        statuses = [200]
        while statuses[-1] == 200:
            statuses.append(alone(client, png(0)).status_code)
        assert statuses[-1] == 503
        assert client.get("/readyz").json()["detail"] == "the audit log cannot be written"
        assert client.get("/healthz").status_code == 200
        assert "leuko_audit_failing 1.0" in client.get("/metrics").text
        log.rename(full)
        wait_until(lambda: client.get("/readyz").status_code == 200)  # it tries again several times a second
        assert alone(client, png(0)).status_code == 200
        wait_until(lambda: answered() == len(statuses) - 2 + 1)  # a line comes after its answer


def whole(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(json.JSONDecodeError):
            yield json.loads(line)
