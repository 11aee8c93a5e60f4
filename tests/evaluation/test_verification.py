from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.evaluation.review_thresholds import Rules, Thresholds
from app.evaluation.verification import Answers, cells_of, verify

NAMES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
CURRENT = Rules(Thresholds(0.6, 1.5))
LABELS = np.arange(200) % 4


def answers(wrong: float = 0.2, seed: int = 0) -> Answers:
    """Return answers to LABELS, of which a share is wrong, with less confidence."""
    draw = np.random.default_rng(seed)
    errs = draw.random(len(LABELS)) < wrong
    predicted = np.where(errs, (LABELS + 1) % 4, LABELS)
    confidence = np.where(errs, draw.uniform(0.4, 0.8, len(LABELS)), draw.uniform(0.6, 1, len(LABELS)))
    probabilities = np.repeat(((1 - confidence) / 3)[:, None], 4, axis=1)
    probabilities[np.arange(len(LABELS)), predicted] = confidence
    return Answers(probabilities, np.ones(len(LABELS)), np.zeros(len(LABELS), bool))


def test_balanced_accuracy_is_the_mean_recall_and_inside_its_interval() -> None:
    found = verify(LABELS, answers(), CURRENT, names=NAMES)
    right = answers().probabilities.argmax(1) == LABELS
    assert found.balanced_accuracy == pytest.approx(np.mean([right[c == LABELS].mean() for c in range(4)]))
    assert found.interval is not None
    assert found.interval[0] < found.balanced_accuracy < found.interval[1]
    assert (found.cells, found.by_class, found.unit) == (200, dict.fromkeys(NAMES, 50), "image")


def test_the_proposal_reaches_the_target_and_the_current_thresholds_are_judged_as_they_are() -> None:
    found = verify(LABELS, answers(), CURRENT, names=NAMES)
    assert found.current.rules == CURRENT
    assert found.proposed is not None
    now, then = found.current.right_when_kept, found.proposed.right_when_kept
    assert now is not None
    assert then is not None
    assert now < 0.95 <= then
    assert found.proposed.review_share > found.current.review_share
    assert found.curve[-1].kept == 1


def test_where_nothing_reaches_the_target_all_cells_are_to_be_reviewed() -> None:
    found = verify(LABELS, answers(wrong=1.0), CURRENT, names=NAMES)
    assert found.proposed is None
    assert "review all cells" in found.warnings[-1]


def test_thresholds_that_the_laboratory_sets_are_judged_and_drawn() -> None:
    own = Rules(Thresholds(0.9, 2.0))
    found = verify(LABELS, answers(), CURRENT, names=NAMES, chosen=own)
    assert found.chosen is not None
    assert found.recommended == found.chosen
    assert found.chosen.rules == own
    kept = answers().probabilities.max(1) >= 0.9
    assert found.chosen.review_share == pytest.approx(1 - kept.mean())
    assert found.chosen.right_when_kept == 1
    point = next(point for point in reversed(found.curve) if point.confidence >= 0.9)
    assert point.kept == pytest.approx(kept.mean(), abs=0.03)


@pytest.mark.parametrize(
    ("own", "warning"), [(Thresholds(0.0, 1.5), "not 95%"), (Thresholds(1.0, 1.5), "keep no cell")]
)
def test_thresholds_that_miss_the_target_are_said(own: Thresholds, warning: str) -> None:
    found = verify(LABELS, answers(), CURRENT, names=NAMES, chosen=Rules(own))
    assert warning in found.warnings[-1]


