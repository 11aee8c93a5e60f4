"""The model that the peers serve: bytes → pixels, and batches of pixels → probabilities."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from app.engine.bundle import load_bundle
from app.engine.classifier import load_engine, softmax
from app.imaging.decode import decode
from app.imaging.framing import Pixels, frame_cell
from app.registry.fetch import locate
from app.settings import Settings

BATCH = 8
WAIT_S = 0.005  # for a batch to fill


class Model:
    """The bundle with the engine in PEER_ENGINE: openvino (int8 graph) or torch (float32)."""

    def __init__(self) -> None:
        self.bundle = load_bundle(locate(Settings.from_environ(os.environ)))
        self._engine = load_engine(self.bundle, os.environ["PEER_ENGINE"], 0)

    def pixels(self, data: bytes) -> Pixels:
        return frame_cell(decode(data), self.bundle.preprocessing).pixels

    def classify(self, pixels: Pixels) -> NDArray[np.float64]:
        """[n, 224, 224, 3] → [n, 4]"""
        return softmax(self._engine.infer(np.ascontiguousarray(pixels)).logits / self.bundle.temperature)

    def answer(self, probabilities: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(self.bundle.labels, probabilities.tolist(), strict=True))
