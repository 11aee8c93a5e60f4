"""What a service records, what its key file says, and a disk that does not respond."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.edge.keys import add_key, make_key
from app.observability.drift import Window
from tests.fake_classifier import png
from tests.running import FAKE, PATIENCE_S, ROOT, Running, running, wait_until
from tests.safety.halting_decoder import FOLDER
from tests.safety.raw import exchange
from tests.safety.sending import IMAGE, alone
from tests.safety.stalling_disk import STALLED, STALLING

ROUNDS = 100
# Of one caller and interval, as docs/safety.md says; a test may meet two intervals.
AUDIT_BYTES, LOG_BYTES = 60_000, 100_000


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def count(lines: list[dict[str, Any]], **fields: Any) -> int:
    """Requests with these fields, whether they have a line or are counted in one."""
    found = [line for line in lines if fields.items() <= line.items()]
    return sum(int(line.get("count", 1)) for line in found)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


STRANGE: list[tuple[str, str, dict[str, str], int]] = [
    ("POST", "/predict", {}, 401),
    ("POST", "/predict", bearer("leuko_" + "x" * 43), 401),
    ("POST", "/v1/evaluate/predictions", {}, 401),
    ("POST", "/v2/models/fake/infer", {}, 401),
    ("GET", "/model", {}, 401),
    ("GET", "/metrics", {}, 401),
    ("GET", "/nowhere?name=x", {}, 401),
    ("GET", "/", {}, 200),
    ("GET", "/docs", {}, 200),
    ("GET", "/openapi.json", {}, 200),
    ("GET", "/problems/too_large", {}, 200),
    ("GET", "/problems/nothing", {}, 404),
    ("GET", "/page/nothing", {}, 404),
    ("DELETE", "/healthz", {}, 405),
    ("GET", "/healthz", {"host": "a b"}, 400),
]


def flood(service: Running) -> Counter[int]:
    """Send what strangers can, and return the statuses of what became a request."""
    seen: Counter[int] = Counter()
    with service.client() as client:
        for number in range(ROUNDS):
            identity = {"x-request-id": f"{number:0128}"}
            for method, path, headers, status in STRANGE:
                answer = client.request(method, path, headers=headers | identity)
                seen[answer.status_code] += 1
                assert answer.status_code == status, (method, path)
            assert exchange(service.port, b"no HTTP\r\n\r\n").startswith(b"HTTP/1.1 400")
    return seen


def test_46_refused_strangers_fill_no_disk_and_nobody_else_loses_a_line(tmp_path: Path) -> None:
    keys, audit = tmp_path / "keys", tmp_path / "audit.jsonl"
    secret = add_key(keys, "lab-1", ["predict"])
    with running(FAKE, "--keys", str(keys), "--audit", str(audit)) as service:
        with service.client() as client:
            client.headers.update(bearer(secret))
            for _ in range(20):
                assert alone(client, png(64)).status_code == 200
            seen = flood(service)
            for _ in range(20):
                assert alone(client, png(64)[:40]).status_code == 422
                assert client.get("/model").status_code == 200
                assert client.post("/evaluate").status_code == 403
        assert service.end() == 0
    lines = entries(audit)
    ours = [line for line in lines if line["key"] == "lab-1"]
    own = [(line["route"], line["status"]) for line in ours if "request_id" in line]
    assert (own.count(("/predict", 200)), own.count(("/predict", 422))) == (20, 20)
    assert own.count(("/model", 200)) == 20
    assert count(lines, key="lab-1", status=403) == 20
    for status, number in seen.items():
        assert count(lines, key=None, status=status) == number
    assert any("summary" in line for line in lines)
    strange = sum(len(json.dumps(line)) for line in lines if line["key"] is None)
    assert strange < 2 * AUDIT_BYTES
    log = [json.loads(line) for line in service.log]
    assert sum(len(json.dumps(line)) for line in log if line.get("key") is None) < 2 * LOG_BYTES


def predict(service: Running, secret: str) -> int:
    headers = IMAGE | bearer(secret)
    return httpx.post(f"{service.address}/predict", content=png(0), headers=headers).status_code


def test_51_a_key_file_that_is_emptied_or_removed_closes_the_service(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    secret = add_key(path, "lab-1", ["predict", "metrics"])
    text = path.read_text()
    with running(FAKE, "--keys", str(path)) as service:
        for end in (path.unlink, lambda: path.write_text("")):
            assert predict(service, secret) == 200
            end()
            wait_until(lambda: predict(service, secret) == 401)
            assert httpx.get(f"{service.address}/healthz").status_code == 200
            path.write_text(text)
            wait_until(lambda: predict(service, secret) == 200)
        assert service.end() == 0
    assert sum("no key is valid any more" in line for line in service.log) == 2


def test_51_the_file_is_read_in_time_also_while_nobody_sends_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    secret = add_key(path, "lab-1", ["predict"])
    with running(FAKE, "--keys", str(path)) as service:
        path.unlink()
        wait_until(lambda: any("no key is valid any more" in line for line in service.log))
        assert predict(service, secret) == 401


def test_51_an_editor_that_replaces_the_file_closes_nothing(tmp_path: Path) -> None:
    path, draft = tmp_path / "keys", tmp_path / "draft"
    secret = add_key(path, "lab-1", ["predict"])
    with running(FAKE, "--keys", str(path)) as service:
        for number in range(10):
            _, key = make_key(f"lab-{number}", ["predict"])
            draft.write_text(f"{path.read_text()}{key}\n")
            draft.replace(path)
            assert predict(service, secret) == 200


def test_51_keys_are_reloaded_where_kubernetes_mounts_them_as_links(tmp_path: Path) -> None:
    """The layout of a secret's volume: keys.txt → ..data/keys.txt, ..data → the folder of a version."""

    def mount(version: str, text: str) -> None:
        folder = tmp_path / version
        folder.mkdir()
        (folder / "keys.txt").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(version)
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    old, key = make_key("lab-1", ["predict"])
    mount("..2026_1", f"{key}\n")
    (tmp_path / "keys.txt").symlink_to("..data/keys.txt")
    with running(FAKE, "--keys", str(tmp_path / "keys.txt")) as service:
        assert predict(service, old) == 200
        new, key = make_key("lab-1", ["predict"])
        mount("..2026_2", f"{key}\n")
        wait_until(lambda: predict(service, new) == 200)
        assert predict(service, old) == 401


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Start a service that cannot start."""
    command = [sys.executable, "-c", FAKE, "serve", "--port", "0", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.symlink_to(path.with_name("precious"))


PLACED: dict[Callable[[Path], None], str] = {
    make_fifo: "it is not a regular file",
    make_link: "it is a symbolic link",
}


@pytest.mark.parametrize("place", PLACED)
def test_55_an_audit_log_that_is_a_fifo_or_a_link_is_refused_in_words(
    tmp_path: Path, place: Callable[[Path], None]
) -> None:
    log = tmp_path / "audit.jsonl"
    place(log)
    refused = start("--audit", str(log))
    assert refused.returncode == 1
    assert PLACED[place] in refused.stderr
    assert not (tmp_path / "precious").exists()


@pytest.mark.parametrize("place", PLACED)
def test_55_a_fifo_or_a_link_in_the_place_of_the_audit_log_is_503_until_it_is_gone(
    tmp_path: Path, place: Callable[[Path], None]
) -> None:
    log, old = tmp_path / "audit.jsonl", tmp_path / "precious"
    with running(FAKE, "--audit", str(log)) as service, service.client() as client:
        assert alone(client, png(0)).status_code == 200
        wait_until(lambda: len(entries(log)) == 1)
        log.rename(old)
        before = old.read_bytes()
        place(log)
        wait_until(lambda: alone(client, png(0)).status_code == 503)
        assert client.get("/healthz").status_code == 200
        assert old.read_bytes() == before
        log.unlink()
        wait_until(lambda: alone(client, png(0)).status_code == 200)


@contextmanager
def stalling(folder: Path) -> Iterator[tuple[Running, httpx.Client, Path]]:
    log = folder / "audit.jsonl"
    environ = {FOLDER: str(folder)}
    with running(STALLING, "--audit", str(log), environ=environ) as service, service.client() as client:
        yield service, client, log


def test_55_a_disk_that_stalls_is_503_after_its_time_and_delays_nothing_else(tmp_path: Path) -> None:
    with stalling(tmp_path) as (service, client, log):
        (tmp_path / STALLED).touch()
        for _ in range(3):
            assert alone(client, png(0)).status_code == 200
        began, longest = time.monotonic(), 0.0
        while client.get("/readyz").status_code == 200:
            asked = time.monotonic()
            assert client.get("/healthz").status_code == 200
            longest = max(longest, time.monotonic() - asked)
            assert asked - began < PATIENCE_S
        assert longest < (time.monotonic() - began) / 2  # it never waited for the disk
        assert client.get("/readyz").json()["detail"] == "the audit log cannot be written"
        assert alone(client, png(0)).status_code == 503
        assert "leuko_audit_failing 1.0" in client.get("/metrics").text
        (tmp_path / STALLED).unlink()
        wait_until(lambda: alone(client, png(0)).status_code == 200)
        assert service.end() == 0
        lines = entries(log)
    assert count(lines, status=200) == 3 + 1


def test_55_the_end_does_not_wait_for_a_stalled_disk_and_says_what_is_lost(tmp_path: Path) -> None:
    with stalling(tmp_path) as (service, client, _):
        (tmp_path / STALLED).touch()
        for _ in range(3):
            assert alone(client, png(0)).status_code == 200
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE_S) == 0
        service.end()
    assert any("ends without its last 3 lines" in line for line in service.log)


def test_52_requests_with_one_id_are_counted_apart_in_the_log_of_a_service(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    with running(FAKE, "--audit", str(log)) as service:
        with service.client() as client:
            client.headers["x-request-id"] = "constant"
            for grey in (10, 70, 130, 130):  # the last is a request that was sent again
                assert alone(client, png(grey)).status_code == 200
        assert service.end() == 0
    window = Window()
    assert len(list(window.read([log]))) == 3
    assert window.repeated == 1
