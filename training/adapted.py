"""`leuko-train adapt`: a laboratory's own cells → a bundle of its own, if it is better there."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine.bundle import GRAPH, KNOWN_ANSWER, WEIGHTS, Bundle, FamiliarRule
from app.engine.classifier import Neighbours, read_neighbours, read_styles, softmax
from app.engine.laboratories import Styles, describe_all
from app.engine.site_bundle import Adapted, record, write
from app.evaluation.copies import HASH_DIGITS, adapted_to
from app.evaluation.report import evaluate
from app.evaluation.review_thresholds import Flags, Rules, Thresholds
from app.evaluation.verification import (
    Answers,
    Marks,
    Verification,
    data_hash,
    exactly,
    undivided,
    verify,
)
from app.reports import verification_page
from app.reports.verification_page import FIGURES, PAGE, Verified
from training.adapt import (
    Candidate,
    Outputs,
    OwnCells,
    Pixels,
    Start,
    Trial,
    begin,
    check_cells,
    cross_validate,
    follow,
    renew_statistics,
)
from training.calibration import temperature_for
from training.errors import DataError
from training.export import save_weights
from training.graph import export_graph, quantise
from training.head import balanced_weights
from training.known_answers import known_answer, save_known_answer
from training.network import Network, load_network, round_to_half

RECALL_FALLS = 0.05  # most that a class may lose, but for
CHANCE = 1  # cell of it, which says nothing
UNCHANGED = Candidate(0, None)  # the bundle as it is
LEAST_UNLABELLED = 50  # pictures, for batch statistics
REPORT = "adaptation.json"
UNVERIFIED = "The bundle has no `site`: it is not verified for this laboratory. Verify it on other cells."
RANGES = 160  # cells for the int8 ranges

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Comparison:
    """Held-out cells before and after: verifications with the thresholds of each, and recalls by class.

    tried: how many adaptations the chosen one is the best of.
    """

    chosen: Candidate
    temperature: float
    before: Verification
    after: Verification
    recalls_before: dict[str, float]
    recalls_after: dict[str, float]
    tried: int = 0

    @property
    def fallen(self) -> list[str]:
        """Return the classes whose recall falls, by more than `RECALL_FALLS` and more than `CHANCE`."""
        return [
            name
            for name, n in self.before.by_class.items()
            if round(n * (self.recalls_before[name] - self.recalls_after[name]))
            > max(CHANCE, RECALL_FALLS * n)
        ]

    @property
    def recommended(self) -> bool:
        better = self.after.balanced_accuracy > self.before.balanced_accuracy
        return better and not self.fallen

    @property
    def verifies(self) -> bool:
        """Return whether the cells speak for the adaptation, as `leuko verify` would ask."""
        return self.recommended and self.after.proposed is not None


@dataclass(frozen=True)
class Parent:
    """A network before its adaptation, and how its outputs become answers."""

    network: Network
    labels: Sequence[str]
    neighbours: Neighbours
    temperature: float
    thresholds: Thresholds
    familiar: FamiliarRule | None = None
    styles: Styles | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> Parent:
        """Raise BundleError."""
        return cls(
            load_network(bundle),
            bundle.labels,
            read_neighbours(bundle.path),
            bundle.temperature,
            bundle.thresholds,
            bundle.familiar,
            read_styles(bundle.path) if bundle.familiar else None,
        )

    @property
    def rules(self) -> Rules:
        return Rules(self.thresholds, self.familiar.thresholds if self.familiar else None)

    def knows(self, cells: OwnCells) -> Flags:
        """Return which cells [n] have the bundle's thresholds of familiar pictures."""
        if self.familiar is None or self.styles is None:
            return np.zeros(len(cells), bool)
        near: Flags = self.styles.distances(describe_all(cells.framed)) <= self.familiar.distance
        return near

    def answers(self, cells: OwnCells, outputs: Outputs, temperature: float) -> Answers:
        """Return what a bundle with these outputs answers to the cells."""
        poor = np.zeros(len(cells), bool) if cells.poor is None else cells.poor
        scores = self.neighbours.score(outputs.features).astype(np.float64)
        return Answers(softmax(outputs.logits / temperature), scores, poor, familiar=self.knows(cells))

    def starts(
        self, cells: OwnCells, unlabelled: Pixels | None = None, replay: OwnCells | None = None
    ) -> list[Start]:
        """Return the network as it is, and with unlabelled pictures one with batch statistics of theirs."""
        networks = [self.network]
        if unlabelled is not None:
            # Without the labelled cells: those that a fold holds out must not be in its network.
            given = {cell.tobytes() for cell in cells.framed}
            others = np.array([picture.tobytes() not in given for picture in unlabelled])
            if others.sum() > 1:
                networks.append(renew_statistics(self.network, unlabelled[others]))
        return [begin(network, cells, self.neighbours.known.features, replay) for network in networks]


