from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from app.engine.bundle import CLASSES, OOD, Bundle, FamiliarRule
from app.engine.classifier import (
    Bank,
    Classifier,
    Neighbours,
    Prediction,
    class_activation_map,
    load_classifier,
    load_engine,
    read_neighbours,
    read_styles,
    softmax,
)
from app.engine.interface import Output
from app.engine.laboratories import Styles, describe_all
from app.errors import BundleError, EngineError
from app.imaging.framing import Cell, Frame, Pixels, Preprocessing
from app.imaging.quality import Quality, QualityLimits
from app.imaging.style import LENGTH


class StubEngine:
    """Give logit 10 to the class whose index is the first pixel's red level modulo 4; red 255 gives NaN.

    The features are the first pixel's green level.
    """

    name = "stub"
    device = "none"
    batch = 8
    workers = 1

    def infer(self, pixels: Pixels, *, maps: bool = False, exclusive: bool = True) -> Output:  # noqa: ARG002
        n = len(pixels)
        logits = np.zeros((n, 4), np.float32)
        logits[np.arange(n), pixels[:, 0, 0, 0] % 4] = 10
        logits[pixels[:, 0, 0, 0] == 255] = np.nan
        features = np.zeros((n, 8), np.float32) + pixels[:, 0, 0, 1:2]
        return Output(logits, features, np.ones((n, 8, 7, 7), np.float32) if maps else None)

    def warm_up(self, batch: int, size: int) -> None:
        self.infer(np.zeros((batch, size, size, 3), np.uint8))


GOOD = Quality(nuclear_contrast=1.0, cut=0.0, detail=1.3, brightness=220.0, brightness_range=100.0)


def bundle(path: Path = Path(), known_answer: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)) -> Bundle:
    return Bundle(
        path, "0" * 64, "wbc", "1", CLASSES, Preprocessing(), 2.0, 0.6, 3.0, known_answer, {}, {}, {}
    )  # fmt: skip


def classifier(model: Bundle | None = None) -> Classifier:
    neighbours = Neighbours(Bank(np.zeros((4, 8), np.float32), 2), 8**0.5)
    return Classifier(model or bundle(), StubEngine(), neighbours, np.ones((4, 8), np.float32))


def cell(level: int, distance: int = 0, *, cam: bool = False, quality: Quality = GOOD) -> Cell:
    pixels = np.zeros((224, 224, 3), np.uint8)
    pixels[0, 0] = level, distance, 0
    return Cell(pixels, Frame(0, 0, 224, 224, nucleus=False), quality, cam)


def predict(*cells: Cell) -> list[Prediction]:
    answers = classifier().classify(cells)
    assert all(isinstance(answer, Prediction) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Prediction)]


def test_probabilities_are_those_of_the_logits_over_the_temperature() -> None:
    (answer,) = predict(cell(2))
    e = np.exp(10 / 2.0)
    assert answer.label == "monocyte"
    assert answer.confidence == pytest.approx(e / (e + 3))
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-12)


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    together = predict(*(cell(level) for level in range(8)))
    assert together == [predict(cell(level))[0] for level in range(8)]


def test_a_cell_far_from_the_training_cells_is_sent_to_review() -> None:
    near, far = predict(cell(0, 1), cell(0, 9))
    assert near.ood_score == pytest.approx(1)
    assert far.ood_score == pytest.approx(9)
    assert not near.review
    assert far.review_reasons == ("out_of_distribution",)


def test_a_picture_like_those_of_a_known_laboratory_has_thresholds_of_its_own() -> None:
    rule = FamiliarRule(distance=1.0, confidence=0.5, ood_score=12.0)
    model = replace(bundle(), review_confidence=1.0, familiar=rule)
    known, strange = cell(0, 9), cell(1, 9)
    strange.pixels[::2] = 120
    styles = Styles(describe_all([known.pixels]), np.eye(LENGTH, dtype=np.float32))
    neighbours = Neighbours(Bank(np.zeros((4, 8), np.float32), 2), 8**0.5)
    both = Classifier(model, StubEngine(), neighbours, np.ones((4, 8), np.float32), styles)
    first, second = (a for a in both.classify([known, strange]) if isinstance(a, Prediction))
    assert first.review_reasons == ()
    assert second.review_reasons == ("low_confidence", "out_of_distribution")


def test_a_rule_for_familiar_pictures_needs_their_styles(tmp_path: Path) -> None:
    arrays = {"style_centres": np.zeros((2, 7)), "style_whitening": np.eye(7)}
    save_file(arrays, tmp_path / OOD)
    with pytest.raises(BundleError, match=r"styles of shapes \(2, 7\) and \(7, 7\)"):
        read_styles(tmp_path)


