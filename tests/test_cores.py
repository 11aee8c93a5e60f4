"""A container's limit on processor time, in the files of both versions of Linux's cgroups."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.cores import threads_within_limit

VERSION_2 = "0::/kubepods/pod/leuko\n"
VERSION_1 = "9:name=systemd:/docker/1\n2:cpu,cpuacct:/docker/1\n0::/docker/1\n"


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)


def threads(folder: Path, own: str, files: Mapping[str, str], processes: int = 1) -> int:
    groups = folder / "groups"
    for name, text in files.items():
        path = groups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    return threads_within_limit(processes, groups, folder / "own")


@pytest.mark.parametrize(
    ("quota", "expected"), [("200000", 2), ("150000", 2), ("50000", 1), ("400000", 0), ("max", 0)]
)
def test_a_container_s_own_limit_counts_in_version_2(tmp_path: Path, quota: str, expected: int) -> None:
    assert threads(tmp_path, VERSION_2, {"cpu.max": f"{quota} 100000\n"}) == expected


@pytest.mark.parametrize(("quota", "expected"), [("100000", 1), ("300000", 3), ("-1", 0)])
def test_and_in_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    files = {"cpu/cpu.cfs_quota_us": f"{quota}\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert threads(tmp_path, VERSION_1, files) == expected


def test_outside_a_container_the_least_of_all_groups_counts(tmp_path: Path) -> None:
    files = {"kubepods/cpu.max": "100000 100000\n", "kubepods/pod/leuko/cpu.max": "300000 100000\n"}
    assert threads(tmp_path, VERSION_2, files) == 1


@pytest.mark.parametrize(("processes", "expected"), [(1, 3), (2, 2), (4, 1)])
def test_several_processes_share_the_limit(tmp_path: Path, processes: int, expected: int) -> None:
    assert threads(tmp_path, VERSION_2, {"cpu.max": "250000 100000\n"}, processes) == expected


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert threads_within_limit(1, tmp_path, tmp_path / "none") == 0
    assert threads(tmp_path, VERSION_2, {}) == 0
