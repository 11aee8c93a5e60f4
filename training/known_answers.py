"""The picture in a bundle whose answer the service checks when it starts."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from app.engine.classifier import softmax
from app.imaging.decode import decode
from app.imaging.framing import Preprocessing, frame_cell
from app.samples.smear import LEUKOCYTES, draw_smear
from training.network import Network

SEEDS = 3  # drawn cells of each class that are tried


def save_known_answer(network: Network, preprocessing: Preprocessing, path: Path) -> None:
    """Write the drawn cell that the network is surest of.

    Where a network wavers between two classes, int8 may move a probability further than the service accepts.
    """
    cells = [draw_smear(label, seed=seed) for label in LEUKOCYTES for seed in range(SEEDS)]
    max(cells, key=lambda cell: max(probabilities(network, preprocessing, cell, 1.0))).save(path)


def known_answer(
    network: Network, preprocessing: Preprocessing, path: Path, temperature: float
) -> list[float]:
    """Return the probabilities of the picture."""
    image = decode(path.read_bytes())
    return [round(p, 6) for p in probabilities(network, preprocessing, image, temperature)]


def probabilities(
    network: Network, preprocessing: Preprocessing, image: Image.Image, temperature: float
) -> list[float]:
    cell = frame_cell(image, preprocessing)
    with torch.inference_mode():
        logits = network(torch.from_numpy(cell.pixels[None].copy()))[0].numpy()
    answer: list[float] = softmax(logits / temperature)[0].tolist()
    return answer
