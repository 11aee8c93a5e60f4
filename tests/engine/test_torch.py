from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from app.engine.bundle import CLASSES, Bundle
from app.engine.resnet18 import ResNet18
from app.engine.torch import PREPARING, Fixed, Sized, TorchEngine, prepare
from app.imaging.framing import Preprocessing
from training.network import Network, load_network


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


@pytest.mark.parametrize("n", [1, 3, 4])
def test_a_batch_of_fixed_size_returns_outputs_for_its_images_only(n: int) -> None:
    network = Network(4, Preprocessing()).eval()
    images = torch.from_numpy(pixels(5))
    with torch.inference_mode():
        fixed = Fixed(network, 224, torch.device("cpu"), 4)
        fixed(images[1:5])
        for output, expected in zip(fixed(images[:n]), network(images[:n]), strict=True):
            assert torch.allclose(output, expected, atol=1e-4)


@pytest.mark.parametrize(("n", "size"), [(1, 1), (3, 4), (64, 64)])
def test_images_run_as_the_smallest_sufficient_batch_and_in_order(n: int, size: int) -> None:
    def first(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sizes.append(len(images))
        return (images[:, 0, 0].float(),) * 3  # the first pixel

    sizes: list[int] = []
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 2, 2, 3)
    sized = Sized(first, 2, torch.device("cpu"))
    for _ in range(2):
        for output in sized(images):
            assert output[:, 0].tolist() == list(range(n))
    assert sizes == [size, size]


def test_more_images_than_a_batch_are_answered_in_order(bundle: Bundle) -> None:
    engine = TorchEngine(bundle)
    images = pixels(2 * engine.batch + 1)
    together = engine.infer(images, maps=True)
    assert together.maps is not None
    for index in (0, engine.batch, len(images) - 1):
        single = engine.infer(images[index : index + 1], maps=True)
        assert single.maps is not None
        assert np.allclose(together.logits[index], single.logits[0], atol=1e-4)
        assert np.allclose(together.features[index], single.features[0], atol=1e-4)
        assert np.allclose(together.maps[index], single.maps[0], atol=1e-4)


def test_each_thread_gets_the_answers_to_its_own_images(bundle: Bundle) -> None:
    engine = TorchEngine(bundle)
    images = pixels(12)
    expected = [engine.infer(images[i : i + 1]).logits for i in range(len(images))]
    with ThreadPoolExecutor(4) as pool:
        logits = list(pool.map(lambda i: engine.infer(images[i : i + 1]).logits, range(len(images))))
    assert np.allclose(logits, expected, atol=1e-4)


class Refusing:
    """A network that records whether the lock was held while it was moved to the GPU, which fails."""

    locked: bool | None = None

    def to(self, _: torch.device) -> None:
        self.locked = PREPARING.locked()
        raise RuntimeError("no GPU in this test")


def test_one_model_at_a_time_is_prepared_for_a_gpu_and_a_failure_does_not_block_the_next() -> None:
    for _ in range(2):
        network = Refusing()
        with pytest.raises(RuntimeError, match="no GPU in this test"):
            prepare(cast(ResNet18, network), 224)
        assert network.locked


@pytest.mark.gpu
def test_models_are_loaded_on_a_gpu_while_another_answers(bundle: Bundle) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: capturing a graph while other models answer is not tested")
    live, loaded = TorchEngine(bundle), Event()
    images = pixels(7)
    expected = live.infer(images).logits
    near = 0.02 * np.abs(expected).max()  # lanes may use different kernels: each was benchmarked on its own

    def answer() -> int:
        calls = 0
        while not loaded.is_set():
            assert np.abs(live.infer(images).logits - expected).max() < near
            calls += 1
        return calls

    with ThreadPoolExecutor(5) as pool:
        answering = [pool.submit(answer) for _ in range(3)]
        loading = [pool.submit(TorchEngine, bundle) for _ in range(2)]
        try:
            engines = [future.result() for future in loading]
        finally:
            loaded.set()
        assert all(future.result() for future in answering)
    for engine in engines:
        assert np.abs(engine.infer(images).logits - expected).max() < near


@pytest.mark.gpu
def test_half_precision_on_a_gpu_gives_the_cpus_answers(bundle: Bundle) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: the GPU engine is not tested")
    engine = TorchEngine(bundle)
    images = (pixels(200) * np.linspace(0.1, 1, 200).reshape(-1, 1, 1, 1)).astype(np.uint8)
    with torch.inference_mode():
        expected = load_network(bundle)(torch.from_numpy(images))[0].numpy()
    spread = np.abs(expected - expected.mean(0)).max()
    with ThreadPoolExecutor(4) as pool:
        for n in (200, 64, 4, 1) * 4:
            for output in pool.map(engine.infer, [images[:n]] * 4):
                assert np.abs(output.logits - expected[:n]).max() < 0.02 * spread