def test_the_ood_score_is_the_distance_to_the_kth_nearest_cell_over_the_scale() -> None:
    rng = np.random.default_rng(0)
    bank, features = rng.random((50, 8), np.float32), rng.random((6, 8), np.float32)
    distances = np.sort(np.linalg.norm(features[:, None] - bank, axis=2), axis=1)
    for k in (1, 7, 50):
        assert Neighbours(Bank(bank, k), 0.5).score(features) == pytest.approx(
            distances[:, k - 1] / 0.5, rel=1e-4
        )


@pytest.mark.parametrize(("k", "scale"), [(0, 1.0), (5, 1.0), (2, 0.0)])
def test_invalid_neighbours_are_refused(tmp_path: Path, k: int, scale: float) -> None:
    arrays = {"bank": np.zeros((4, 8), np.float32), "k": np.array([k]), "scale": np.array([scale])}
    save_file(arrays, tmp_path / OOD)
    with pytest.raises(BundleError, match=f"k = {k} .* do not fit 4 cells"):
        read_neighbours(tmp_path)


def test_cells_of_no_class_are_scored_by_the_others_beside_them() -> None:
    known = Bank(np.zeros((1, 2), np.float32), 1)
    others = Bank(np.array([[3, 4], [3, 5], [6, 8]], np.float32), 1)
    scores = Neighbours(known, 2.0, others).scores_of_others()
    assert scores is not None
    distances = np.sqrt([25, 34, 100]), np.sqrt([1, 1, 18])  # to the known cell; to the nearest other
    assert scores.tolist() == pytest.approx((distances[0] / 2 / distances[1]).tolist(), rel=1e-5)
    assert Neighbours(known, 2.0).scores_of_others() is None
    assert Neighbours(known, 2.0, Bank(others.features, 3)).scores_of_others() is None


def test_logits_that_are_not_finite_are_an_error_of_that_cell_only() -> None:
    answers = classifier().classify([cell(1), cell(255), cell(3)])
    assert isinstance(answers[1], EngineError)
    assert [a.label for a in answers if isinstance(a, Prediction)] == ["lymphocyte", "neutrophil"]


def test_a_map_is_made_only_for_the_cells_that_request_it() -> None:
    with_map, without = predict(cell(0, cam=True), cell(0))
    assert with_map.cam is not None
    assert with_map.cam.shape == (7, 7)
    assert without.cam is None


def test_the_activation_map_is_the_logit_before_pooling() -> None:
    rng = np.random.default_rng(0)
    maps, weights = rng.random((512, 7, 7), np.float32), rng.standard_normal(512).astype(np.float32)
    cam = class_activation_map(maps, weights)
    raw = np.einsum("d,dhw->hw", weights, maps)
    assert raw.mean() == pytest.approx(weights @ maps.mean((1, 2)), rel=1e-3)
    assert (cam.min(), cam.max()) == (0, 1)
    assert np.corrcoef(cam.ravel(), raw.ravel())[0, 1] == pytest.approx(1)


def test_a_flat_activation_map_is_zero_and_not_nan() -> None:
    assert not class_activation_map(np.ones((8, 7, 7), np.float32), np.ones(8, np.float32)).any()


def test_softmax_survives_large_logits() -> None:
    assert softmax(np.array([[1e4, 0, 0, 0]], np.float32)).tolist() == [[1, 0, 0, 0]]


def test_warming_up_refuses_an_engine_that_gets_the_known_answer_wrong(tmp_path: Path) -> None:
    Image.new("RGB", (224, 224)).save(tmp_path / "known-answer.png")
    classifier(bundle(tmp_path, (0.98, 0.0067, 0.0067, 0.0066))).warm_up(2)
    with pytest.raises(BundleError, match="does not compute the bundle's network"):
        classifier(bundle(tmp_path, (0.0, 0.0, 0.0, 1.0))).warm_up(2)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(BundleError, match="unknown engine 'tpu'"):
        load_engine(bundle(), "tpu", 0)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"config\.json cannot be read"):
        load_classifier(tmp_path)


def test_a_picture_beyond_the_bundles_limits_is_marked_whatever_the_network_says() -> None:
    blurred = replace(GOOD, detail=1.0)
    judging = classifier(replace(bundle(), quality_limits=QualityLimits()))
    sure, unseen = judging.classify([cell(0, quality=blurred), cell(0, distance=9, quality=blurred)])
    assert isinstance(sure, Prediction)
    assert isinstance(unseen, Prediction)
    assert sure.review_reasons == ("blurred",)
    assert unseen.review_reasons == ("blurred", "out_of_distribution")


def test_a_bundle_without_limits_does_not_judge_pictures() -> None:
    assert not predict(cell(0, quality=replace(GOOD, detail=1.0)))[0].review
