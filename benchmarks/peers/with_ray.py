"""Ray Serve with FastAPI and a deployment that batches. `python -m benchmarks.peers.with_ray PORT`."""

import signal
import sys

import numpy as np
import ray
from fastapi import FastAPI, UploadFile
from ray import serve

from benchmarks.peers.model import BATCH, WAIT_S, Model

app = FastAPI()


@serve.deployment(max_ongoing_requests=256, logging_config={"enable_access_log": False})
@serve.ingress(app)
class Cells:
    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
    async def classify(self, images: list[bytes]) -> list[dict[str, float]]:
        pixels = np.stack([self.model.pixels(image) for image in images])
        return [self.model.answer(row) for row in self.model.classify(pixels)]

    @app.post("/predict")
    async def predict(self, files: UploadFile) -> dict[str, float]:
        answer: dict[str, float] = await self.classify(await files.read())
        return answer


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Cells.bind())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
