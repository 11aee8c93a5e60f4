from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.engine.bundle import CLASSES
from app.evaluation.scores import calibration_error
from tests import paper
from tests.evaluation.cases import random_case
from training.figures import draw_confusion, draw_curves, draw_reliability, draw_risk, reliability

MAX_BYTES = 200_000


def check_image(path: Path) -> None:
    """Check that the file is a PNG of sensible size that is not empty."""
    assert path.stat().st_size < MAX_BYTES
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 600 < min(image.size) <= max(image.size) < 1600 or image.width > 2 * image.height
        pixels = np.asarray(image.convert("L"))
    assert pixels[0].min() > 250
    assert 0.002 < (pixels < 200).mean() < 0.6


def test_curves_are_drawn_also_of_one_epoch_and_without_validation(tmp_path: Path) -> None:
    history = {1: {"train_loss": 0.8, "val_loss": 1.3}, 2: {"train_loss": 0.5, "val_loss": 0.4}}
    for name, epochs in {"all": history, "one": {1: history[1]}, "none": {1: {"train_loss": 0.5}}}.items():
        path = tmp_path / "figures" / f"{name}.png"
        draw_curves(epochs, path, monitor="val_loss", held_out="held-out photos")
        check_image(path)


def test_the_confusion_matrix_is_drawn_also_with_a_class_that_is_absent(tmp_path: Path) -> None:
    for name, matrix in {"paper": paper.CONFUSION, "empty": ((0,) * 4, *paper.CONFUSION[1:])}.items():
        draw_confusion(matrix, CLASSES, tmp_path / f"{name}.png")
        check_image(tmp_path / f"{name}.png")


def test_the_reliability_diagram_shows_the_bins_that_the_calibration_error_is_made_of(tmp_path: Path) -> None:
    labels, probabilities = random_case(n=700)
    bins = reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    gaps = np.abs(bins.accuracy - bins.confidence) * bins.counts
    ece = calibration_error(labels, probabilities)
    assert np.nansum(gaps) / 700 == pytest.approx(ece)
    draw_reliability(bins, ece, tmp_path / "reliability.png")
    check_image(tmp_path / "reliability.png")


def test_bins_are_closed_above_and_empty_ones_have_no_mean() -> None:
    halves = reliability(np.array([0.5, 0.51, 1.0, 0.0]), np.array([True, False, True, False]), bins=2)
    assert halves.counts.tolist() == [2, 2]
    assert halves.accuracy.tolist() == [0.5, 0.5]
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


def test_the_risk_by_coverage_is_drawn_also_where_nothing_is_wrong(tmp_path: Path) -> None:
    coverage = np.arange(1, 21) / 20
    for name, risk in {"some": coverage**2 / 10, "none": np.zeros(20)}.items():
        draw_risk(coverage, risk, float(risk.mean()), tmp_path / f"{name}.png")
        check_image(tmp_path / f"{name}.png")
