"""BentoML with a batchable endpoint. `bentoml serve benchmarks.peers.with_bentoml:Cells --port PORT`."""

from pathlib import Path

import bentoml
import numpy as np

from benchmarks.peers.model import BATCH, Model


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Cells:
    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=10_000, route="/predict")
    def predict(self, files: list[Path]) -> list[dict[str, float]]:
        pixels = np.stack([self.model.pixels(file.read_bytes()) for file in files])
        return [self.model.answer(row) for row in self.model.classify(pixels)]
