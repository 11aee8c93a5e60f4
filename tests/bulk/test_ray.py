"""`leuko score` with Ray: on this machine, killed and continued, and on a cluster that loses a machine."""

from __future__ import annotations

import bz2
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pyarrow.dataset
import pytest

from app.engine.bundle import CLASSES
from app.samples.smear import draw_smear
from tests.running import ROOT, wait_until

LEUKO = [sys.executable, "-m", "app.cli.main", "score"]


def draw(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(min(count, 8)):
        draw_smear(CLASSES[index % 4], seed=index, width=160, height=120).save(folder / f"{index:05d}.png")
    for index in range(8, count):
        (folder / f"{index:05d}.png").symlink_to(f"{index % 8:05d}.png")
    return folder


def paths(destination: Path) -> list[str]:
    table = pyarrow.dataset.dataset(destination, format="parquet").to_table(columns=["path"])
    return sorted(table["path"].to_pylist())


def written(destination: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in destination.glob("part-*.parquet")}


@pytest.mark.ops
def test_a_scoring_that_was_killed_goes_on_and_does_nothing_twice(tmp_path: Path) -> None:
    source, destination = draw(tmp_path / "in", 3000), tmp_path / "out"
    command = [*LEUKO, str(source), str(destination), "--json"]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as first:
        wait_until(lambda: bool(written(destination)) or first.poll() is not None, patience_s=120)
        os.killpg(first.pid, signal.SIGKILL)
    before = written(destination)
    assert 0 < len(before) < 3
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    summary: dict[str, Any] = json.loads(done.stdout)
    assert (summary["images"], summary["errors"]) == (3000, 0)
    assert summary["images_before"] == 1000 * len(before)
    assert paths(destination) == sorted(path.name for path in source.iterdir())
    assert {name: written(destination)[name] for name in before} == before
    with_nothing_left = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(with_nothing_left.stdout)["images_before"] == 3000


@pytest.mark.ops
def test_a_part_that_cannot_be_read_is_left_out_and_tried_again(tmp_path: Path) -> None:
    source, destination = draw(tmp_path / "in", 20), tmp_path / "out"
    shard = source / "a.tar.bz2"
    shard.write_bytes(bz2.compress(bytes(10**6))[:-8] + bytes(8))
    command = [*LEUKO, str(source), str(destination), "--json"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as first:
        heard: set[str] = set()
        while first.poll() is None:
            heard |= listening(first.pid)
            time.sleep(0.5)
        assert first.stderr is not None
        said = first.stderr.read()
    assert first.returncode == 1
    assert "left out: a.tar.bz2 on " in said
    assert len(paths(destination)) == 20
    assert heard
    assert all(ip_address(host.removeprefix("::ffff:")).is_loopback for host in heard), heard
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 1
    summary = json.loads(again.stdout)
    assert (summary["images_before"], summary["images"], summary["parts_left_out"]) == (20, 20, 1)


def listening(pid: int) -> set[str]:
    """Return the addresses on which a process and its descendants listen."""
    addresses = set()
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                sockets = process.net_connections("tcp")
                addresses |= {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
    return addresses


@pytest.mark.ops
def test_a_cluster_that_loses_a_machine_scores_every_image_once(tmp_path: Path) -> None:
    source, destination = draw(tmp_path / "in", 12_000), tmp_path / "out"
    script = f"""
import os, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
os.environ["RAY_AUTH_MODE"] = "disabled"
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 0}})
nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
command = [*{LEUKO!r}, {str(source)!r}, {str(destination)!r}, "--json", "--address", cluster.address]
job = subprocess.Popen(command)
while len(list(Path({str(destination)!r}).glob("part-*"))) < 3 and job.poll() is None:
    time.sleep(0.1)
assert job.poll() is None, "the job ended before a machine was lost"
cluster.remove_node(nodes[0], allow_graceful=False)
status = job.wait()
cluster.shutdown()
sys.exit(status)
"""
    environ = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, env=environ, timeout=500)
    assert paths(destination) == sorted(path.name for path in source.iterdir())
