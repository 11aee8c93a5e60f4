from __future__ import annotations

import errno
import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import StartupError
from app.observability.audit import MAX_PENDING, MAX_PENDING_BYTES, PATIENCE_S, AuditLog
from tests.disk import full_beyond
from tests.running import wait_until


class Disk:
    """It takes a write only when it is let, and keeps what was written in each call."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.begun = threading.Event()
        self.go = threading.Event()

    def write(self, file: int, data: bytes) -> int:
        self.begun.set()
        assert self.go.wait(60)
        self.writes.append(data)
        return os.write(file, data)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(path: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def test_lines_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for number in (1, 2):
        audit = AuditLog(path)
        audit.write({"n": number})
        audit.close()
    assert lines(path) == [{"n": 1}, {"n": 2}]
    assert path.stat().st_mode & 0o007 == 0


def test_a_file_that_was_moved_away_is_created_again(tmp_path: Path) -> None:
    path, moved = tmp_path / "audit.jsonl", threading.Event()
    audit = AuditLog(path)
    audit.on_moved = moved.set
    audit.write({"n": 1})
    wait_until(lambda: lines(path) == [{"n": 1}])
    assert not moved.is_set()
    path.rename(tmp_path / "audit.jsonl.1")
    audit.write({"n": 2})
    assert moved.wait(60)
    audit.close()
    assert (lines(tmp_path / "audit.jsonl.1"), lines(path)) == ([{"n": 1}], [{"n": 2}])


@pytest.mark.parametrize("room", [0, 5])
def test_lines_that_a_full_disk_refuses_are_kept_until_it_accepts_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    audit.write({"n": 1})
    wait_until(lambda: lines(path) == [{"n": 1}])
    with full_beyond(path.stat().st_size + room):
        audit.write({"n": 2})
        audit.write({"n": 3})
        wait_until(lambda: audit.failing)
    wait_until(lambda: not audit.failing)
    audit.close()
    assert lines(path)[-2:] == [{"n": 2}, {"n": 3}]
    assert len(caplog.records) == 1


def test_lines_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    with full_beyond(0):
        for number in range(MAX_PENDING + 3):
            audit.write({"n": number})
    wait_until(lambda: not audit.failing)
    audit.close()
    assert lines(path)[-2:] == [{"n": MAX_PENDING - 1}, {"lost": 3}]
    assert len(lines(path)) == MAX_PENDING + 1


def test_lines_beyond_the_bytes_are_counted_and_half_of_them_are_a_failure(tmp_path: Path) -> None:
    disk, path = Disk(), tmp_path / "audit.jsonl"
    audit = AuditLog(path, write=disk.write)
    big = {"n": "0" * (MAX_PENDING_BYTES // 4)}
    audit.write(big)
    assert not audit.failing
    for _ in range(2):
        audit.write(big)
    assert audit.failing
    audit.write(big)  # with the frame of its line, it is over the limit
    disk.go.set()
    wait_until(lambda: not audit.failing)
    audit.close()
    assert lines(path)[-1] == {"lost": 1}
    assert len(lines(path)) == 4


def test_lines_of_several_threads_are_each_written_once(tmp_path: Path) -> None:
    path, each = tmp_path / "audit.jsonl", 300
    audit = AuditLog(path)
    with full_beyond(1000), ThreadPoolExecutor(3) as pool:
        for number in range(each):
            pool.submit(audit.write, {"n": number})
    audit.close()
    assert sorted(line["n"] for line in lines(path)) == [*range(each)]


def test_a_write_that_fails_while_the_log_closes_is_tried_once_more(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def write(file: int, data: bytes) -> int:
        if not begun.is_set():
            begun.set()
            assert go.wait(60)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(file, data)

    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path, write=write)
    audit.write({"n": 1})
    assert begun.wait(60)
    closing = threading.Thread(target=audit.close)
    closing.start()
    wait_until(lambda: audit._closing)
    go.set()
    closing.join()
    assert lines(path) == [{"n": 1}]


def test_lines_that_wait_are_written_together_and_whole(tmp_path: Path) -> None:
    disk = Disk()
    audit = AuditLog(tmp_path / "audit.jsonl", write=disk.write)
    audit.write({"n": 0})
    assert disk.begun.wait(60)
    for number in range(1, 10_000):
        audit.write({"n": number})
    disk.go.set()
    wait_until(lambda: not audit.failing and len(lines(tmp_path / "audit.jsonl")) == 10_000)
    audit.close()
    assert all(data.endswith(b"}\n") for data in disk.writes)
    assert len(disk.writes) < 10


def test_a_disk_that_stalls_holds_up_no_writer_and_is_a_failure_after_its_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk, clock = Disk(), Clock()
    audit = AuditLog(tmp_path / "audit.jsonl", clock=clock, write=disk.write)
    audit.write({"n": 1})
    assert disk.begun.wait(60)
    audit.write({"n": 2})
    clock.now = PATIENCE_S
    assert not audit.failing
    clock.now += 0.1
    assert audit.failing
    assert audit.failing
    assert [record.getMessage() for record in caplog.records] == [
        f"the audit log {tmp_path}/audit.jsonl cannot be written: the disk has not taken a line for 5.1 s"
    ]
    disk.go.set()
    wait_until(lambda: not audit.failing)
    audit.close()
    assert lines(tmp_path / "audit.jsonl") == [{"n": 1}, {"n": 2}]


def test_the_end_does_not_wait_for_a_stalled_disk_and_says_how_many_lines_are_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    audit = AuditLog(tmp_path / "audit.jsonl", patience_s=0.01, write=disk.write)
    for number in range(3):
        audit.write({"n": number})
    audit.close()
    assert "ends without its last 3 lines" in caplog.text
    audit.write({"n": 4})
    assert "is closed: a request has no line" in caplog.text
    disk.go.set()


def test_the_end_tries_a_full_disk_once_more_and_no_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = AuditLog(tmp_path / "audit.jsonl")
    with full_beyond(0):
        audit.write({"n": 1})
        wait_until(lambda: audit.failing)
        audit.close()
    assert "ends without its last 1 lines" in caplog.text


def test_a_log_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file"):
        AuditLog(tmp_path / "absent" / "audit.jsonl")


@pytest.mark.usefixtures("bounded")
def test_only_a_regular_file_is_a_log(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "read")
    (tmp_path / "link").symlink_to(tmp_path / "audit.jsonl")
    reader = os.open(tmp_path / "read", os.O_RDONLY | os.O_NONBLOCK)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for name in ("fifo", "read", "socket", "/dev/null"):
        with pytest.raises(StartupError, match="it is not a regular file"):
            AuditLog(tmp_path / name)
    with pytest.raises(StartupError, match="it is a symbolic link"):
        AuditLog(tmp_path / "link")
    assert not (tmp_path / "audit.jsonl").exists()
    os.close(reader)


@pytest.mark.parametrize("put", ["fifo", "link", "folder"])
def test_what_is_put_in_the_place_of_a_log_is_not_written_to(tmp_path: Path, put: str) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    audit = AuditLog(path)
    path.rename(old)
    if put == "fifo":
        os.mkfifo(path)
    elif put == "link":
        path.symlink_to(old)
    else:
        path.mkdir()
    audit.write({"n": 1})
    wait_until(lambda: audit.failing)
    path.rename(tmp_path / "aside")
    wait_until(lambda: not audit.failing)
    audit.close()
    assert lines(path) == [{"n": 1}]
    assert old.read_text() == ""
