from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from app.imaging.nucleus import find_nucleus
from app.imaging.thumbnail import UNIT, Thumbnail
from app.samples.smear import LEAST_SIDE, LEUKOCYTES, draw_field, draw_smear

LABELS = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")


def pixels(label: str, seed: int = 0) -> NDArray[np.float32]:
    return np.asarray(draw_smear(label, seed=seed), dtype=np.float32)


def nucleus(rgb: NDArray[np.float32]) -> NDArray[np.bool_]:
    colour = Thumbnail(rgb.transpose(2, 0, 1).astype(np.uint8), scale=1.0).nuclear_colour
    return np.asarray(colour > 0.5 * UNIT)


def test_the_four_classes_can_be_drawn() -> None:
    assert tuple(LEUKOCYTES) == LABELS


@pytest.mark.parametrize("label", LABELS)
def test_the_same_arguments_draw_the_same_picture(label: str) -> None:
    assert np.array_equal(pixels(label, 7), pixels(label, 7))


@pytest.mark.parametrize("label", LABELS)
def test_another_seed_draws_another_picture(label: str) -> None:
    assert np.abs(pixels(label, 1) - pixels(label, 2)).mean() > 5


def test_classes_differ_at_one_seed() -> None:
    for first, second in combinations(LABELS, 2):
        assert np.abs(pixels(first) - pixels(second)).mean() > 5


@pytest.mark.parametrize("size", [(320, 240), (640, 480), (224, 224), (99, 33), (8, 8)])
def test_the_picture_is_rgb_of_the_size_asked_for(size: tuple[int, int]) -> None:
    width, height = size
    image = draw_smear("monocyte", width=width, height=height)
    assert (image.mode, image.size) == ("RGB", size)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("size", [(LEAST_SIDE, LEAST_SIDE), (LEAST_SIDE, 100), (100, LEAST_SIDE)])
def test_the_least_size_can_be_drawn(label: str, size: tuple[int, int]) -> None:
    for seed in range(3):
        assert draw_smear(label, seed=seed, width=size[0], height=size[1]).size == size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"width": 1, "height": 1}, "too small"), ({"height": 7}, "too small"), ({"seed": -1}, "below 0")],
)
def test_what_cannot_be_drawn_is_an_error_in_words(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_smear("monocyte", **arguments)


@pytest.mark.parametrize("label", ["basophil", "Neutrophil", ""])
def test_an_unknown_class_is_an_error_that_names_the_known(label: str) -> None:
    with pytest.raises(ValueError, match="eosinophil, lymphocyte, monocyte, neutrophil"):
        draw_smear(label)


@pytest.mark.parametrize("label", LABELS)
def test_the_nucleus_takes_a_plausible_part_of_the_picture(label: str) -> None:
    for seed in range(5):
        assert 0.01 < nucleus(pixels(label, seed)).mean() < 0.06


@pytest.mark.parametrize("label", LABELS)
def test_the_service_finds_the_drawn_nucleus(label: str) -> None:
    for seed in range(5):
        image = draw_smear(label, seed=seed)
        detected = find_nucleus(image, Thumbnail.of(image))
        assert detected is not None
        rows, columns = np.nonzero(nucleus(pixels(label, seed)))
        assert np.hypot(detected.x - np.median(columns), detected.y - np.median(rows)) < 20


@pytest.mark.parametrize("label", LABELS)
def test_the_smear_is_mostly_light_background_and_beige_red_cells(label: str) -> None:
    rgb = pixels(label)
    light = rgb.min(axis=-1) > 190
    beige = (rgb[..., 0] - rgb[..., 1] > 15) & ~nucleus(rgb)
    assert 0.25 < light.mean() < 0.75
    assert 0.15 < beige.mean() < 0.6


def test_a_monocytes_nucleus_is_larger_than_a_neutrophils() -> None:
    sizes = {label: np.mean([nucleus(pixels(label, seed)).mean() for seed in range(5)]) for label in LABELS}
    assert sizes["monocyte"] > 1.2 * sizes["neutrophil"]


def test_an_eosinophil_has_more_red_around_its_nucleus_than_a_neutrophil() -> None:
    def red(label: str) -> float:
        rgb = pixels(label)
        row, column = (int(np.median(indices)) for indices in np.nonzero(nucleus(rgb)))
        square = rgb[max(0, row - 40) : row + 40, max(0, column - 40) : column + 40]
        return float((square[..., 0] - square[..., 1] > 60).mean())

    assert red("eosinophil") > 3 * red("neutrophil") + 0.02


def test_a_field_has_a_cell_of_each_label_where_it_says() -> None:
    image, cells = draw_field(LABELS, seed=3)
    mask = nucleus(np.asarray(image, dtype=np.float32))
    assert [cell.label for cell in cells] == list(LABELS)
    for cell in cells:
        near = mask[round(cell.y - cell.radius) : round(cell.y + cell.radius)]
        near = near[:, round(cell.x - cell.radius) : round(cell.x + cell.radius)]
        assert near.mean() > 0.1
    for one, other in combinations(cells, 2):
        assert np.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius


def test_the_same_arguments_draw_the_same_field() -> None:
    first, second = (draw_field(("lymphocyte",), seed=2, width=320, height=240)[0] for _ in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_cells_in_touch_are_drawn_in_touch() -> None:
    _, (one, other) = draw_field(("lymphocyte", "neutrophil"), width=320, height=240, touching=True)
    assert np.hypot(one.x - other.x, one.y - other.y) == pytest.approx(0.98 * (one.radius + other.radius))


def test_a_field_of_an_unknown_class_or_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="basophil"):
        draw_field(("basophil",))
    with pytest.raises(ValueError, match="no room for 2 cells"):
        draw_field(("monocyte", "monocyte"), width=120, height=110)
