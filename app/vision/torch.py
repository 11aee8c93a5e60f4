"""The network in torch, and the engine that runs it on CUDA or, without a GPU, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet18

from app.errors import BundleError
from app.vision.bundle import Bundle
from app.vision.engine import Output, Pixels
from app.vision.framing import Preprocessing

MOST_WORKERS = 16  # Python feeds hardly more
SIZES = (1, 2, 4, 8, 16, 32, 64)  # of batches on a GPU

Run = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # pixels → logits, features, maps


class Network(nn.Module):
    """ResNet18 (He et al. 2016) from pixels: normalisation is its first layer.

    RGB uint8 [n, h, w, 3] → logits [n, classes], features [n, 512], maps [n, 512, h/32, w/32].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.trunk = resnet18(num_classes=classes)
        self.register_buffer("mean", _channels(preprocessing.mean), persistent=False)
        self.register_buffer("std", _channels(preprocessing.std), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        trunk = self.trunk
        x = pixels.permute(0, 3, 1, 2).to(self.mean.dtype)
        x = (x - self.mean) / self.std
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(x))))
        maps = trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(x))))
        features = maps.mean(dim=(2, 3))
        return trunk.fc(features), features, maps


def _channels(values: Sequence[float]) -> Tensor:
    """[3] in 0 to 1 → [3, 1, 1] in 0 to 255."""
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1) * 255


def load_network(bundle: Bundle) -> Network:
    """The bundle's network in evaluation mode, float32, whatever precision it is stored in."""
    network = Network(len(bundle.labels), bundle.preprocessing)
    load_weights(network, bundle.path / "model.safetensors")
    return network.eval()


def load_weights(network: Network, path: Path) -> None:
    """path: a safetensors file of torchvision's ResNet18 state."""
    try:
        network.trunk.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{path.name} does not hold a ResNet18 for these classes: {error}") from error


class TorchEngine:
    """Half precision, channels-last and CUDA graphs on a GPU; float32 on the CPU."""

    name = "torch"

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        cuda = torch.cuda.is_available()
        self.device = f"cuda ({torch.cuda.get_device_name()})" if cuda else "cpu"
        self.batch = SIZES[-1] if cuda else 8
        # While one of them runs the network, the others decode.
        self.workers = min(MOST_WORKERS, os.cpu_count() or 1) if cuda else 2
        self._lock = Lock()
        if threads:
            torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = cuda
        device = torch.device("cuda" if cuda else "cpu")
        network = load_network(bundle).to(device).to(memory_format=torch.channels_last)
        self._network: Run = Sized(network.half(), bundle.preprocessing.size, device) if cuda else network

    @torch.inference_mode()
    def infer(self, pixels: Pixels, *, maps: bool = False, alone: bool = True) -> Output:  # noqa: ARG002
        with self._lock:
            logits, features, last = self._network(torch.from_numpy(pixels))
            return Output(
                logits.float().cpu().numpy(),
                features.float().cpu().numpy(),
                last.float().cpu().numpy() if maps else None,
            )

    def warm_up(self, batch: int, size: int) -> None:
        for n in range(1, batch + 1):
            self.infer(np.zeros((n, size, size, 3), np.uint8), maps=True)


class Sized:
    """Runs n images as the next of `SIZES`, each prepared at its first use; more than the last in turns."""

    def __init__(self, network: Run, side: int, device: torch.device) -> None:
        self._prepare = partial(Fixed, network, side, device)
        self._runs: dict[int, Fixed] = {}

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Copied on the device, for the next turn overwrites what a graph has put out.
        turns = [tuple(map(torch.clone, self._run(turn))) for turn in torch.split(pixels, SIZES[-1])]
        logits, features, maps = (torch.cat(parts) for parts in zip(*turns, strict=True))
        return logits, features, maps

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = next(size for size in SIZES if size >= len(pixels))
        if size not in self._runs:
            self._runs[size] = self._prepare(size)
        return self._runs[size](pixels)


class Fixed:
    """A batch whose memory never moves, as a CUDA graph needs it; on the CPU the network simply runs.

    Fewer than n images leave the last places as they were, and their outputs out.
    """

    def __init__(self, network: Run, side: int, device: torch.device, n: int) -> None:
        cuda = device.type == "cuda"
        self._staging = torch.zeros((n, side, side, 3), dtype=torch.uint8, pin_memory=cuda)
        self._pixels = self._staging.to(device, copy=True)
        self._replay = _capture(network, self._pixels) if cuda else partial(network, self._pixels)

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = len(pixels)
        self._staging[:n] = pixels
        self._pixels[:n].copy_(self._staging[:n], non_blocking=True)
        logits, features, maps = self._replay()
        return logits[:n], features[:n], maps[:n]


def _capture(network: Run, pixels: Tensor) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs"""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(pixels)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = network(pixels)

    def replay() -> tuple[Tensor, Tensor, Tensor]:
        graph.replay()
        return outputs

    return replay
