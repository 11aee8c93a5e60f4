"""Pictures through a bundle as the service would take them: decoded, framed, in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from PIL import Image

from app.engine.classifier import Classifier, Prediction
from app.errors import EngineError
from app.imaging.decode import decode
from app.imaging.framing import Cell, Preprocessing, frame_cell
from training.data import Progress, Row
from training.errors import DataError
from training.findings import beside_the_cell
from training.pictures import Pictures

BATCH = 32  # images, the service's largest unless it is told otherwise
READERS = 4  # threads that decode

Framing = Callable[[Image.Image, Preprocessing], Cell | None]


def classify(
    classifier: Classifier, rows: Sequence[Row], progress: Progress | None, framing: Framing = frame_cell
) -> list[Prediction]:
    """An answer for each row for which `framing` has a cell."""
    pictures = {archive: Pictures(Path(archive)) for archive in {row.archive for row in rows}}
    preprocessing = classifier.bundle.preprocessing
    answers: list[Prediction] = []
    shown = iter(progress(rows, len(rows)) if progress else rows)
    with ThreadPoolExecutor(READERS) as pool:
        while batch := list(islice(shown, BATCH)):
            contents = [pictures[row.archive].read(row.path) for row in batch]
            images = pool.map(read_image, batch, contents)
            cells = pool.map(framing, images, [preprocessing] * len(batch))
            found = [(row, cell) for row, cell in zip(batch, cells, strict=True) if cell]
            if found:
                answers += answer(classifier, *zip(*found, strict=True))
    return answers


def answer(classifier: Classifier, rows: Sequence[Row], cells: Sequence[Cell]) -> list[Prediction]:
    answers: list[Prediction] = []
    for row, found in zip(rows, classifier.classify(cells), strict=True):
        if isinstance(found, EngineError):
            raise EngineError(f"{row.archive}: {row.path}: {found.detail}")
        answers.append(found)
    return answers


def read_image(row: Row, data: bytes) -> Image.Image:
    # the report names the pictures by the manifest's fingerprint, so they must be those pictures
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise DataError(
            f"{row.archive}: {row.path} has changed since the manifest was made; "
            "make that again with `leuko-train data`"
        )
    return decode(data)


def frame_background(image: Image.Image, preprocessing: Preprocessing) -> Cell | None:
    """The picture beside the cell, framed as if it were a picture of its own."""
    window = beside_the_cell(image, frame_cell(image, preprocessing).frame)
    return None if window is None else frame_cell(window, preprocessing)
