from __future__ import annotations

import pytest
from PIL import Image

from app.engine.classifier import Prediction
from app.imaging.framing import Frame, Preprocessing, frame_cell
from app.samples.smear import draw_smear
from training.data import Row
from training.findings import beside_the_cell, ood_separation, separation_by_type
from training.served import frame_background


def prediction(ood_score: float) -> Prediction:
    return Prediction("monocyte", 0.9, (0.0, 0.1, 0.9, 0.0), ood_score, ("low_confidence",) * (ood_score > 2))


@pytest.mark.parametrize(
    "frame",
    [
        Frame(0, 0, 100, 100, nucleus=True),
        Frame(200, 60, 100, 100, nucleus=True),
        Frame(60, 0, 200, 100, nucleus=True),
    ],
    ids=["right of it", "left of it", "below it"],
)
def test_the_square_beside_the_cell_is_clear_of_it(frame: Frame) -> None:
    image = Image.new("RGB", (320, 240), "white")
    x0, y0, x1, y1 = (int(v) for v in frame.box)
    image.paste((255, 0, 0), (x0, y0, x1, y1))
    window = beside_the_cell(image, frame)
    assert window is not None
    assert window.getcolors() == [(window.width * window.height, (255, 255, 255))]
    assert window.width == window.height >= 100


def test_there_is_no_square_without_a_nucleus_or_without_room() -> None:
    image = Image.new("RGB", (320, 240))
    assert beside_the_cell(image, Frame(0, 0, 320, 240, nucleus=False)) is None
    assert beside_the_cell(image, Frame(30, 20, 260, 200, nucleus=True)) is None


def test_a_square_beside_a_drawn_cell_has_no_nucleus_of_its_own() -> None:
    cell = frame_background(draw_smear("lymphocyte", seed=2), Preprocessing())
    assert cell is None or not cell.frame.nucleus
    assert frame_cell(draw_smear("lymphocyte", seed=2), Preprocessing()).frame.nucleus


def test_ood_separation_is_the_area_under_the_curve_of_the_scores() -> None:
    known, unknown = [prediction(s) for s in (0.5, 1.0, 1.5)], [prediction(s) for s in (1.2, 3.0)]
    assert ood_separation(known, unknown) == {"n": 2, "auroc": pytest.approx(5 / 6), "reviewed": 0.5}
    assert ood_separation(known, []) == {"n": 0, "auroc": None, "reviewed": None}


def test_each_type_of_other_cells_has_figures_of_its_own() -> None:
    known = [prediction(s) for s in (0.5, 1.0)]
    others = [
        Row("a.zip", f"{i}", label, "test", "", True, "") for i, label in enumerate(("ig", "basophil", "ig"))
    ]
    found = separation_by_type(known, others, [prediction(s) for s in (0.7, 3.0, 4.0)])
    assert found == {
        "basophil": {"n": 1, "auroc": 1.0, "reviewed": 1.0},
        "ig": {"n": 2, "auroc": 0.75, "reviewed": 0.5},
    }
