"""`leuko-train adapt`: a laboratory's own cells → a bundle of its own, if it is better there."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from app.engine.bundle import GRAPH, KNOWN_ANSWER, WEIGHTS, Bundle, SiteRecord
from app.engine.classifier import Neighbours, read_neighbours, softmax
from app.evaluation.review_thresholds import Thresholds
from app.evaluation.verification import Answers, Verification, verify
from app.imaging.decode import decode
from app.imaging.framing import frame_cell
from app.registry.site_bundle import Adapted, write
from training.adapt import Candidate, Outputs, OwnCells, Pixels, Trial, balanced_weights, run
from training.calibration import temperature_for
from training.export import round_to_half
from training.graph import export_graph, quantise
from training.network import Network

RECALL_FALLS = 0.05  # most that a class may lose
UNCHANGED = Candidate(0, 0.0)  # the bundle as it is
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
        """Return the classes whose recall falls by more than `RECALL_FALLS`."""
        return [
            name
            for name, recall in self.recalls_before.items()
            if self.recalls_after[name] < recall - RECALL_FALLS
        ]

    @property
    def recommended(self) -> bool:
        better = self.after.balanced_accuracy > self.before.balanced_accuracy
        return better and not self.fallen


def compare(bundle: Bundle, cells: OwnCells, trial: Trial, target: float) -> Comparison:
    """Compare the bundle with its best adaptation on the cells that each fold held out."""
    chosen = trial.best(cells.labels)
    neighbours = read_neighbours(bundle.path)
    before, after = trial.outputs[UNCHANGED], trial.outputs[chosen]
    temperature = round(temperature_for(after.logits, cells.labels, balanced_weights(cells.labels)), 4)

    def judge(outputs: Outputs, temperature: float) -> Verification:
        return verify(
            cells.labels,
            answers(outputs, temperature, neighbours),
            Thresholds(bundle.review_confidence, bundle.review_ood_score),
            names=bundle.labels,
            groups=cells.groups if len(set(cells.groups)) < len(cells) else None,
            target=target,
        )

    return Comparison(
        chosen,
        temperature,
        judge(before, bundle.temperature),
        judge(after, temperature),
        recalls(before, cells, bundle.labels),
        recalls(after, cells, bundle.labels),
    )


def answers(outputs: Outputs, temperature: float, neighbours: Neighbours) -> Answers:
    probabilities = softmax(outputs.logits / temperature)
    scores = neighbours.score(outputs.features)
    return Answers(probabilities, scores, np.zeros(len(scores), bool))


def recalls(outputs: Outputs, cells: OwnCells, names: Sequence[str]) -> dict[str, float]:
    right = outputs.logits.argmax(1) == cells.labels
    return {name: float(right[cells.labels == i].mean()) for i, name in enumerate(names)}


def write_adapted(
    bundle: Bundle,
    adapted: Network,
    cells: OwnCells,
    comparison: Comparison,
    site: SiteRecord,
    out: Path,
) -> Bundle:
    """Write the bundle with these weights. Its thresholds are those of the held-out cells."""
    round_to_half(adapted)
    marks = comparison.after.proposed or comparison.after.current
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_weights(adapted, cells.framed, folder, bundle.preprocessing.size)
        config = {
            "temperature": comparison.temperature,
            "known_answer": known_answer(adapted, bundle, comparison.temperature),
            "training": dict(bundle.training) | {"adapted": facts(cells, comparison, bundle)},
        }
        return write(bundle, out, site, marks.thresholds, marks.review_share, {}, Adapted(folder, config))


def write_weights(network: Network, framed: Pixels, folder: Path, size: int) -> None:
    state = network.trunk.state_dict()
    halves = {key: t.half().contiguous() if t.is_floating_point() else t for key, t in state.items()}
    save_file(halves, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)
    chosen = framed[np.linspace(0, len(framed) - 1, min(len(framed), RANGES)).astype(int)]
    (folder / GRAPH).write_bytes(quantise(export_graph(network, size), [cell[None] for cell in chosen]))


def known_answer(network: Network, bundle: Bundle, temperature: float) -> list[float]:
    cell = frame_cell(decode((bundle.path / KNOWN_ANSWER).read_bytes()), bundle.preprocessing)
    with torch.inference_mode():
        logits = run(network, cell.pixels[None].copy()).logits
    return [round(float(p), 6) for p in softmax(logits / temperature)[0]]


def facts(cells: OwnCells, comparison: Comparison, bundle: Bundle) -> dict[str, Any]:
    """Return what the bundle records of its adaptation."""
    return {
        "cells": comparison.after.by_class,
        "way": comparison.chosen.way,
        "balanced_accuracy": {
            "before": comparison.before.balanced_accuracy,
            "after": comparison.after.balanced_accuracy,
        },
        "fingerprint": hashlib.sha256(cells.framed.tobytes() + cells.labels.tobytes()).hexdigest(),
        "parent": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
    }