def test_groups_widen_the_interval_and_are_counted() -> None:
    by_image = verify(LABELS, answers(), CURRENT, names=NAMES)
    assert "too narrow" in by_image.warnings[0]
    by_slide = verify(LABELS, answers(), CURRENT, names=NAMES, groups=(np.arange(200) // 4).tolist())
    assert (by_slide.groups, by_slide.unit) == (50, "group")
    (warning,) = by_slide.warnings
    assert "do not show that 95% of others are" in warning


def test_few_cells_and_absent_classes_are_said() -> None:
    rows = [0, 1, 2, 4, 5, 6]
    found = verify(LABELS[rows], answers().take(rows), CURRENT, names=NAMES, groups=rows)
    assert "6 cells say little" in found.warnings[0]
    assert "no cells of neutrophil" in found.warnings[1]
    assert "eosinophil (2), lymphocyte (2), monocyte (2)" in found.warnings[2]
    assert 0 < found.balanced_accuracy <= 1


def test_pictures_of_bad_quality_are_reviewed_whatever_the_thresholds() -> None:
    some = answers(wrong=0.0)
    poor = Answers(some.probabilities, some.ood_scores, LABELS == 0)
    found = verify(LABELS, poor, Rules(Thresholds(0.0, 9.0)), names=NAMES)
    assert found.current.review_share == pytest.approx(0.25)


def test_the_models_own_marks_are_judged_where_its_thresholds_differ_from_picture_to_picture() -> None:
    some = answers()
    familiar = Answers(some.probabilities, some.ood_scores, some.quality, np.arange(len(LABELS)) % 2 == 0)
    found = verify(LABELS, familiar, CURRENT, names=NAMES)
    assert found.current.review_share == pytest.approx(0.5)
    assert found.current.rules == CURRENT
    assert found.proposed == verify(LABELS, some, CURRENT, names=NAMES).proposed


def test_no_proposed_ood_score_is_above_the_one_that_the_bundle_applied() -> None:
    """Labelled cells are all of the classes, so each of them is right however strange; others would pass."""
    some = answers(wrong=0.0)
    strange = replace(some, ood_scores=np.where(np.arange(200) % 10 == 0, 12.7, 1.0))
    others = np.array([1.2, 5.0, 8.0, 13.0])
    found = verify(LABELS, strange, CURRENT, names=NAMES, others=others)
    assert found.proposed is not None
    assert found.proposed.thresholds.ood_score <= CURRENT.thresholds.ood_score
    assert found.proposed.review_share == pytest.approx(0.1)
    assert (found.current.others_marked, found.proposed.others_marked) == (0.75, 1.0)
    assert found.familiar_cells is None


def test_each_picture_keeps_the_ood_score_that_its_looks_have() -> None:
    familiar = LABELS != 0
    scores = np.where(np.arange(200) % 10 == 0, 5.0, 1.0)  # between the two thresholds
    some = replace(answers(), ood_scores=scores, familiar=familiar)
    rules = Rules(Thresholds(0.6, 1.5), Thresholds(0.3, 7.7))
    found = verify(LABELS, some, rules, names=NAMES, target=0.7, others=np.array([2.0, 8.0]))
    assert found.familiar_cells == 150
    assert found.current.familiar == rules.familiar
    assert found.proposed is not None
    strict, loose = found.proposed.thresholds, found.proposed.familiar
    assert loose is not None
    assert strict.confidence == loose.confidence
    assert strict.ood_score <= 1.5 < loose.ood_score <= 7.7
    assert found.current.others_marked == 0.5  # by the looser
    kept = cells_of(LABELS, some).keep_by(found.proposed.rules)
    assert not kept[~familiar & (scores > 1.5)].any()
    assert kept[familiar & (scores > 1.5)].any()


def test_a_confidence_alone_leaves_each_picture_its_ood_score_and_a_looser_one_is_warned_about() -> None:
    rules = Rules(Thresholds(0.6, 1.5), Thresholds(0.3, 7.7))
    own = rules.with_set(confidence=0.9)
    assert own == Rules(Thresholds(0.9, 1.5), Thresholds(0.9, 7.7))
    assert not any(
        "looser" in text for text in verify(LABELS, answers(), rules, names=NAMES, chosen=own).warnings
    )
    for ood_score in (3.0, 9.0):
        loose = rules.with_set(ood_score=ood_score)
        warnings = verify(LABELS, answers(), rules, names=NAMES, chosen=loose).warnings
        assert any(
            f"was set, {ood_score:g}, is looser than the bundle's (1.5, and 7.7" in one for one in warnings
        )
    assert rules.with_set(0.5, 1.0) == Rules(Thresholds(0.5, 1.0))


def test_resamples_that_cannot_differ_have_no_interval() -> None:
    assert verify(LABELS, answers(), CURRENT, names=NAMES, groups=[0] * 200).interval is None
    by_class = verify(LABELS, answers(), CURRENT, names=NAMES, groups=LABELS.tolist())
    assert by_class.interval is None
    assert any("All cells of eosinophil, lymphocyte" in text for text in by_class.warnings)
