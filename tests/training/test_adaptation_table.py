"""`python -m benchmarks.adaptation`, on drawn cells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app.engine.bundle import Bundle
from benchmarks import adaptation
from benchmarks.adaptation import Result, main, split, table
from tests.training.test_adapted import bundle as bundle  # a fixture
from tests.training.test_adapted import pictures
from tests.training.test_adapted import quick as quick  # a fixture
from training import adapt
from training.adapt import OwnCells, Start, Trial


def archive(folder: Path) -> Path:
    for path, image in pictures(12):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(image)
    return folder


def result(laboratory: str = "a", cells: int = 5, draw: int = 0, after: float = 0.8) -> Result:
    return Result(0.6, after, True, 0.05, 0.9, 0.97, "key", laboratory, cells, draw, 60.0)


def test_each_draw_is_measured_once_and_continued_by_the_same_command(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def cross_validate(starts: list[Start], given: OwnCells) -> Trial:
        measured.append(len(given))
        return adapt.cross_validate(starts, given)

    monkeypatch.setattr(adaptation, "cross_validate", cross_validate)
    out = tmp_path / "results.jsonl"
    command = ["--bundle", str(bundle.path), f"here={archive(tmp_path / 'cells')}", "--out", str(out)]
    assert main([*command, "--cells", "5", "--draws", "1"]) == 0
    assert main([*command, "--cells", "6", "5", "--draws", "1"]) == 0
    assert measured == [20, 24]  # of four classes
    shown = capsys.readouterr().out
    assert "| here | 6 |" in shown
    assert "| all | 5 |" in shown
    results = [Result(**json.loads(line)) for line in out.read_text().splitlines()]
    assert [(one.laboratory, one.cells, one.draw) for one in results] == [("here", 5, 0), ("here", 6, 0)]
    assert all(one.before == 0.25 for one in results)  # always the first class


def test_too_few_cells_to_judge_on_are_said(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = archive(tmp_path / "cells")
    out = tmp_path / "results.jsonl"
    assert (
        main(["--bundle", str(bundle.path), str(cells), "--cells", "10", "--draws", "1", "--out", str(out)])
        == 0
    )
    assert "too few cells are left to judge 10 of each class" in capsys.readouterr().out
    assert not out.exists()


def test_drawn_cells_are_not_judged_on_and_draws_differ() -> None:
    labels = np.repeat(np.arange(4), 30)
    given, rest = split(labels, 5, 0, 10)
    assert not set(given) & set(rest)
    assert np.bincount(labels[given]).tolist() == [5] * 4
    assert np.bincount(labels[rest]).tolist() == [10] * 4
    assert set(given) != set(split(labels, 5, 1, 10)[0])
    assert split(labels, 5, 0, 10) == (given, rest)


def test_the_table_has_means_and_the_worst_fall() -> None:
    results = [result(), result("b", after=0.7), result("b", draw=1, after=0.9)]
    lines = table(results).splitlines()
    assert lines[3].startswith("| b | 5 | 0.600 | 0.800 | +0.200 | 0.050 | 2 of 2 | 0.90 | 0.970 |")
    assert lines[4].startswith("| all | 5 | 0.600 | 0.800 |")
