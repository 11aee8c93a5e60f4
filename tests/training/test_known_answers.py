from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.imaging.decode import decode
from app.imaging.framing import Preprocessing
from app.samples.smear import LEUKOCYTES, draw_smear
from training.known_answers import SEEDS, known_answer, probabilities, save_known_answer
from training.network import Network


def test_the_picture_is_the_drawn_cell_that_the_network_is_surest_of(tmp_path: Path) -> None:
    torch.manual_seed(1)
    preprocessing = Preprocessing(size=32)
    network = Network(4, preprocessing).eval()
    save_known_answer(network, preprocessing, tmp_path / "known.png")
    answer = known_answer(network, preprocessing, tmp_path / "known.png", 1.0)
    tried = [draw_smear(label, seed=seed) for label in LEUKOCYTES for seed in range(SEEDS)]
    assert max(answer) == pytest.approx(
        max(max(probabilities(network, preprocessing, cell, 1.0)) for cell in tried), abs=1e-6
    )
    assert sum(answer) == pytest.approx(1, abs=1e-5)
    assert decode((tmp_path / "known.png").read_bytes()).size == (320, 240)


def test_a_higher_temperature_makes_the_answer_less_sure(tmp_path: Path) -> None:
    torch.manual_seed(1)
    preprocessing = Preprocessing(size=32)
    network = Network(4, preprocessing).eval()
    save_known_answer(network, preprocessing, tmp_path / "known.png")
    cold, warm = (
        known_answer(network, preprocessing, tmp_path / "known.png", temperature)
        for temperature in (1.0, 5.0)
    )
    assert max(warm) < max(cold)
