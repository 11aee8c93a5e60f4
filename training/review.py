"""Thresholds of the review marks, set on images that the network was not trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.engine.bundle import FamiliarRule
from app.engine.classifier import softmax
from app.evaluation.review_thresholds import Cells, Thresholds, propose
from training.calibration import temperature_for, weighted_quantile
from training.errors import ExportError
from training.scored import HeldOut

SHARE = 0.05  # of validation images sent to review at home, half by confidence, half by OOD score
MOST_MISTAKEN = 0.2  # share of images of laboratories left out that may look like known ones
RIGHT_WHEN_KEPT = 0.95  # in laboratories that were left out, each weighing the same

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ReviewLimits:
    """Cells with a lower confidence or a higher OOD score go to review; share: of the validation images.

    familiar: other thresholds for images like those of a laboratory that was trained on.
    """

    confidence: float
    ood_score: float
    share: float
    familiar: FamiliarRule | None = None

    def keep(self, held_out: HeldOut, temperature: float) -> Flags:
        cells = cells_of(held_out, temperature)
        kept = cells.keep(Thresholds(self.confidence, self.ood_score))
        if self.familiar is not None:
            kept |= held_out.familiar & cells.keep(self.familiar.thresholds)
        return kept


def limits_at_home(held_out: HeldOut, temperature: float) -> ReviewLimits:
    """Return thresholds that send a share `SHARE` of the images to review."""
    confidence = softmax(held_out.logits / temperature).max(1)
    return ReviewLimits(
        round(weighted_quantile(confidence, held_out.weights, SHARE / 2), 4),
        round(weighted_quantile(held_out.ood_scores, held_out.weights, 1 - SHARE / 2), 4),
        SHARE,
    )


def limits_elsewhere(
    held_out: HeldOut, temperature: float, target: float, familiar: FamiliarRule | None = None
) -> ReviewLimits:
    """Return the thresholds that keep most images while a share `target` of the kept is right.

    Right: by the network that never saw the laboratory. Laboratories, classes and photos weigh the same.
    Where one laboratory is far harder than the others, less is right there: the table of them says so.
    familiar: the rule for familiar images, which these thresholds are not for. Raise ExportError if no
    thresholds do.
    """
    cells = cells_of(held_out, temperature)
    if familiar is not None:
        cells = replace(cells, allowed=~held_out.familiar)
    best = propose(cells, target)
    if best is None:
        raise ExportError(
            f"no thresholds keep cells of which {target:.0%} are right in laboratories left out: "
            "train longer, add laboratories, or lower --right-when-kept"
        )
    limits = ReviewLimits(best.confidence, best.ood_score, 0.0, familiar)
    return replace(limits, share=round(1 - cells.share(limits.keep(held_out, temperature)), 4))


def calibrate_elsewhere(
    held_out: HeldOut, seen: HeldOut, distance: float, target: float
) -> tuple[float, ReviewLimits]:
    """Return the temperature and the thresholds of a bundle with `select_on = "laboratories"`.

    seen: the scores of the bundle's own network. distance: see `References`. target: see `limits_elsewhere`.
    Where too many images of laboratories left out look like known ones, all have the same thresholds.
    """
    temperature = temperature_of(held_out)
    mistaken = float(np.average(held_out.familiar, weights=held_out.weights))
    rule = familiar_rule(seen, temperature, distance) if mistaken <= MOST_MISTAKEN else None
    return temperature, limits_elsewhere(held_out, temperature, target, rule)


def temperature_of(held_out: HeldOut) -> float:
    return round(temperature_for(held_out.logits, held_out.labels, held_out.weights), 4)


def familiar_rule(seen: HeldOut, temperature: float, distance: float) -> FamiliarRule:
    """Return the rule for images like those trained on: a share `SHARE` of `seen` goes to review."""
    limits = limits_at_home(seen, temperature)
    return FamiliarRule(round(distance, 4), limits.confidence, limits.ood_score)


def cells_of(held_out: HeldOut, temperature: float) -> Cells:
    probabilities = softmax(held_out.logits / temperature)
    return Cells(
        confidence=probabilities.max(1),
        ood_score=held_out.ood_scores,
        right=probabilities.argmax(1) == held_out.labels,
        allowed=np.ones(len(probabilities), bool),
        weights=held_out.weights,
    )


def laboratories_of(held_out: HeldOut) -> dict[str, Flags]:
    """Return which images are of each laboratory."""
    names = np.array([row.laboratory for row in held_out.rows])
    return {name: names == name for name in sorted(set(names.tolist()))}