def compare(parent: Parent, cells: OwnCells, trial: Trial, target: float) -> Comparison:
    """Compare the network with its best adaptation on the cells that each fold held out.

    The best has the least log loss among those that are recommended, else among all.
    """
    outputs, weights = trial.outputs[UNCHANGED], balanced_weights(cells.labels)
    recalls_before = recalls(outputs, cells, parent.labels)

    def judge(outputs: Outputs, temperature: float) -> Verification:
        return verify(
            cells.labels,
            parent.answers(cells, outputs, temperature),
            parent.rules,
            names=parent.labels,
            groups=groups_of(cells),
            target=target,
            others=parent.neighbours.scores_of_others(),
        )

    before = judge(outputs, parent.temperature)

    def compared(chosen: Candidate) -> Comparison:
        after = trial.outputs[chosen]
        temperature = round(temperature_for(after.logits, cells.labels, weights), 4)
        # What the bundle did until now is what it did with its own network.
        verified = replace(judge(after, temperature), current=before.current)
        recalls_after = recalls(after, cells, parent.labels)
        tried = len(trial.outputs) - 1
        return Comparison(chosen, temperature, before, verified, recalls_before, recalls_after, tried)

    first, *others = trial.ranked(cells.labels)
    best = compared(first)
    return best if best.recommended else next((one for one in map(compared, others) if one.recommended), best)


def groups_of(cells: OwnCells) -> Sequence[str] | None:
    """Return the patients or slides; None if each cell is its own."""
    return cells.groups if len(set(cells.groups)) < len(cells) else None


def recalls(outputs: Outputs, cells: OwnCells, names: Sequence[str]) -> dict[str, float]:
    right = outputs.logits.argmax(1) == cells.labels
    return {name: float(right[cells.labels == i].mean()) for i, name in enumerate(names)}


@dataclass(frozen=True)
class Adaptation:
    """What came of it.

    comparison: None without labelled cells. undivided: classes whose cells are all of one slide or patient.
    written: None if it was not recommended.
    """

    comparison: Comparison | None
    undivided: Sequence[str]
    written: Bundle | None


def adapt_with_labels(
    bundle: Bundle,
    cells: OwnCells,
    out: Path,
    *,
    site: str,
    target: float,
    unlabelled: Pixels | None = None,
    replay: OwnCells | None = None,
    force: bool = False,
    by: str = "",
    data: str = "",
) -> Adaptation:
    """Adapt a bundle to a laboratory's labelled cells, and write it if held-out cells are better for it.

    unlabelled uint8 [n, size, size, 3]: pictures of the same laboratory. replay: cells of others that must
    not be forgotten. force: write it anyway, as not verified. by, data: who adapts, and the cells' name, for
    the report. Raise DataError or BundleError.
    """
    check_cells(cells, bundle.labels)
    parent = Parent.of(bundle)
    starts = parent.starts(cells, unlabelled, replay)
    trial = cross_validate(starts, cells)
    comparison = compare(parent, cells, trial, target)
    single = [bundle.labels[label] for label in undivided(cells.labels, cells.groups)]
    if not (comparison.recommended or force):
        return Adaptation(comparison, single, None)
    adapted = follow(comparison.chosen, starts, cells)
    after, now = comparison.after, datetime.now(UTC)
    described = facts(cells, comparison, bundle)
    reports = {REPORT: json.dumps(asdict(comparison) | {"undivided": single}, indent=2) + "\n"}
    site_record, marks = None, after.proposed
    if comparison.verifies:
        site_record = record(bundle, after, after.recommended, site, now, adapted=True)
        hashes = cells.hashes or [""] * len(cells)
        sha256 = data_hash(hashes, cells.labels.tolist())
        verified = Verified(site, by.strip(), now, data, sha256, adapted=True)
        reports |= verification(bundle, cells, trial.outputs[comparison.chosen], comparison, verified)
    with _weights(bundle, adapted, cells.framed, comparison.temperature, described) as parts:
        written = write(bundle, out, site, site_record, marks, reports, parts)
    return Adaptation(comparison, single, written)


def verification(
    bundle: Bundle, cells: OwnCells, outputs: Outputs, comparison: Comparison, verified: Verified
) -> dict[str, str]:
    """Return the report of an adaptation that its cross-validation verifies, as `leuko verify` writes it.

    outputs: what the cells were judged by.
    """
    report = evaluate(
        cells.labels,
        None,
        softmax(outputs.logits / comparison.temperature),
        names=bundle.labels,
        groups=groups_of(cells),
    )
    figures = verification_page.document(bundle, report, comparison.after, verified)
    return {
        PAGE: verification_page.render(bundle, report, comparison.after, verified),
        FIGURES: json.dumps(figures, indent=2) + "\n",
    }


