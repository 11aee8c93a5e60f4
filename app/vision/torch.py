"""The network in torch, and the engine that runs it on CUDA or, without a GPU, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
    """Half precision and channels-last on CUDA; float32 on the CPU."""

    name = "torch"

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        cuda = torch.cuda.is_available()
        self.device = f"cuda ({torch.cuda.get_device_name()})" if cuda else "cpu"
        self._device = torch.device("cuda" if cuda else "cpu")
        self.batch = 64 if cuda else 8
        self.workers = min(MOST_WORKERS, os.cpu_count() or 1) if cuda else 2
        self._lock = Lock()
        if threads:
            torch.set_num_threads(threads)
        network = load_network(bundle).to(self._device).to(memory_format=torch.channels_last)
        self._network = network.half() if cuda else network

    @torch.inference_mode()
    def infer(self, pixels: Pixels, *, maps: bool = False, alone: bool = True) -> Output:  # noqa: ARG002
        with self._lock:
            batch = torch.from_numpy(pixels).to(self._device, non_blocking=True)
            logits, features, last = self._network(batch)
            return Output(
                logits.float().cpu().numpy(),
                features.float().cpu().numpy(),
                last.float().cpu().numpy() if maps else None,
            )

    def warm_up(self, batch: int, size: int) -> None:
        for n in range(1, batch + 1):
            self.infer(np.zeros((n, size, size, 3), np.uint8), maps=True)
