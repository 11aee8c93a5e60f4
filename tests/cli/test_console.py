from __future__ import annotations

import io

from rich.console import Console

from app.archives.images import StoredImage
from app.cli.console import MOST_LINES, failures, predictions_table, track
from app.engine.bundle import CLASSES
from app.engine.classifier import Prediction
from app.errors import UndecodableImage
from app.imaging.framing import Frame
from app.inference.offline import Outcome
from app.inference.pipeline import Answer


def outcomes(count: int) -> list[Outcome]:
    return [
        Outcome(StoredImage(f"{number}.png", bytes), UndecodableImage("broken")) for number in range(count)
    ]


def test_progress_passes_outcomes_on_and_shows_them_counted_on_a_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    given = outcomes(7)
    assert list(track(given, 7, console)) == given
    assert "7/7" in file.getvalue()


def test_progress_is_silent_elsewhere() -> None:
    file = io.StringIO()
    given = outcomes(7)
    assert list(track(given, 7, Console(file=file))) == given
    assert file.getvalue() == ""


def test_a_table_of_predictions_keeps_names_and_numbers_whole_in_eighty_columns() -> None:
    prediction = Prediction("neutrophil", 0.9, (0.02, 0.03, 0.05, 0.9), 2.5, ("out_of_distribution",))
    answer = Answer("0" * 64, Frame(0, 0, 1, 1, nucleus=True), prediction)
    file = io.StringIO()
    shown = predictions_table([Outcome(StoredImage("cell17.png", bytes), answer)], CLASSES)
    Console(file=file, width=80).print(shown)
    for text in ("cell17.png", "neutrophil", "0.020", "0.900", "2.50", "distribution"):
        assert text in file.getvalue()


def test_images_that_failed_are_named_up_to_a_limit_and_counted() -> None:
    lines = [text.plain for text in failures(outcomes(MOST_LINES + 5))]
    assert lines[0] == "0.png: broken"
    assert len(lines) == MOST_LINES + 1
    assert lines[-1] == f"{MOST_LINES + 5} of {MOST_LINES + 5} images could not be classified"
    assert list(failures([])) == []
