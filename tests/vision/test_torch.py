from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from app.errors import BundleError
from app.vision.bundle import CLASSES, Bundle
from app.vision.framing import Preprocessing
from app.vision.torch import Fixed, Network, Sized, TorchEngine, load_network


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    torch.manual_seed(0)
    state = Network(4, Preprocessing()).trunk.state_dict()
    halves = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(halves, tmp_path / "model.safetensors")
    return Bundle(
        tmp_path, "", "wbc", "1", CLASSES, Preprocessing(), 1.0, 0.5, 2.0, (0.25,) * 4, {}, {}, {}
    )  # fmt: skip


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, 224, 224, 3), dtype=np.uint8)


def test_logits_are_the_pooled_features_through_the_final_layer(bundle: Bundle) -> None:
    engine = TorchEngine(bundle)
    output = engine.infer(pixels(3), maps=True)
    assert output.maps is not None
    assert output.maps.shape == (3, 512, 7, 7)
    assert np.allclose(output.maps.mean((2, 3)), output.features, atol=1e-4)
    assert output.logits.shape == (3, 4)


def test_maps_are_left_out_unless_asked_for(bundle: Bundle) -> None:
    assert TorchEngine(bundle).infer(pixels(1)).maps is None


def test_normalisation_is_the_networks_first_layer() -> None:
    images = torch.from_numpy(pixels(2))
    network = Network(4, Preprocessing()).eval()
    scaled = (
        images.permute(0, 3, 1, 2) / 255 - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    ) / torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    with torch.inference_mode():
        assert torch.allclose(network(images)[0], network.trunk(scaled), atol=1e-4)


def test_weights_of_another_shape_are_refused(bundle: Bundle) -> None:
    save_file({"fc.weight": torch.zeros(5, 512)}, bundle.path / "model.safetensors")
    with pytest.raises(BundleError, match="does not hold a ResNet18"):
        TorchEngine(bundle)


def test_a_pickle_in_place_of_the_weights_is_refused_unread(bundle: Bundle) -> None:
    torch.save({"fc.weight": torch.zeros(4, 512)}, bundle.path / "model.safetensors")
    with pytest.raises(BundleError, match="does not hold a ResNet18"):
        TorchEngine(bundle)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_a_batch_of_fixed_size_answers_for_the_images_that_it_has(n: int) -> None:
    network = Network(4, Preprocessing()).eval()
    images = torch.from_numpy(pixels(5))
    with torch.inference_mode():
        fixed = Fixed(network, 224, torch.device("cpu"), 4)
        fixed(images[1:5])
        for found, expected in zip(fixed(images[:n]), network(images[:n]), strict=True):
            assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("n", "prepared"), [(1, {1}), (3, {4}), (64, {64}), (67, {64, 4})])
def test_any_number_of_images_runs_in_few_sizes_and_in_order(n: int, prepared: set[int]) -> None:
    def count(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sizes.add(len(images))
        return (images[:, 0, 0].float(),) * 3  # the first pixel

    sizes: set[int] = set()
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 2, 2, 3)
    sized = Sized(count, 2, torch.device("cpu"))
    for _ in range(2):
        logits, features, maps = sized(images)
        assert logits[:, 0].tolist() == features[:, 0].tolist() == maps[:, 0].tolist() == list(range(n))
    assert sizes == prepared


@pytest.mark.gpu
def test_half_precision_on_a_gpu_gives_the_cpus_labels(bundle: Bundle) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here: the GPU engine is not run")
    engine = TorchEngine(bundle)
    with torch.inference_mode():
        logits = load_network(bundle)(torch.from_numpy(pixels(67)))[0].numpy()
    for n in (67, 4, 1):
        assert (engine.infer(pixels(67)[:n]).logits.argmax(1) == logits[:n].argmax(1)).all()
