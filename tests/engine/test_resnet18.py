from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from app.engine.bundle import CLASSES, Bundle
from app.engine.resnet18 import load_resnet18
from app.errors import BundleError
from app.imaging.framing import Preprocessing
from training.network import Network


@pytest.fixture
def network() -> Network:
    """A network whose batch normalisations have statistics, as after training."""
    torch.manual_seed(0)
    network = Network(4, Preprocessing())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def bundle(folder: Path, state: dict[str, Tensor]) -> Bundle:
    save_file(state, folder / "model.safetensors")
    return Bundle(folder, "", "wbc", "1", CLASSES, Preprocessing(), 1.0, 0.5, 2.0, (0.25,) * 4, {}, {}, {})


def test_the_loaded_network_computes_the_same_as_the_trained_one(network: Network, tmp_path: Path) -> None:
    served = load_resnet18(bundle(tmp_path, network.trunk.state_dict()))
    images = torch.randint(256, (3, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        for output, expected in zip(served(images), network(images), strict=True):
            assert output.shape == expected.shape
            assert torch.allclose(output, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_weights_stored_in_half_precision_are_loaded_in_single(network: Network, tmp_path: Path) -> None:
    network.half()
    served = load_resnet18(bundle(tmp_path, network.trunk.state_dict()))
    assert {parameter.dtype for parameter in served.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "change",
    [
        {"fc.weight": torch.zeros(5, 512)},
        {"conv1.weight": torch.zeros(64, 1, 7, 7)},
        {"layer9.weight": torch.zeros(1)},
        {"layer1.0.bn1.running_var": None},
        {"layer1.0.bn1.running_mean": None},
        {"layer4.1.conv2.weight": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_weights_of_another_network_are_refused(
    network: Network, tmp_path: Path, change: dict[str, Tensor | None]
) -> None:
    state = {**network.trunk.state_dict(), **change}
    with pytest.raises(BundleError, match="does not hold a ResNet18"):
        load_resnet18(bundle(tmp_path, {key: value for key, value in state.items() if value is not None}))


def test_a_pickle_in_place_of_the_weights_is_refused_unread(tmp_path: Path) -> None:
    pickled = bundle(tmp_path, {"fc.weight": torch.zeros(4, 512)})
    torch.save({"fc.weight": torch.zeros(4, 512)}, tmp_path / "model.safetensors")
    with pytest.raises(BundleError, match="does not hold a ResNet18"):
        load_resnet18(pickled)
