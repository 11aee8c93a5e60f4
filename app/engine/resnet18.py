"""ResNet18 for inference: each batch normalisation is folded into the convolution before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from app.engine.bundle import WEIGHTS, Bundle
from app.errors import BundleError
from app.imaging.framing import Preprocessing

EPSILON = 1e-5  # torchvision's, in every batch normalisation


class ResNet18(nn.Module):
    """The network of He et al. 2016, on unnormalised pixels; modules are named as in torchvision.

    RGB uint8 [n, h, w, 3] → logits [n, classes], features [n, 512], maps [n, 512, h/32, w/32].
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, classes: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = (channels(values) for values in (preprocessing.mean, preprocessing.std))
        # Not folded into the first convolution: its zero padding applies to normalised pixels.
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.conv1 = Convolution(3, 64, side=7, stride=2)
        self.layer1 = nn.Sequential(Block(64, 64), Block(64, 64))
        self.layer2 = nn.Sequential(Block(64, 128), Block(128, 128))
        self.layer3 = nn.Sequential(Block(128, 256), Block(256, 256))
        self.layer4 = nn.Sequential(Block(256, 512), Block(512, 512))
        self.fc = nn.Linear(512, classes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = pixels.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift
        x = max_pool2d(self.conv1.relu(x), 3, stride=2, padding=1)
        maps = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features = maps.mean(dim=(2, 3))
        return self.fc(features), features, maps


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.conv1 = Convolution(inputs, outputs, stride=stride)
        self.conv2 = Convolution(outputs, outputs)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample.append(Convolution(inputs, outputs, side=1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2.relu(self.conv1.relu(x), self.downsample(x))


class Convolution(nn.Conv2d):
    """A convolution with a bias, in place of torchvision's batch normalisation."""

    def __init__(self, inputs: int, outputs: int, side: int = 3, stride: int = 1) -> None:
        super().__init__(inputs, outputs, side, stride, padding=side // 2)
        # Stride, padding, dilation and groups, in the order of cuDNN's functions.
        self._geometry = ((stride, stride), (side // 2, side // 2), (1, 1), 1)

    def relu(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return ReLU(convolution + shortcut), the shortcut optional; on a GPU in one kernel."""
        if not x.is_cuda:
            return relu(self(x) if shortcut is None else self(x) + shortcut)
        if shortcut is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, *self._geometry)
        return torch.cudnn_convolution_add_relu(x, self.weight, shortcut, 1.0, self.bias, *self._geometry)


def load_resnet18(bundle: Bundle) -> ResNet18:
    """Load the bundle's network in float32, whatever the stored precision. Raises BundleError."""
    network = ResNet18(len(bundle.labels), bundle.preprocessing)
    try:
        network.load_state_dict(fold(load_file(bundle.path / WEIGHTS)))
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{WEIGHTS} does not hold a ResNet18 for these classes: {error}") from error
    return network.eval()


def fold(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold each batch normalisation of torchvision's ResNet into the convolution before it."""
    state = {key: value.float() for key, value in state.items() if not key.endswith("num_batches_tracked")}
    for norm in [key.removesuffix(".running_mean") for key in state if key.endswith(".running_mean")]:
        conv = convolution_of(norm)
        gain = state.pop(f"{norm}.weight") / torch.sqrt(state.pop(f"{norm}.running_var") + EPSILON)
        state[f"{conv}.weight"] = state[f"{conv}.weight"] * gain.view(-1, 1, 1, 1)
        state[f"{conv}.bias"] = state.pop(f"{norm}.bias") - state.pop(f"{norm}.running_mean") * gain
    return state


def convolution_of(norm: str) -> str:
    """Return the name of the convolution before a batch normalisation in torchvision's ResNet."""
    return norm.replace("downsample.1", "downsample.0").replace("bn", "conv")


def channels(values: Sequence[float]) -> Tensor:
    """[3], of pixels in 0 to 1 → [3, 1, 1], of pixels in 0 to 255."""
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1) * 255
