"""Run a bundle's network in torch, on CUDA or, without a GPU, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.engine.bundle import Bundle
from app.engine.interface import Output
from app.engine.resnet18 import ResNet18, load_resnet18
from app.imaging.framing import Pixels

WORKERS = 3  # beside a GPU, more in one process add no throughput, on any number of cores
LANES = 2  # on a GPU
SIZES = (1, 2, 4, 8, 16, 32, 64)  # batch sizes on a GPU
# torch captures one CUDA graph at a time per process. During a capture no thread may synchronise the device
# or release memory. torch does both before each capture, and `prepare` after the last: hence one model at a
# time is prepared.
PREPARING = Lock()

Pool = Any  # a CUDA memory pool; torch exports no type for it
Run = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # pixels → logits, features, maps


@dataclass(frozen=True)
class Lane:
    """The resources of one call: a CUDA stream and the network on it."""

    stream: torch.cuda.Stream | None
    run: Run


class TorchEngine:
    """Half precision, channels-last and CUDA graphs on a GPU; float32 on the CPU.

    On a GPU each concurrent call has a lane of its own, so that one copies while another computes.
    """

    name = "torch"

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        cuda = torch.cuda.is_available()
        self.device = f"cuda ({torch.cuda.get_device_name()})" if cuda else "cpu"
        self.batch = SIZES[-1] if cuda else 8
        self.workers = WORKERS if cuda else 2  # one runs the network while the others decode
        if threads or cuda:
            torch.set_num_threads(threads or 1)  # beside a GPU, more threads only copy and busy-wait
        torch.backends.cudnn.benchmark = cuda
        network = load_resnet18(bundle).to(memory_format=torch.channels_last)
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in prepare(network, bundle.preprocessing.size) if cuda else [Lane(None, network)]:
            self._free.put(lane)

    @torch.inference_mode()
    def infer(self, pixels: Pixels, *, maps: bool = False, exclusive: bool = True) -> Output:  # noqa: ARG002
        lane = self._free.get()
        try:
            with torch.cuda.stream(lane.stream):
                # Each output is copied before the next run, which overwrites the graph's input and output.
                outputs = [
                    _read(*lane.run(batch), maps=maps)
                    for batch in torch.split(torch.from_numpy(pixels), self.batch)
                ]
        finally:
            self._free.put(lane)
        return outputs[0] if len(outputs) == 1 else _join(outputs)

    def warm_up(self, batch: int, size: int) -> None:
        for n in range(1, batch + 1):
            self.infer(np.zeros((n, size, size, 3), np.uint8), maps=True)


@torch.inference_mode()
def prepare(network: ResNet18, side: int) -> list[Lane]:
    """Move the network to the GPU and make its lanes, while other models may be answering."""
    device = torch.device("cuda")
    with PREPARING:
        network.to(device).half()
        lanes = [Lane(_stream(), Sized(network, side, device)) for _ in range(LANES)]
        torch.cuda.empty_cache()  # workspace of cuDNN's benchmark
    return lanes


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _read(logits: Tensor, features: Tensor, last: Tensor, *, maps: bool) -> Output:
    return Output(
        logits.float().cpu().numpy(),
        features.float().cpu().numpy(),
        last.float().cpu().numpy() if maps else None,
    )


def _join(outputs: Sequence[Output]) -> Output:
    maps = [output.maps for output in outputs if output.maps is not None]
    return Output(
        np.concatenate([output.logits for output in outputs]),
        np.concatenate([output.features for output in outputs]),
        np.concatenate(maps) if maps else None,
    )


class Sized:
    """Run n images as a batch of the smallest sufficient size in `SIZES`, all prepared in advance.

    One call at a time: the graphs share memory.
    """

    def __init__(self, network: Run, side: int, device: torch.device) -> None:
        # Graphs that never run at the same time can share memory.
        pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._batches = {n: Fixed(network, side, device, n, pool) for n in SIZES}

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._batches[next(size for size in SIZES if size >= len(pixels))](pixels)


class Fixed:
    """A batch of n images in memory that never moves, as a CUDA graph needs it; on the CPU, without a graph.

    With fewer than n images, the remaining places keep their old content, and their outputs are dropped.
    The next call overwrites the returned tensors.
    """

    def __init__(self, network: Run, side: int, device: torch.device, n: int, pool: Pool = None) -> None:
        cuda = device.type == "cuda"
        self._staging = torch.zeros((n, side, side, 3), dtype=torch.uint8, pin_memory=cuda)
        self._pixels = self._staging.to(device, copy=True)
        self._replay = _capture(network, self._pixels, pool) if cuda else partial(network, self._pixels)

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = len(pixels)
        self._staging[:n] = pixels
        self._pixels[:n].copy_(self._staging[:n], non_blocking=True)
        logits, features, maps = self._replay()
        return logits[:n], features[:n], maps[:n]


def _capture(network: Run, pixels: Tensor, pool: Pool) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Capture the network on `pixels` as a CUDA graph; return a function that replays it.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """
    stream = _stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(pixels)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # In the mode "global", any copy, allocation or synchronisation in another thread would fail and would
    # invalidate the capture.
    with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
        outputs = network(pixels)

    def replay() -> tuple[Tensor, Tensor, Tensor]:
        graph.replay()
        return outputs

    return replay
