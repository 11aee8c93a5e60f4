"""Run a bundle's int8 graph on the CPU with OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Condition

import numpy as np
import openvino

from app.engine.bundle import GRAPH, Bundle
from app.engine.interface import Output
from app.errors import BundleError
from app.imaging.framing import Pixels

BATCH = 4  # within 3 % of the throughput of 32; every batch size takes memory
MOST_STREAMS = 8  # Python can hardly supply more
OUTPUTS = ("logits", "features", "maps")


class OpenVinoEngine:
    """An exclusive call uses all threads; concurrent calls get one stream of threads each.

    A call on all threads ends with the slowest of them, so decoding beside it would delay every core.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        self._core = openvino.Core()
        path = bundle.path / GRAPH
        try:
            model = self._core.read_model(path)
            single = self._compile(model, 1, threads)
            streams = min(MOST_STREAMS, int(single.get_property("INFERENCE_NUM_THREADS")))
            self._streams = _Requests(self._compile(model, streams, threads), streams)
        except RuntimeError as error:
            raise BundleError(f"{path} is not a graph that OpenVINO can run: {error}") from error
        self._all_threads = _Requests(single, 1)
        self._changed = Condition()
        self._calls = 0
        self._exclusive = False
        self.batch = BATCH
        self.workers = streams + 1  # one thread decodes while the streams are busy
        self.device = f"cpu ({self._core.get_property('CPU', 'FULL_DEVICE_NAME')})"

    def infer(self, pixels: Pixels, *, maps: bool = False, exclusive: bool = True) -> Output:
        with self._turn(exclusive) as requests, requests.take() as request:
            request.infer([pixels], share_inputs=True, share_outputs=True)
            logits, features, last = (request.get_tensor(name).data for name in OUTPUTS)
            return Output(logits.copy(), features.copy(), last.copy() if maps else None)

    def warm_up(self, batch: int, size: int) -> None:
        self._all_threads.run(np.zeros((1, size, size, 3), np.uint8))
        for n in range(1, batch + 1):
            self._streams.run(np.zeros((n, size, size, 3), np.uint8))

    def _compile(self, model: openvino.Model, streams: int, threads: int) -> openvino.CompiledModel:
        # f32: what is not int8 stays float32. On processors with AMX the default is bfloat16, for which
        # OpenVINO 2026.4 cannot compile an int8 graph of any batch size.
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": str(streams),
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        return self._core.compile_model(model, "CPU", options)

    @contextmanager
    def _turn(self, exclusive: bool) -> Iterator[_Requests]:
        """Wait for an exclusive call to end; be exclusive only if no other call is running."""
        with self._changed:
            self._changed.wait_for(lambda: not self._exclusive)
            exclusive = self._exclusive = exclusive and not self._calls
            self._calls += 1
        try:
            yield self._all_threads if exclusive else self._streams
        finally:
            with self._changed:
                self._calls -= 1
                if exclusive:
                    self._exclusive = False
                    self._changed.notify_all()


class _Requests:
    """A pool with one inference request per stream; callers wait for a free one."""

    def __init__(self, compiled: openvino.CompiledModel, count: int) -> None:
        self._count = count
        self._free: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(count):
            self._free.put(compiled.create_infer_request())

    @contextmanager
    def take(self) -> Iterator[openvino.InferRequest]:
        request = self._free.get()
        try:
            yield request
        finally:
            self._free.put(request)

    def run(self, pixels: Pixels) -> None:
        """Run the pixels on every stream at once."""

        def infer(_: int) -> None:
            with self.take() as request:
                request.infer([pixels], share_inputs=True)

        with ThreadPoolExecutor(self._count) as pool:
            list(pool.map(infer, range(self._count)))
