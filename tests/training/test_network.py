from __future__ import annotations

import numpy as np
import torch

from app.imaging.framing import Preprocessing
from training.network import Network


def test_normalisation_is_the_networks_first_layer() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), dtype=np.uint8))
    network = Network(4, Preprocessing()).eval()
    scaled = (
        images.permute(0, 3, 1, 2) / 255 - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    ) / torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    with torch.inference_mode():
        assert torch.allclose(network(images)[0], network.trunk(scaled), atol=1e-4)
