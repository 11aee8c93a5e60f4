from __future__ import annotations

import os
import shutil
import signal
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.server.supervisor import cores_of
from benchmarks.client import MULTIPART, form
from tests.fake_classifier import png
from tests.running import FAKE, command_of, linux, serves, services, serving, wait_until, wait_until_ready


def is_gone(pid: int) -> bool:
    return not command_of(pid)


def predict(address: str) -> int:
    request = urllib.request.Request(f"{address}/predict", form([png(0)]), {"Content-Type": MULTIPART})
    with urllib.request.urlopen(request) as response:
        status: int = response.status
        return status


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{address}/metrics") as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return {sample.name: sample.value for family in families for sample in family.samples}


@linux
def test_metrics_are_sums_over_processes_including_dead_ones() -> None:
    with serving(FAKE, "--processes", "2") as process:
        address = wait_until_ready(process)
        wait_until(lambda: scrape(address)["leuko_queue_capacity"] == 512)
        assert [predict(address) for _ in range(12)] == [200] * 12
        first = services(process.pid)
        assert len(first) == 2
        for pid in first:
            os.kill(pid, signal.SIGKILL)
            wait_until(partial(is_gone, pid))
            assert (
                predict(address) == 200
            )  # the other process responds, or the request waits for the replacement
        wait_until(lambda: scrape(address)["leuko_queue_capacity"] == 512)
        wait_until(lambda: scrape(address)["leuko_model_ready"] == 1)  # the minimum of all processes
        assert len(services(process.pid) - first) == 2
        for _ in range(8):
            metrics = scrape(address)
            assert metrics["leuko_images_total"] == metrics["leuko_batch_size_sum"] == 14
            assert metrics["leuko_model_ready"] == metrics["leuko_model_info"] == 1
            assert metrics["process_resident_memory_bytes"] > 3 * 2**20
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate()
        assert process.returncode == 0
        assert log.count("exited with status -9; replacing it") == 2
        assert "Traceback" not in log, log


@linux
def test_a_second_signal_ends_all_processes_at_once() -> None:
    with serving(FAKE, "--processes", "2") as process:
        wait_until_ready(process)
        pids = services(process.pid)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)  # the processes are draining, for GRACE_S
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 128 + signal.SIGINT
        assert all(map(is_gone, pids))


@linux
def test_processes_do_not_outlive_the_supervisor() -> None:
    with serving(FAKE, "--processes", "2") as process:
        wait_until_ready(process)
        pids = services(process.pid)
        process.kill()
        wait_until(lambda: all(map(is_gone, pids)))


@pytest.mark.ops
@linux
@pytest.mark.parametrize("temporary", ["stays", "goes"])
def test_a_process_is_replaced_after_the_folder_of_metrics_was_deleted(
    temporary: str, tmp_path: Path
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    with serving(FAKE, "--processes", "2", environ={"TMPDIR": str(folder)}) as process:
        address = wait_until_ready(process)
        first = services(process.pid)
        shutil.rmtree(next(folder.glob("leuko-metrics-*")) if temporary == "stays" else folder)
        for pid in first:
            os.kill(pid, signal.SIGKILL)
            wait_until(partial(is_gone, pid))
            assert predict(address) == 200
        # Where no folder can be made, each process has its own count.
        wait_until(lambda: predict(address) == 200 and scrape(address).get("leuko_images_total", 0) > 0)
        if temporary == "stays":
            wait_until(lambda: scrape(address)["leuko_queue_capacity"] == 512)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate()
        assert process.returncode == 0
        assert log.count("the folder of metrics") == 1
        assert "Traceback" not in log, log


def test_processes_that_cannot_load_end_the_service_with_1() -> None:
    with serving(FAKE, "--processes", "2", "--bundle", "broken") as process:
        _, log = process.communicate()
        assert process.returncode == 1
        assert "model.safetensors was changed" in log
        assert "failed to start" in log
        assert not serves(log)
        assert "Traceback" not in log, log


@pytest.mark.parametrize("processes", range(1, 9))
def test_each_core_belongs_to_one_process_if_there_are_enough(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5, 7, 11}, raising=False)
    shares = [cores_of(slot, processes) for slot in range(processes)]
    cores = [core for share in shares for core in share]
    assert set(cores) == {2, 3, 5, 7, 11}
    assert len(cores) == max(5, processes)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
