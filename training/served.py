"""Classification of manifest rows as in the service: decoded, framed, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from PIL import Image

from app.engine.classifier import Classifier, Prediction
from app.errors import EngineError
from app.imaging.framing import Cell, Preprocessing, frame_cell
from training.data import Progress, Row
from training.findings import beside_the_cell
from training.images import ImageArchive
from training.verified import read_image

BATCH = 32  # images; the service's default
READERS = 4  # threads that decode

Framing = Callable[[Image.Image, Preprocessing], Cell | None]


def classify(
    classifier: Classifier, rows: Sequence[Row], progress: Progress | None, framing: Framing = frame_cell
) -> list[Prediction]:
    """Return an answer for each row, except those for which `framing` returns None."""
    archives = {archive: ImageArchive(Path(archive)) for archive in {row.archive for row in rows}}
    preprocessing = classifier.bundle.preprocessing
    answers: list[Prediction] = []
    remaining = iter(progress(rows, len(rows)) if progress else rows)
    with ThreadPoolExecutor(READERS) as pool:
        while batch := list(islice(remaining, BATCH)):
            contents = [archives[row.archive].read(row.path) for row in batch]
            images = pool.map(read_image, batch, contents)
            cells = pool.map(framing, images, [preprocessing] * len(batch))
            framed = [(row, cell) for row, cell in zip(batch, cells, strict=True) if cell]
            if framed:
                answers += answer(classifier, *zip(*framed, strict=True))
    return answers


def answer(classifier: Classifier, rows: Sequence[Row], cells: Sequence[Cell]) -> list[Prediction]:
    """Classify the cells; raise EngineError that names the image if one fails."""
    answers: list[Prediction] = []
    for row, result in zip(rows, classifier.classify(cells), strict=True):
        if isinstance(result, EngineError):
            raise EngineError(f"{row.archive}: {row.path}: {result.detail}")
        answers.append(result)
    return answers


def frame_background(image: Image.Image, preprocessing: Preprocessing) -> Cell | None:
    """Frame the part of the image beside the cell as an image of its own; None if there is no room."""
    window = beside_the_cell(image, frame_cell(image, preprocessing).frame)
    return None if window is None else frame_cell(window, preprocessing)
