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
from app.evaluation.review_thresholds import Flags, Thresholds
from app.evaluation.verification import Answers, Marks, Verification, cells_of, verify
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
    undivided,
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
RANGES = 160  # cells for the int8 ranges

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Comparison:
    """Held-out cells before and after: verifications with the thresholds of each, and recalls by class."""

    chosen: Candidate
    temperature: float
    before: Verification
    after: Verification
    recalls_before: dict[str, float]
    recalls_after: dict[str, float]

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

    def reviewed(self, cells: OwnCells, found: Answers) -> Flags:
        """Return which cells [n] the bundle's thresholds send to review: familiar pictures have their own."""
        judged = cells_of(cells.labels, found)
        kept = judged.keep(self.thresholds)
        if self.familiar is not None and self.styles is not None:
            near = self.styles.distances(describe_all(cells.framed)) <= self.familiar.distance
            kept = np.where(near, judged.keep(self.familiar.thresholds), kept)
        return ~kept

    def starts(
        self, cells: OwnCells, unlabelled: Pixels | None = None, replay: OwnCells | None = None
    ) -> list[Start]:
        """Return the network as it is, and with unlabelled pictures one with batch statistics of theirs."""
        networks = [self.network]
        if unlabelled is not None:
            networks.append(renew_statistics(self.network, np.concatenate([unlabelled, cells.framed])))
        return [begin(network, cells, self.neighbours.known.features, replay) for network in networks]


def compare(parent: Parent, cells: OwnCells, trial: Trial, target: float) -> Comparison:
    """Compare the network with its best adaptation on the cells that each fold held out.

    The best has the least log loss among those that are recommended, else among all.
    """
    outputs, weights = trial.outputs[UNCHANGED], balanced_weights(cells.labels)
    recalls_before = recalls(outputs, cells, parent.labels)

    unchanged = answers(outputs, parent.temperature, parent.neighbours)
    unchanged = replace(unchanged, reviewed=parent.reviewed(cells, unchanged))

    def judge(found: Answers) -> Verification:
        return verify(
            cells.labels,
            found,
            parent.thresholds,
            names=parent.labels,
            groups=cells.groups if len(set(cells.groups)) < len(cells) else None,
            target=target,
        )

    before = judge(unchanged)

    def compared(chosen: Candidate) -> Comparison:
        after = trial.outputs[chosen]
        temperature = round(temperature_for(after.logits, cells.labels, weights), 4)
        # What the bundle did until now is what it did with its own network.
        verified = replace(judge(answers(after, temperature, parent.neighbours)), current=before.current)
        recalls_after = recalls(after, cells, parent.labels)
        return Comparison(chosen, temperature, before, verified, recalls_before, recalls_after)

    first, *others = trial.ranked(cells.labels)
    best = compared(first)
    return best if best.recommended else next((one for one in map(compared, others) if one.recommended), best)


def answers(outputs: Outputs, temperature: float, neighbours: Neighbours) -> Answers:
    probabilities = softmax(outputs.logits / temperature)
    scores = neighbours.score(outputs.features)
    return Answers(probabilities, scores.astype(np.float64), np.zeros(len(scores), bool))


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
) -> Adaptation:
    """Adapt a bundle to a laboratory's labelled cells, and write it if held-out cells are better for it.

    unlabelled uint8 [n, size, size, 3]: pictures of the same laboratory. replay: cells of others that must
    not be forgotten. force: write it anyway. Raise DataError or BundleError.
    """
    check_cells(cells, bundle.labels)
    parent = Parent.of(bundle)
    starts = parent.starts(cells, unlabelled, replay)
    comparison = compare(parent, cells, cross_validate(starts, cells), target)
    single = [bundle.labels[label] for label in undivided(cells)]
    if not (comparison.recommended or force):
        return Adaptation(comparison, single, None)
    adapted = follow(comparison.chosen, starts, cells)
    after, marks = comparison.after, comparison.after.recommended
    site_record = record(bundle, after, marks, site, datetime.now(UTC), adapted=True)
    described = facts(cells, comparison, bundle)
    reports = {REPORT: json.dumps(asdict(comparison) | {"undivided": single}, indent=2) + "\n"}
    with _weights(bundle, adapted, cells.framed, comparison.temperature, described) as parts:
        written = write(bundle, out, site, site_record, marks, reports, parts)
    return Adaptation(comparison, single, written)


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
        low, high = one.interval
        yield (
            f"  {name:7}balanced accuracy {one.balanced_accuracy:.3f} ({low:.3f} to {high:.3f});"
            f" {marked(one.proposed, one.target)}"
        )
    for label, before in found.recalls_before.items():
        yield f"  recall of {label}: {before:.2f} → {found.recalls_after[label]:.2f}"
    if adaptation.undivided:
        yield (
            f"The cells of {', '.join(adaptation.undivided)} are of one slide or patient: how well others are"
            " recognised cannot be known."
        )
    if adaptation.written is None:
        reason = f"the recall of {', '.join(found.fallen)} falls" if found.fallen else "it is not better"
        yield f"Not recommended: {reason}. Nothing was written; --force writes it."


def marked(marks: Marks | None, target: float) -> str:
    if marks is None:
        return f"no thresholds keep cells of which {target:.0%} are right"
    return f"{marks.review_share:.0%} to review, {marks.right_when_kept or 0:.3f} of the rest right"
