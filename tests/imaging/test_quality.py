from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from app.imaging.framing import Preprocessing, frame_cell
from app.imaging.quality import Quality, QualityLimits
from app.samples.smear import draw_smear

LIMITS = QualityLimits()
GOOD = Quality(nuclear_contrast=1.2, cut=0.0, detail=1.3, brightness=220.0, brightness_range=90.0)
GENERATOR = np.random.default_rng(0)


def quality(image: Image.Image, size: int = 224) -> Quality:
    return frame_cell(image, Preprocessing(size=size)).quality


def reasons(image: Image.Image) -> tuple[str, ...]:
    return LIMITS.reasons(quality(image))


@pytest.mark.parametrize("label", ["eosinophil", "lymphocyte", "monocyte", "neutrophil"])
@pytest.mark.parametrize("size", [96, 112, 128, 224])
def test_a_good_picture_has_no_reason_at_any_input_size(label: str, size: int) -> None:
    for seed in range(3):
        assert LIMITS.reasons(quality(draw_smear(label, seed=seed), size)) == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nuclear_contrast": 0.5}, "no_cell"),
        ({"detail": 3.0}, "no_cell"),
        ({"cut": 1.5}, "cut_off"),
        ({"outside": 0.2}, "cut_off"),
        ({"leukocytes": 2}, "several_cells"),
        ({"detail": 1.02}, "blurred"),
        ({"brightness": 60.0}, "exposure"),
        ({"brightness_range": 20.0}, "exposure"),
    ],
)
def test_each_limit_has_its_reason(changes: dict[str, float], expected: str) -> None:
    assert LIMITS.reasons(GOOD) == ()
    assert LIMITS.reasons(replace(GOOD, **changes)) == (expected,)


def test_a_pale_leukocyte_that_was_found_is_a_matter_of_exposure() -> None:
    pale = replace(GOOD, nuclear_contrast=0.5)
    assert LIMITS.reasons(pale) == ("no_cell",)
    assert LIMITS.reasons(replace(pale, found=1)) == ("exposure",)
    assert LIMITS.reasons(replace(GOOD, found=1)) == ()


def noise(mean: float, spread: float, channels: int) -> Image.Image:
    pixels = GENERATOR.normal(mean, spread, (240, 320, channels)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(pixels, (240, 320, 3)).copy())


def background() -> Image.Image:
    """Return a smear's red cells without its leukocyte."""
    image = draw_smear("lymphocyte", seed=1)
    frame = frame_cell(image, Preprocessing()).frame
    image.paste(
        image.crop((0, 0, 60, 60)).resize((round(frame.width), round(frame.height))),
        (round(frame.left), round(frame.top)),
    )
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GENERATOR.integers(0, 256, (300, 300, 3), dtype=np.uint8)),
        Image.fromarray(GENERATOR.integers(0, 256, (120, 100, 3), dtype=np.uint8)),
        noise(180, 30, 3),
        noise(128, 60, 1),
        Image.new("RGB", (320, 240), "white"),
        Image.new("RGB", (320, 240), "black"),
        Image.new("RGB", (320, 240), (200, 160, 170)),
        background(),
    ],
    ids=["noise", "small noise", "mild noise", "grey noise", "white", "black", "one colour", "red cells"],
)
def test_without_a_cell_the_reason_is_no_cell(image: Image.Image) -> None:
    assert "no_cell" in reasons(image)


@pytest.mark.parametrize("size", [112, 224])
def test_a_picture_blurred_beyond_use_is_marked_and_a_slightly_blurred_one_is_not(size: int) -> None:
    image = draw_smear("neutrophil", seed=2)
    width = frame_cell(image, Preprocessing()).frame.width
    values = [
        quality(image.filter(ImageFilter.GaussianBlur(width * share)), size).detail
        for share in (0.0, 0.005, 0.04, 0.08)
    ]
    assert values == sorted(values, reverse=True)
    marked = [value < LIMITS.detail for value in values]
    assert marked == [False, False, True, True]


@pytest.mark.parametrize("gain", [0.05, 0.1, 0.3])
def test_a_dark_picture_is_marked(gain: float) -> None:
    assert "exposure" in reasons(draw_smear("monocyte", seed=3).point(lambda level: level * gain))


def test_a_picture_without_contrast_is_marked() -> None:
    assert "exposure" in reasons(
        draw_smear("monocyte", seed=3).point(lambda level: 200 + 0.1 * (level - 200))
    )


def test_half_a_cell_is_marked_as_cut_off() -> None:
    image = draw_smear("lymphocyte", seed=0)
    frame = frame_cell(image, Preprocessing()).frame
    middle = round(frame.left + frame.width / 2)
    assert "cut_off" in reasons(image.crop((middle, 0, image.width, image.height)))
    assert "cut_off" in reasons(image.crop((0, 0, middle, image.height)))
