from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from app.engine.resnet18 import fold
from app.imaging.framing import Preprocessing
from training.errors import RecipeError
from training.initial import start_from
from training.loading import Batch
from training.network import Network


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(4, Preprocessing()).eval()


def images() -> DataLoader[Batch]:
    torch.manual_seed(1)
    items = [
        (torch.randint(0, 255, (224, 224, 3), dtype=torch.uint8), torch.tensor(0), torch.tensor(1.0))
        for _ in range(4)
    ]
    return DataLoader(items, batch_size=2)  # type: ignore[arg-type]


def test_a_file_of_imagenet_weights_fills_everything_but_the_head(tmp_path: Path) -> None:
    torch.manual_seed(5)
    imagenet = resnet18(num_classes=1000).state_dict()
    torch.save(imagenet, tmp_path / "resnet18.pth")
    fresh = network()
    assert start_from(fresh, str(tmp_path / "resnet18.pth"), images()) == ["fc.bias", "fc.weight"]
    assert torch.equal(fresh.trunk.layer4[1].conv2.weight, imagenet["layer4.1.conv2.weight"])


def test_a_bundles_own_weights_fill_everything(tmp_path: Path) -> None:
    save_file(network(7).trunk.state_dict(), tmp_path / "model.safetensors")
    fresh = network()
    assert start_from(fresh, str(tmp_path / "model.safetensors"), images()) == []
    assert torch.equal(fresh.trunk.fc.weight, network(7).trunk.fc.weight)


def folded(network: Network) -> dict[str, np.ndarray]:
    """Fold each batch norm into the convolution before it, as in the file of ImageNet weights."""
    arrays = {key: value.numpy() for key, value in fold(network.trunk.state_dict()).items()}
    del arrays["fc.bias"]
    return {**arrays, "fc.weight": np.zeros((1000, 512), np.float32)}


def test_unfolding_batch_norm_keeps_the_function(tmp_path: Path) -> None:
    original = network(3)
    with torch.no_grad():
        for module in original.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.uniform_(-0.5, 0.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    np.savez(tmp_path / "trunk.npz", allow_pickle=False, **folded(original))
    fresh = network()
    left = start_from(fresh, str(tmp_path / "trunk.npz"), images())
    assert left == ["fc.bias", "fc.weight"]
    pixels = next(iter(images()))[0]
    expected, features = original(pixels)[1], fresh.eval()(pixels)[1]
    assert torch.allclose(features, expected, rtol=1e-3, atol=1e-3)


def test_a_trunk_without_some_convolutions_leaves_them_random_and_says_so(tmp_path: Path) -> None:
    arrays = {key: value for key, value in folded(network(3)).items() if key != "layer4.1.conv2.weight"}
    np.savez(tmp_path / "trunk.npz", allow_pickle=False, **arrays)
    left = start_from(network(), str(tmp_path / "trunk.npz"), images())
    assert "layer4.1.conv2.weight" in left
    assert "layer4.1.bn2.weight" in left
    assert "layer4.1.conv1.weight" not in left


def test_unfolding_leaves_the_network_ready_to_train(tmp_path: Path) -> None:
    np.savez(tmp_path / "trunk.npz", allow_pickle=False, **folded(network(3)))
    fresh = network()
    start_from(fresh, str(tmp_path / "trunk.npz"), images())
    assert all(module.training for module in fresh.modules())


def test_a_random_start_names_every_tensor() -> None:
    assert len(start_from(network(), "random", images())) == len(network().trunk.state_dict())


def test_a_start_that_is_nowhere_is_refused() -> None:
    with pytest.raises(RecipeError, match="neither imagenet, nor random, nor an existing file"):
        start_from(network(), "nowhere.pth", images())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(RecipeError, match="match no tensor"):
        start_from(network(), str(tmp_path / "a.safetensors"), images())
