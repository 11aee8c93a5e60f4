"""Training by two processes under torchrun: the same result as one process, and resumption after a kill."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from benchmarks.server import family, field
from tests.running import linux, wait_until
from training.data import Row, build_manifest, write_manifest
from training.module import BEST, LAST
from training.rows import fold_path

LEUKO_TRAIN = str(Path(sys.executable).with_name("leuko-train"))
TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--no-python", "--"]
EPOCHS = 4
QUICK = {
    "initial": "'random'",
    "workers": "0",
    "batch": "16",
    "samples": "64",
    "precision": "'32-true'",
    "schedule": "'constant'",
    "holdout": "0.25",
    "mix": "{slides=1}",
    "select_on": "'holdout'",
    "monitor": "'last'",
    "detail": "96",
    "coarse_size": "64",
    "epochs": str(EPOCHS),
    "coarse_epochs": str(EPOCHS),
    "shared_epochs": "0",
}
FOLDS = {
    "select_on": "'folds'",
    "folds": "2",
    "mix": "{slides=0.5, other=0.5}",
    "shared_epochs": "1",
    "epochs": "1",
    "samples": "32",
}
pytestmark = pytest.mark.ops


@pytest.fixture(scope="module")
def manifest(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "slides.csv"
    write_manifest(rows, path)
    return path


def arguments(
    manifest: Path, run: Path, changes: Mapping[str, str] = MappingProxyType({}), resume: bool = False
) -> list[str]:
    chosen = {**QUICK, **changes}
    settings = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
    last = ["--resume"] if resume else settings
    return [LEUKO_TRAIN, "fit", "--manifest", str(manifest), "--run", str(run), *last]


def train(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def train_until(holds: Callable[[], bool], command: list[str]) -> None:
    """Train under torchrun until the condition holds; then kill torchrun and both its workers."""
    with subprocess.Popen(
        [*TORCHRUN, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_until(lambda: holds() or process.poll() is not None, patience_s=200)
        processes = family(process.pid)  # by pid: each worker has its own session and group
        assert len(processes) >= 3
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(runs(pid) for pid in processes))


def runs(pid: int) -> bool:
    """Return whether the process exists and is not a zombie (its new parent may never reap it)."""
    return field(pid, r"State:\s+(\w)") not in ([], ["Z"])


def losses(run: Path) -> list[float]:
    """Return the training losses by epoch, from all logs before and after a kill."""
    by_epoch: dict[int, float] = {}
    for log in sorted(run.rglob("metrics.csv")):
        with log.open(newline="") as file:
            by_epoch |= {
                int(row["epoch"]): float(row["train_loss"])
                for row in csv.DictReader(file)
                if row["train_loss"]
            }
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def distance(first: list[float], second: list[float]) -> float:
    assert len(first) == len(second) == EPOCHS
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def by_two(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "two"
    train([*TORCHRUN, *arguments(manifest, run)])
    return run


def test_two_processes_learn_as_one_does(manifest: Path, by_two: Path, tmp_path: Path) -> None:
    for seed in ("0", "1", "2"):
        train(arguments(manifest, tmp_path / seed, {"seed": seed}))
    curve, *others = (losses(tmp_path / seed) for seed in ("0", "1", "2"))
    # The noise is the effect of the seed; two processes augment the same images differently, as a seed does.
    noise = max(distance(curve, other) for other in others)
    print(f"one process {curve}, other seeds {others}, two processes {losses(by_two)}")
    assert distance(curve, losses(by_two)) <= 1.5 * noise
    one, two = (torch.load(run / LAST, weights_only=True) for run in (tmp_path / "0", by_two))
    assert one["global_step"] == two["global_step"] == EPOCHS * 64 // 16
    assert torch.equal(one["draws"], two["draws"])  # so each epoch sampled the same images


@linux
def test_after_a_kill_two_processes_go_on_with_the_same_curve(
    manifest: Path, by_two: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_until((run / LAST).exists, arguments(manifest, run))
    assert len(losses(run)) < EPOCHS
    train([*TORCHRUN, *arguments(manifest, run, resume=True)])
    print(f"uninterrupted {losses(by_two)}, killed {losses(run)}")
    state = torch.load(run / LAST, weights_only=True)
    assert state["epoch"] == EPOCHS - 1
    resumed, whole = losses(run), losses(by_two)
    assert resumed[-1] == pytest.approx(whole[-1], abs=1e-4)


@linux
def test_after_a_kill_between_folds_two_processes_go_on_to_the_same_mean(
    rows: list[Row], archive: Path, tmp_path: Path
) -> None:
    second = Path(shutil.copyfile(archive, tmp_path / "other.zip"))
    manifest, whole, killed = (tmp_path / name for name in ("both.csv", "whole", "killed"))
    write_manifest([*rows, *build_manifest(second)], manifest)
    train([*TORCHRUN, *arguments(manifest, whole, FOLDS)])
    train_until((fold_path(killed, 0) / LAST).exists, arguments(manifest, killed, FOLDS))
    assert not (fold_path(killed, 1) / LAST).exists()
    train([*TORCHRUN, *arguments(manifest, killed, resume=True)])
    mean, again, *folds = (weights(run) for run in (whole, killed, *(fold_path(whole, k) for k in (0, 1))))
    head = "network.trunk.fc.weight"
    assert torch.allclose(mean[head], (folds[0][head] + folds[1][head]) / 2, atol=1e-6)
    assert not torch.equal(folds[0][head], folds[1][head])
    assert all(torch.allclose(again[name], mean[name], atol=1e-5) for name in mean)


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / BEST, weights_only=True)["state_dict"]
    return state


def test_a_batch_that_cannot_be_divided_is_refused(manifest: Path, tmp_path: Path) -> None:
    command = arguments(manifest, tmp_path / "run")
    command[command.index("batch=16")] = "batch=15"
    done = subprocess.run([*TORCHRUN, *command], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "batch = 15 cannot be divided evenly among 2 processes" in done.stderr
