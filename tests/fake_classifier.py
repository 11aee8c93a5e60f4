"""A classifier that needs no bundle, and pictures that it knows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from app.engine.bundle import CLASSES, Bundle
from app.engine.classifier import Classifier, Prediction
from app.errors import BundleError, EngineError
from app.imaging.framing import Cell, Preprocessing
from app.settings import Settings

NAN = 255  # the grey that FakeClassifier chokes on


@dataclass(frozen=True)
class FakeEngine:
    name: str = "fake"
    device: str = "abacus"
    batch: int = 32
    workers: int = 1


class FakeClassifier:
    """Knows cells by their grey: 0 to 63 is the first class, 64 to 127 the second, and so on."""

    scores_of_others = None

    def __init__(self) -> None:
        preprocessing = Preprocessing(framing="whole", white_point=False)
        self.bundle = Bundle(
            Path("fake"), "f" * 64, "fake", "1.2", CLASSES, preprocessing, 1, 0.5, 3, (0.25,) * 4, {}, {}, {}
        )
        self.engine = FakeEngine()
        self.warmed: list[int] = []
        self.exclusive: list[bool] = []

    def warm_up(self, max_batch: int) -> None:
        self.warmed.append(max_batch)

    def check(self) -> None:
        pass

    def classify(self, cells: Sequence[Cell], *, exclusive: bool = True) -> list[Prediction | EngineError]:
        self.exclusive.append(exclusive)
        return [self._predict(int(np.median(cell.pixels))) for cell in cells]

    def _predict(self, grey: int) -> Prediction | EngineError:
        if grey == NAN:
            return EngineError("not finite")
        best = grey // 64
        probabilities = tuple(0.7 if index == best else 0.1 for index in range(4))
        return Prediction(CLASSES[best], 0.7, probabilities, 1.5, ("out_of_distribution",))


def load(settings: Settings) -> Classifier:
    if settings.bundle == "broken":
        raise BundleError("model.safetensors was changed")
    return cast(Classifier, FakeClassifier())


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()
