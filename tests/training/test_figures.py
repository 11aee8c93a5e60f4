from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.vision.bundle import CLASSES
from app.vision.scores import calibration_error
from tests import paper
from tests.vision.cases import random_case
from training.errors import DataError
from training.figures import (
    best_epoch,
    column,
    draw_confusion,
    draw_curves,
    draw_reliability,
    read_history,
    read_metrics,
    reliability,
)

LOG = """epoch,step,train_accuracy,train_loss,val_accuracy,val_loss
0,99,,,0.35,1.34
0,99,0.71,0.82,,
1,199,,,0.92,0.38
1,199,0.86,0.52,,
2,299,,,0.92,nan
2,299,0.89,0.46,,
"""
MAX_BYTES = 200_000


def write(path: Path, text: str = LOG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def check_picture(path: Path) -> None:
    """A PNG of sane size with something on it."""
    assert path.stat().st_size < MAX_BYTES
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 600 < min(image.size) <= max(image.size) < 1600 or image.width > 2 * image.height
        pixels = np.asarray(image.convert("L"))
    assert pixels[0].min() > 250
    assert 0.002 < (pixels < 200).mean() < 0.6


def test_training_and_validation_values_of_an_epoch_are_merged(tmp_path: Path) -> None:
    found = read_metrics(write(tmp_path / "metrics.csv"))
    assert found[1] == {"train_accuracy": 0.71, "train_loss": 0.82, "val_accuracy": 0.35, "val_loss": 1.34}
    assert column(found, "train_loss") == [(1, 0.82), (2, 0.52), (3, 0.46)]


def test_a_loss_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    assert column(read_metrics(write(tmp_path / "metrics.csv")), "val_loss") == [(1, 1.34), (2, 0.38)]


def test_the_best_epoch_is_the_lowest_loss_or_the_first_of_the_highest_accuracies(tmp_path: Path) -> None:
    found = read_metrics(write(tmp_path / "metrics.csv"))
    assert best_epoch(found, "val_loss") == 2
    assert best_epoch(found, "val_accuracy") == 2
    assert best_epoch(found, "val_f1") is None


def test_a_resumed_run_continues_the_log_of_the_first(tmp_path: Path) -> None:
    write(tmp_path / "log/version_2/metrics.csv")
    write(tmp_path / "log/version_10/metrics.csv", "epoch,step,val_loss\n2,299,0.2\n3,399,0.1\n")
    found = read_history(tmp_path)
    assert column(found, "val_loss") == [(1, 1.34), (2, 0.38), (3, 0.2), (4, 0.1)]
    assert column(found, "train_loss") == [(1, 0.82), (2, 0.52)]


def test_a_run_that_was_started_again_forgets_the_first(tmp_path: Path) -> None:
    write(tmp_path / "log/version_0/metrics.csv")
    write(tmp_path / "log/version_1/metrics.csv", "epoch,step,val_loss\n0,99,0.9\n")
    assert read_history(tmp_path) == {1: {"val_loss": 0.9}}


def test_a_log_without_an_epoch_takes_nothing_away(tmp_path: Path) -> None:
    write(tmp_path / "log/version_0/metrics.csv")
    write(tmp_path / "log/version_1/metrics.csv", "epoch,step,val_loss\n")
    assert len(read_history(tmp_path)) == 3


def test_a_run_without_a_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no metrics\.csv"):
        read_history(tmp_path)


@pytest.mark.parametrize(
    "text", ["step,loss\n1,2\n", "epoch,step,loss\nx,1,2\n", "epoch,step,loss\n0,1,low\n"]
)
def test_a_log_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="is not a log"):
        read_metrics(write(tmp_path / "metrics.csv", text))


def test_curves_are_drawn_also_of_one_epoch_and_without_validation(tmp_path: Path) -> None:
    history = read_metrics(write(tmp_path / "metrics.csv"))
    for name, part in {"all": history, "one": {1: history[1]}, "none": {1: {"train_loss": 0.5}}}.items():
        path = tmp_path / "figures" / f"{name}.png"
        draw_curves(part, path, monitor="val_loss", held_out="held-out photos")
        check_picture(path)


def test_the_confusion_matrix_is_drawn_also_with_a_class_that_is_absent(tmp_path: Path) -> None:
    for name, matrix in {"paper": paper.CONFUSION, "empty": ((0,) * 4, *paper.CONFUSION[1:])}.items():
        draw_confusion(matrix, CLASSES, tmp_path / f"{name}.png")
        check_picture(tmp_path / f"{name}.png")


def test_the_reliability_diagram_shows_the_bins_that_the_calibration_error_is_made_of(tmp_path: Path) -> None:
    labels, probabilities = random_case(n=700)
    found = reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    gaps = np.abs(found.accuracy - found.confidence) * found.counts
    ece = calibration_error(labels, probabilities)
    assert np.nansum(gaps) / 700 == pytest.approx(ece)
    draw_reliability(found, ece, tmp_path / "reliability.png")
    check_picture(tmp_path / "reliability.png")


def test_bins_are_closed_above_and_empty_ones_have_no_mean() -> None:
    found = reliability(np.array([0.5, 0.51, 1.0, 0.0]), np.array([True, False, True, False]), bins=2)
    assert found.counts.tolist() == [2, 2]
    assert found.accuracy.tolist() == [0.5, 0.5]
    empty = reliability(np.array([1.0]), np.array([True]), bins=2)
    assert np.isnan(empty.confidence[0])


def test_equal_figures_are_equal_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_confusion(paper.CONFUSION, CLASSES, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_neither_matplotlib_nor_torch_is_imported_before_it_is_needed() -> None:
    program = "import sys, training.report; print(sorted({'matplotlib', 'torch'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
