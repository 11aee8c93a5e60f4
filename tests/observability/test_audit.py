from __future__ import annotations

import json
import os
import select
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from threading import Barrier

import pytest

from app.errors import StartupError
from app.observability.audit import MAX_PENDING, AuditLog
from tests.disk import full_beyond


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
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    audit.write({"n": 1})
    path.rename(tmp_path / "audit.jsonl.1")
    audit.write({"n": 2})
    audit.close()
    assert (lines(tmp_path / "audit.jsonl.1"), lines(path)) == ([{"n": 1}], [{"n": 2}])


@pytest.mark.parametrize("room", [0, 5])
def test_lines_that_a_full_disk_refuses_are_kept_until_it_accepts_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    audit.write({"n": 1})
    with full_beyond(path.stat().st_size + room):
        audit.write({"n": 2})
        audit.write({"n": 3})
        assert audit.failing
    audit.retry()
    assert not audit.failing
    audit.close()
    assert lines(path)[-2:] == [{"n": 2}, {"n": 3}]
    assert len(caplog.records) == 1


def test_lines_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    with full_beyond(0):
        for number in range(MAX_PENDING + 3):
            audit.write({"n": number})
    audit.retry()
    audit.close()
    assert lines(path)[-2:] == [{"n": MAX_PENDING - 1}, {"lost": 3}]
    assert len(lines(path)) == MAX_PENDING + 1


def retry(audit: AuditLog, begun: Barrier) -> None:
    begun.wait()
    audit.retry()


def test_pending_lines_are_written_once_whichever_threads_retry(tmp_path: Path) -> None:
    pending, added = 300, 100
    for turn in range(5):
        path = tmp_path / f"{turn}.jsonl"
        audit = AuditLog(path)
        with full_beyond(0):
            for number in range(pending):
                audit.write({"n": number})
        with ThreadPoolExecutor(3) as pool:
            begun = Barrier(3)
            retries = [pool.submit(retry, audit, begun) for _ in range(2)]
            begun.wait()
            for number in range(pending, pending + added):
                audit.write({"n": number})
            for each in retries:
                each.result()
        audit.close()
        assert [line["n"] for line in lines(path)] == [*range(pending + added)]


def test_a_line_that_is_being_written_is_no_failure(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    audit = AuditLog(path)
    long = {"n": "0" * 200_000}  # more than a pipe takes at once
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(audit.write, long)
        select.select([reader], [], [])
        failing = pool.submit(lambda: audit.failing)
        wait([failing], 0.1)
        while not writing.done():
            with suppress(BlockingIOError):
                os.read(reader, 100_000)
        assert not failing.result()
    audit.close()
    os.close(reader)


def test_a_log_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file"):
        AuditLog(tmp_path / "absent" / "audit.jsonl")
