from __future__ import annotations

import pytest
import torch

from app.engine.bundle import CLASSES
from app.imaging.framing import Preprocessing
from training.config import load_recipe
from training.module import Finetuning
from training.network import Network
from training.styles import mix_styles


def maps() -> torch.Tensor:
    """Return two images of the same pattern: a pale one and a contrasted, bright one."""
    pattern = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.cat([pattern * 0.1, pattern * 5 + 20])


def mixed(seed: int, probability: float = 1.0) -> torch.Tensor:
    return mix_styles(maps(), probability, torch.Generator().manual_seed(seed))


def test_an_image_takes_on_the_style_of_another_and_keeps_its_pattern() -> None:
    means = torch.stack([mixed(seed).mean((1, 2, 3)) for seed in range(60)])
    pale, bright = maps().mean((1, 2, 3)).tolist()
    assert means.min() == pytest.approx(pale, abs=0.05)
    assert means.max() == pytest.approx(bright, abs=0.05)
    swapped = (means[:, 0] > (pale + bright) / 2).float().mean()
    assert 0.05 < swapped < 0.5  # half of the pairs are permuted, and half of these shares are near 0
    for seed in range(10):
        pattern = mixed(seed).flatten(2)
        pattern = (pattern - pattern.mean(2, keepdim=True)) / pattern.std(2, keepdim=True)
        assert torch.allclose(pattern[0], pattern[1], atol=1e-3)


def test_without_probability_nothing_changes() -> None:
    assert torch.equal(mixed(0, probability=0.0), maps())


def test_styles_are_mixed_in_training_only() -> None:
    config = load_recipe("paper", ["mixstyle=1.0", 'initial="random"'])
    module = Finetuning(Network(len(CLASSES), Preprocessing(size=32)), config)
    pixels = torch.randint(0, 255, (8, 32, 32, 3), generator=torch.Generator().manual_seed(1)).byte()
    module.eval()
    assert torch.equal(module.network(pixels)[0], module.network(pixels)[0])
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.0
    module.train()
    assert not torch.equal(module.network(pixels)[0], module.network(pixels)[0])
