"""Training by two processes that torchrun starts, beside one: the same curve, and it goes on after a kill."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.running import wait_until
from training.data import Row, write_manifest
from training.module import LAST

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
    "coarse_epochs": str(EPOCHS),
    "shared_epochs": "0",
}
pytestmark = pytest.mark.ops


@pytest.fixture(scope="module")
def manifest(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "slides.csv"
    write_manifest(rows, path)
    return path


def arguments(
    manifest: Path, run: Path, seed: int = 0, epochs: int = EPOCHS, resume: bool = False
) -> list[str]:
    chosen = QUICK | {"seed": str(seed), "epochs": str(epochs)}
    settings = [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]
    last = ["--resume"] if resume else settings
    return [LEUKO_TRAIN, "fit", "--manifest", str(manifest), "--run", str(run), *last]


def losses(run: Path) -> list[float]:
    """Of training, by epoch, over all that was written before and after a kill."""
    found: dict[int, float] = {}
    for log in sorted(run.rglob("metrics.csv")):
        with log.open(newline="") as file:
            found |= {
                int(row["epoch"]): float(row["train_loss"])
                for row in csv.DictReader(file)
                if row["train_loss"]
            }
    return [found[epoch] for epoch in sorted(found)]


def distance(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other) == EPOCHS
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def by_two(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "two"
    subprocess.run([*TORCHRUN, *arguments(manifest, run)], check=True, capture_output=True)
    return run


def test_two_processes_learn_as_one_does(manifest: Path, by_two: Path, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        command = arguments(manifest, tmp_path / str(seed), seed)
        subprocess.run(command, check=True, capture_output=True)
    curve, *others = (losses(tmp_path / str(seed)) for seed in (0, 1, 2))
    # What a seed changes is the noise; two processes draw other pictures of the same cells, as a seed does.
    noise = max(distance(curve, other) for other in others)
    print(f"one process {curve}, other seeds {others}, two processes {losses(by_two)}")
    assert distance(curve, losses(by_two)) <= 1.5 * noise
    one, two = (torch.load(run / LAST, weights_only=True) for run in (tmp_path / "0", by_two))
    assert one["global_step"] == two["global_step"] == EPOCHS * 64 // 16


def test_after_a_kill_two_processes_go_on_with_the_same_curve(
    manifest: Path, by_two: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with subprocess.Popen(
        [*TORCHRUN, *arguments(manifest, run)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_until(lambda: (run / LAST).exists() or process.poll() is not None, patience_s=200)
        os.killpg(process.pid, signal.SIGKILL)
    assert len(losses(run)) < EPOCHS
    command = [*TORCHRUN, *arguments(manifest, run, resume=True)]
    subprocess.run(command, check=True, capture_output=True)
    print(f"uninterrupted {losses(by_two)}, killed {losses(run)}")
    state = torch.load(run / LAST, weights_only=True)
    assert state["epoch"] == EPOCHS - 1
    resumed, whole = losses(run), losses(by_two)
    assert resumed[-1] == pytest.approx(whole[-1], abs=1e-4)


def test_a_batch_that_cannot_be_dealt_out_is_refused(manifest: Path, tmp_path: Path) -> None:
    command = arguments(manifest, tmp_path / "run")
    command[command.index("batch=16")] = "batch=15"
    done = subprocess.run([*TORCHRUN, *command], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "a batch of 15 cannot be dealt out to 2 processes evenly" in done.stderr