def adapt_without_labels(bundle: Bundle, unlabelled: Pixels, out: Path, *, site: str) -> Adaptation:
    """Renew the batch statistics from a laboratory's pictures and write the bundle; nothing verifies it."""
    if len(unlabelled) < LEAST_UNLABELLED:
        raise DataError(f"{len(unlabelled)} pictures are too few: give at least {LEAST_UNLABELLED}")
    adapted = renew_statistics(load_network(bundle), unlabelled)
    described = {"unlabelled": len(unlabelled), "parent": named(bundle)}
    with _weights(bundle, adapted, unlabelled, bundle.temperature, described) as parts:
        written = write(bundle, out, site, None, None, {}, parts)
    return Adaptation(None, [], written)


@contextmanager
def _weights(
    bundle: Bundle, network: Network, framed: Pixels, temperature: float, described: dict[str, Any]
) -> Iterator[Adapted]:
    """Write what other weights change in a bundle into a temporary folder."""
    round_to_half(network)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_weights(network, framed, folder, bundle.preprocessing.size)
        picture = folder / KNOWN_ANSWER
        save_known_answer(network, bundle.preprocessing, picture)
        config = {
            "temperature": temperature,
            "known_answer": known_answer(network, bundle.preprocessing, picture, temperature),
            "training": dict(bundle.training) | {"adapted": described},
        }
        yield Adapted(folder, config)


def write_weights(network: Network, framed: Pixels, folder: Path, size: int) -> None:
    save_weights(network, folder / WEIGHTS)
    chosen = framed[np.linspace(0, len(framed) - 1, min(len(framed), RANGES)).astype(int)]
    (folder / GRAPH).write_bytes(quantise(export_graph(network, size), [cell[None] for cell in chosen]))


def facts(cells: OwnCells, comparison: Comparison, bundle: Bundle) -> dict[str, Any]:
    """Return what the bundle records of its adaptation."""
    return {
        "cells": comparison.after.by_class,
        "ridge": comparison.chosen.ridge,
        "statistics_renewed": comparison.chosen.start > 0,
        "balanced_accuracy": {
            "before": comparison.before.balanced_accuracy,
            "after": comparison.after.balanced_accuracy,
        },
        "pictures": sorted(adapted_to(bundle.training) | {sha256[:HASH_DIGITS] for sha256 in cells.hashes}),
        "fingerprint": hashlib.sha256(cells.framed.tobytes() + cells.labels.tobytes()).hexdigest(),
        "parent": named(bundle),
    }


def named(bundle: Bundle) -> dict[str, str]:
    return {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256}


def lines(adaptation: Adaptation) -> Iterator[str]:
    """Yield what a person should know: before and after on held-out cells, and what cannot be known."""
    found = adaptation.comparison
    if found is None:
        yield "Batch statistics renewed. There are no labelled cells: run `leuko verify` on some."
        return
    yield f"{found.after.cells} cells, each judged by a network that was adapted without its group:"
    for name, one in (("before", found.before), ("after", found.after)):
        interval = "interval not known"
        if one.interval is not None:
            interval = f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
        yield (
            f"  {name:7}balanced accuracy {one.balanced_accuracy:.3f} ({interval});"
            f" {marked(one.proposed, one.target)}"
        )
    yield (
        f"  After is the best of {found.tried} adaptations on the same cells, so it is slightly too good:"
        " verify the bundle on cells of other slides."
    )
    for label, before in found.recalls_before.items():
        yield f"  recall of {label}: {before:.2f} → {found.recalls_after[label]:.2f}"
    if adaptation.undivided:
        yield (
            f"The cells of {', '.join(adaptation.undivided)} are of one slide or patient: how well others are"
            " recognised cannot be known."
        )
    yield from verification_page.of_no_class(found.after)
    reason = f"the recall of {', '.join(found.fallen)} falls" if found.fallen else "it is not better"
    if adaptation.written is None:
        yield f"Not recommended: {reason}. Nothing was written; --force writes it."
    elif not found.recommended:
        yield f"Not recommended: {reason}. {UNVERIFIED}"
    elif not found.verifies:
        yield f"No thresholds keep cells of which {exactly(found.after.target)} are right. {UNVERIFIED}"


def marked(marks: Marks | None, target: float) -> str:
    if marks is None:
        return f"no thresholds keep cells of which {exactly(target)} are right"
    return f"{marks.review_share:.0%} to review, {marks.right_when_kept or 0:.3f} of the rest right"
