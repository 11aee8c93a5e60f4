from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from app.vision.framing import Frame, Preprocessing
from app.vision.sample import draw_smear
from training.augment import evaluation_pixels, training_pixels, warp
from training.config import Augmentation

STILL = Augmentation(rotation=0, flip_horizontal=False, flip_vertical=False)


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    image = draw_smear("neutrophil", seed=3)
    seen = training_pixels(image, Preprocessing(), STILL, random.Random(0)).astype(int)
    wanted = evaluation_pixels(image, Preprocessing()).astype(int)
    assert np.abs(seen - wanted).mean() < 2  # the two resamplings differ by a little


def test_the_same_seed_gives_the_same_picture_and_another_seed_another() -> None:
    image = draw_smear("monocyte", seed=1)
    augmentation = Augmentation(scale=(0.8, 1.2), shift=0.1, shear=5, contrast=0.2, stain=0.1, blur=0.5)
    one, same, other = (
        training_pixels(image, Preprocessing(), augmentation, random.Random(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("augmentation", "expected"),
    [
        (Augmentation(rotation=0, flip_horizontal=False, flip_vertical=False), lambda a: a),
        (Augmentation(rotation=0, flip_horizontal=True, flip_vertical=False), np.fliplr),
        (Augmentation(rotation=0, flip_horizontal=False, flip_vertical=True), np.flipud),
    ],
    ids=["still", "mirrored", "upside down"],
)
def test_flips_are_exact(augmentation: Augmentation, expected: object) -> None:
    class Low(random.Random):
        def random(self) -> float:
            return 0.0

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8))
    frame = Frame(0, 0, 224, 224, nucleus=False)
    turned = warp(image, frame, 224, augmentation, Low())
    assert callable(expected)
    assert np.array_equal(np.asarray(turned), expected(np.asarray(image)))


def test_a_turn_keeps_the_centre_where_it_is() -> None:
    image = Image.new("RGB", (320, 240))
    image.paste((255, 255, 255), (150, 110, 170, 130))
    frame = Frame(60, 20, 200, 200, nucleus=True)
    for seed in range(8):
        turned = warp(image, frame, 224, Augmentation(rotation=180, shear=10), random.Random(seed))
        assert turned.getpixel((112, 112)) == (255, 255, 255)
