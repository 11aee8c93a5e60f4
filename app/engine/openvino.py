"""Run a bundle's int8 graph on the CPU with OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue

import numpy as np
import openvino
from openvino import opset13

from app.engine.bundle import GRAPH, Bundle
from app.engine.interface import Output
from app.errors import BundleError
from app.imaging.framing import Pixels

BATCH = 4  # images that a worker takes from the queue: what passing them on costs is then shared
MOST_STREAMS = 8  # Python can hardly supply more
OUTPUTS = ("logits", "features", "maps")
# f32: what is not int8 stays float32. On processors with AMX the default is bfloat16, for which OpenVINO
# 2026.4 cannot compile an int8 graph of any batch size.
OPTIONS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}

# OpenVINO looks for NumPy at its first use of a type. Two threads that do so at once, as when two models are
# loaded, can wait for each other for ever (2026.4). Here one thread does it, for an import is made by one.
openvino.Type.u8.to_dtype()


class OpenVinoEngine:
    """One stream of threads per call; an exclusive call of several images uses all streams.

    Each image goes through the network alone: at 112 pixels a batch is no faster, an answer cannot depend on
    what else is in a batch, and a single shape takes the least memory and time to prepare.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        core = openvino.Core()
        path, size = bundle.path / GRAPH, bundle.preprocessing.size
        options = OPTIONS | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})
        try:
            streams = min(MOST_STREAMS, suitable_threads(core, options))
            model = core.read_model(path)
            model.reshape([1, size, size, 3])
            compiled = core.compile_model(model, "CPU", options | {"NUM_STREAMS": str(streams)})
        except RuntimeError as error:
            raise BundleError(f"{path} is not a graph that OpenVINO can run: {error}") from error
        self._streams = streams
        self._free: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())
        self.batch = BATCH
        self.workers = streams + 1  # one thread decodes while the streams are busy
        self.device = f"cpu ({core.get_property('CPU', 'FULL_DEVICE_NAME')})"

    def infer(self, pixels: Pixels, *, maps: bool = False, exclusive: bool = True) -> Output:
        images = [pixels[i : i + 1] for i in range(len(pixels))]
        rows: list[list[np.ndarray]] = []
        with self._take(min(len(images), self._streams) if exclusive else 1) as requests:
            for start in range(0, len(images), len(requests)):
                running = _run(requests, images[start : start + len(requests)])
                rows += [
                    [one.get_tensor(name).data.copy() for name in OUTPUTS[: 2 + maps]] for one in running
                ]
        logits, features, *last = map(np.concatenate, zip(*rows, strict=True))
        return Output(logits, features, last[0] if maps else None)

    def warm_up(self, batch: int, size: int) -> None:  # noqa: ARG002 (one shape)
        self.infer(np.zeros((self._streams, size, size, 3), np.uint8))

    @contextmanager
    def _take(self, count: int) -> Iterator[list[openvino.InferRequest]]:
        """Wait for a free request, and take up to `count` if more are free."""
        requests = [self._free.get()]
        try:
            while len(requests) < count:
                requests.append(self._free.get_nowait())
        except Empty:
            pass
        try:
            yield requests
        finally:
            for request in requests:
                self._free.put(request)


def _run(requests: Sequence[openvino.InferRequest], images: Sequence[Pixels]) -> list[openvino.InferRequest]:
    """Run one image on each request at once, and return the requests that had one."""
    running = [request for request, _ in zip(requests, images, strict=False)]
    try:
        for request, image in zip(running, images, strict=True):
            request.start_async([image], share_inputs=True)
    finally:
        for request in running:  # also after an error: a request that runs cannot be used again
            request.wait()
    return running


def suitable_threads(core: openvino.Core, options: dict[str, str]) -> int:
    """Return how many threads OpenVINO uses on this machine; only a compiled model tells."""
    node = opset13.parameter([1], np.float32)
    smallest = openvino.Model([opset13.relu(node)], [node], "smallest")
    return int(core.compile_model(smallest, "CPU", options).get_property("INFERENCE_NUM_THREADS"))
