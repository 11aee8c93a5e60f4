"""Initial weights: ImageNet, a file, or random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import ResNet18_Weights

from app.engine.resnet18 import convolution_of
from training.errors import RecipeError
from training.loading import Batch
from training.network import Network

State = dict[str, Tensor]


def start_from(network: Network, initial: str, images: DataLoader[Batch]) -> list[str]:
    """Load `initial` (imagenet, random, or a .pth, .safetensors or folded .npz file) into the network.

    Return the names of the tensors that keep their random values: the head, and those that the file lacks or
    has in another shape. `images` are used only to unfold the batch norm of a .npz. Raise RecipeError if the
    file does not exist or has no matching weights.
    """
    if initial == "random":
        return sorted(network.trunk.state_dict())
    if initial == "imagenet":
        return load_matching(
            network, ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
        )
    check_initial(initial)
    path = Path(initial)
    if path.suffix == ".npz":
        return load_folded(network, path, images)
    state = (
        load_file(path)
        if path.suffix == ".safetensors"
        else torch.load(path, map_location="cpu", weights_only=True)
    )
    return load_matching(network, state)


def check_initial(initial: str) -> None:
    """Raise RecipeError if these weights do not exist."""
    if initial not in ("imagenet", "random") and not Path(initial).is_file():
        raise RecipeError(f"initial = {initial!r} is neither imagenet, nor random, nor an existing file")


def load_matching(network: Network, state: State) -> list[str]:
    own = network.trunk.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    if not fitting:
        raise RecipeError("the initial weights match no tensor of torchvision's ResNet18")
    network.trunk.load_state_dict(fitting, strict=False)
    return sorted(set(own) - set(fitting))


@torch.no_grad()
def load_folded(network: Network, path: Path, images: DataLoader[Batch]) -> list[str]:
    """Load weights whose batch norm is folded into the convolutions; the function stays the same.

    With m and v the channel mean and variance of a folded convolution's output over `images`, each batch norm
    gets running statistics (m, v), γ = √(v + ε), β = bias + m. Return the names of random tensors.
    """
    with np.load(path, allow_pickle=False) as arrays:
        folded = {key: torch.from_numpy(arrays[key].astype(np.float32)) for key in arrays.files}
    missing = load_matching(network, {key: folded[key] for key in folded if key.endswith(".weight")})
    modules = dict(network.trunk.named_modules())
    pairs: dict[str, tuple[nn.BatchNorm2d, nn.Module, Tensor]] = {}
    for name, norm in modules.items():
        if isinstance(norm, nn.BatchNorm2d) and f"{convolution_of(name)}.weight" in folded:
            pairs[name] = norm, modules[convolution_of(name)], folded[f"{convolution_of(name)}.bias"]
    zero, one = torch.zeros(1), torch.ones(1)
    for norm, _, bias in pairs.values():
        set_norm(norm, zero, one, bias)
    statistics = channel_statistics(network, {name: conv for name, (_, conv, _) in pairs.items()}, images)
    for name, (norm, _, bias) in pairs.items():
        mean, variance = statistics[name]
        set_norm(norm, mean, variance, bias + mean)
    return [key for key in missing if key.rpartition(".")[0] not in pairs]


def set_norm(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, shift: Tensor) -> None:
    """Make the layer compute x − mean + shift, with these running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(shift)


def channel_statistics(
    network: Network, layers: dict[str, nn.Module], images: DataLoader[Batch]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance of each channel of each layer's output over all images."""
    sums: dict[str, Tensor] = {}

    def collect(name: str, output: Tensor) -> None:
        moments = torch.stack([output.mean((0, 2, 3)), output.square().mean((0, 2, 3))]) * len(output)
        sums[name] = sums.get(name, torch.zeros(())) + moments

    hooks = [
        layer.register_forward_hook(lambda _m, _i, output, name=name: collect(name, output))
        for name, layer in layers.items()
    ]
    network.eval()
    total = 0
    for pixels, _, _ in images:
        network(pixels)
        total += len(pixels)
    for hook in hooks:
        hook.remove()
    network.train()
    return {name: (s[0] / total, s[1] / total - (s[0] / total).square()) for name, s in sums.items()}
