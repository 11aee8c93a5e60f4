"""Scenario 56: temporary folders of a supervisor that was killed."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.running import FAKE, linux, running, services, wait_until


def metrics_folders(temporary: Path) -> set[Path]:
    return {*temporary.glob("leuko-metrics-*")}


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}/task").exists()


@linux
@pytest.mark.ops
def test_56_the_next_start_deletes_the_folders_of_a_killed_supervisor_and_no_others(tmp_path: Path) -> None:
    start = partial(running, FAKE, "--processes", "2", environ={"TMPDIR": str(tmp_path)})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "leuko-metrics-link").symlink_to(tmp_path / "elsewhere")
    with start() as killed:
        [left] = metrics_folders(tmp_path) - {tmp_path / "leuko-metrics-link"}
        family = killed.processes[1:]
        [survivor, *_] = services(killed.process.pid)
        os.kill(survivor, signal.SIGSTOP)  # it has not noticed yet that its supervisor is gone
        killed.process.kill()
        killed.process.wait()
        with start() as second:
            in_use = metrics_folders(tmp_path)
            assert left in in_use
            os.kill(survivor, signal.SIGCONT)
            for pid in family:
                wait_until(partial(is_gone, pid))
            with start() as third:
                assert left not in metrics_folders(tmp_path)
                assert in_use - {left} <= metrics_folders(tmp_path)
                assert third.end() == 0
            assert second.end() == 0
    assert metrics_folders(tmp_path) == {tmp_path / "leuko-metrics-link"}
    assert (tmp_path / "elsewhere").exists()
