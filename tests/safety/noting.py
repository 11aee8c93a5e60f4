"""`leuko serve` with an engine that notes the greys of its images, in order, and that an image can hold.

Its decoders are those of `halting_decoder`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from app.engine.classifier import Classifier, Prediction
from app.errors import EngineError
from app.imaging.framing import Cell
from app.settings import Settings
from tests.safety import faulty
from tests.safety.faulty import FaultyClassifier
from tests.safety.halting_decoder import FOLDER

NOTING = "import tests.safety.noting as noting; noting.serve()"
ORDER = "order"  # a file in FOLDER: one line of greys for each batch


class NotingClassifier(FaultyClassifier):
    def classify(self, cells: Sequence[Cell], *, exclusive: bool = True) -> list[Prediction | EngineError]:
        greys = " ".join(str(int(np.median(cell.pixels))) for cell in cells)
        with (Path(os.environ[FOLDER]) / ORDER).open("a") as file:
            file.write(greys + "\n")
        return super().classify(cells, exclusive=exclusive)


def batches(folder: Path) -> list[list[int]]:
    return [[*map(int, line.split())] for line in (folder / ORDER).read_text().splitlines()]


def load(_: Settings) -> Classifier:
    return cast(Classifier, NotingClassifier())


def serve() -> None:
    faulty.serve(load)
