"""LitServe: decode, batch, predict, unbatch, encode. `python -m benchmarks.peers.with_litserve PORT`."""

import sys

import litserve
import numpy as np

from app.engine.interface import Floats
from app.imaging.framing import Pixels
from benchmarks.peers.model import BATCH, WAIT_S, Model


class Cells(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002
        self.model = Model()

    def decode_request(self, request) -> Pixels:
        return self.model.pixels(request["files"].file.read())

    def batch(self, inputs: list[Pixels]) -> Pixels:
        return np.stack(inputs)

    def predict(self, x: Pixels) -> Floats:
        return self.model.classify(x)

    def unbatch(self, output: Floats) -> list[Floats]:
        return list(output)

    def encode_response(self, output: Floats) -> dict[str, float]:
        return self.model.answer(output)


if __name__ == "__main__":
    api = Cells(max_batch_size=BATCH, batch_timeout=WAIT_S)
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
