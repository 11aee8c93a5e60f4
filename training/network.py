"""The network in training: torchvision's ResNet18, from pixels to logits."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet18

from app.engine.bundle import WEIGHTS, Bundle
from app.engine.resnet18 import channels
from app.imaging.framing import Preprocessing


class Network(nn.Module):
    """ResNet18 (He et al. 2016) with normalisation as its first layer.

    RGB uint8 [n, h, w, 3] → logits [n, classes], features [n, 512], maps [n, 512, h/32, w/32].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.trunk = resnet18(num_classes=classes)
        self.register_buffer("mean", channels(preprocessing.mean), persistent=False)
        self.register_buffer("std", channels(preprocessing.std), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        trunk = self.trunk
        x = pixels.permute(0, 3, 1, 2).to(self.mean.dtype)
        x = (x - self.mean) / self.std
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(x))))
        maps = trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(x))))
        features = maps.mean(dim=(2, 3))
        return trunk.fc(features), features, maps


def reset_statistics(network: Network) -> None:
    """Forget the batch statistics; those of the batches that follow in training mode have equal weights."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over the batches


def round_to_half(network: Network) -> None:
    """Round every weight to half precision, so that all stored forms have equal values."""
    with torch.no_grad():
        for tensor in network.trunk.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())


def load_network(bundle: Bundle) -> Network:
    """Return the bundle's network in evaluation mode and float32, whatever precision it is stored in."""
    network = Network(len(bundle.labels), bundle.preprocessing)
    network.trunk.load_state_dict(load_file(bundle.path / WEIGHTS))
    return network.eval()
