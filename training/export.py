"""Export of a run's best checkpoint as a bundle, written only if its precisions agree with float32."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from app.engine.bundle import FILES, FORMAT, GRAPH, KNOWN_ANSWER, OOD, WEIGHTS
from app.engine.classifier import Bank, load_classifier, softmax
from app.imaging.quality import QualityLimits
from training.config import TrainConfig, read_config
from training.data import Row, classes_of
from training.drafts import draft_of_folder, recover_folder
from training.errors import ExportError
from training.fit import read_facts
from training.graph import export_graph, quantise
from training.known_answers import known_answer, save_known_answer
from training.laboratories import judge
from training.loading import Batch, evaluation_loader
from training.module import BEST, load_checkpoint
from training.network import Network, round_to_half
from training.paper import PAPER_RECIPE
from training.review import RIGHT_WHEN_KEPT, calibrate_elsewhere, limits_at_home, temperature_of
from training.rows import FOLDED, choose_rows, other_cells
from training.scored import (
    HeldOut,
    References,
    Scored,
    balanced_sample,
    find_references,
    judge_rows,
    score,
    score_folds,
)
from training.selection import check_archives

CALIBRATION_IMAGES = 40  # per class and archive, for the int8 ranges; more did not help
INT8_AGREEMENT = 0.985  # lowest share of each laboratory's validation images with float32's label in int8
READABLE = 0o644  # safetensors makes files for the owner only; the service runs as another user
HALF_AGREEMENT = 0.999  # the same for half precision; a near tie may change its label

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Changes:
    """n of `of` labels are others than in float32."""

    n: int
    of: int

    @property
    def same(self) -> float:
        return 1 - self.n / self.of

    def most(self, agreement: float) -> int:
        """Return how many may change. One of a few says nothing about the share among many."""
        return max(1, int((1 - agreement) * self.of + 1e-9)) if agreement < 1 else 0


@dataclass(frozen=True)
class Agreement:
    """How far the validation labels agree with float32.

    int8: by laboratory. int8_drift: mean over images of the largest change of a probability in int8.
    """

    half: Changes
    int8: Mapping[str, Changes]
    int8_drift: float

    @property
    def int8_whole(self) -> Changes:
        return Changes(sum(one.n for one in self.int8.values()), sum(one.of for one in self.int8.values()))

    @property
    def int8_worst(self) -> float:
        return min(one.same for one in self.int8.values())


def export(
    rows: Sequence[Row],
    run: Path,
    out: Path,
    *,
    name: str,
    version: str,
    int8_agreement: float = INT8_AGREEMENT,
    right_when_kept: float = RIGHT_WHEN_KEPT,
    replace: bool = False,
) -> Agreement:
    """Write the bundle `out` from `run`; return the agreement figures. ExportError leaves `out` unchanged.

    int8_agreement: least share of each laboratory's validation labels that int8 must not change.
    replace: even if `out` is a bundle already.
    right_when_kept: with `select_on = "laboratories"`, least share of cells without a review mark that are
    right in laboratories left out.
    """
    recover_folder(out)
    check_replaceable(out, replace)
    config = read_config(run / "config.json")
    train, validation = choose_rows(rows, config)
    network = load_checkpoint(run / BEST, config)
    facts = read_facts(run, train, validation)
    check_archives([*train, *validation, *other_cells(rows)])
    unrounded = score(network, evaluation_loader(validation, config))
    round_to_half(network)
    with draft_of_folder(out) as draft:
        draft.mkdir()
        scored = score(network, evaluation_loader(validation, config))
        others = other_cells(rows)
        references = write_parts(draft, network, train, others, config)
        seen = judge_rows(validation, scored, references)
        held_out = score_folds(run, train, validation, others, config) if config.select_on in FOLDED else seen
        table = describe(
            draft, network, config, held_out, seen, references.distance, right_when_kept, classes_of(train)
        )
        table |= {"name": name, "version": version}
        table["training"]["data"] = facts
        (draft / "config.json").write_text(json.dumps(table, indent=2) + "\n")
        laboratories = [row.laboratory for row in validation]
        agreed = agreement(draft, unrounded, scored, evaluation_loader(validation, config), laboratories)
        check(agreed, int8_agreement)
        if (out / PAPER_RECIPE).is_file():  # of the paper's recipe, whichever bundle it lies in
            shutil.copy(out / PAPER_RECIPE, draft)
        check_replaceable(out, replace)  # again, since the export took minutes
    return agreed


def write_parts(
    draft: Path, network: Network, train: Sequence[Row], others: Sequence[Row], config: TrainConfig
) -> References:
    """Write weights, int8 graph, OOD features, styles and known-answer image; config.json has each hash."""
    save_weights(network, draft / WEIGHTS)
    sample = evaluation_loader(balanced_sample(train, CALIBRATION_IMAGES), config)
    images = [pixels[None] for batch, _, _ in sample for pixels in batch.numpy()]
    (draft / GRAPH).write_bytes(quantise(export_graph(network, config.preprocessing.size), images))
    references = find_references(network, train, others, config)
    neighbours, styles = references.neighbours, references.styles
    arrays = {"scale": np.array([neighbours.scale], np.float32)} | stored(neighbours.known, "bank", "k")
    arrays |= {"style_centres": styles.centres, "style_whitening": styles.whitening}
    if neighbours.others is not None:
        arrays |= stored(neighbours.others, "others", "others_k")
    save_arrays(arrays, draft / OOD)
    save_known_answer(network, config.preprocessing, draft / KNOWN_ANSWER)
    for file in FILES:
        (draft / file).chmod(READABLE)
    return references


def save_weights(network: Network, path: Path) -> None:
    """Write the weights in half precision."""
    state = network.trunk.state_dict()
    save_file({key: t.half().contiguous() if t.is_floating_point() else t for key, t in state.items()}, path)
    path.chmod(READABLE)


def stored(bank: Bank, features: str, k: str) -> dict[str, NDArray[Any]]:
    return {features: bank.features.astype(np.float16), k: np.array([bank.k])}


def describe(
    draft: Path,
    network: Network,
    config: TrainConfig,
    held_out: HeldOut,
    seen: HeldOut,
    distance: float,
    right_when_kept: float,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Return config.json, with temperature and review thresholds set on the validation images.

    seen: the scores of the network itself, trained on these images if laboratories were left out. distance:
    see `References`.
    """
    unseen = config.select_on == "laboratories"
    if unseen:
        temperature, review = calibrate_elsewhere(held_out, seen, distance, right_when_kept)
    else:
        temperature = temperature_of(held_out)
        review = limits_at_home(held_out, temperature)
    right = held_out.logits.argmax(1) == held_out.labels
    figures = [asdict(figure) for figure in judge(held_out, temperature, review)] if unseen else None
    return {
        "format": FORMAT,
        "name": "",
        "version": "",
        "architecture": "resnet18",
        "labels": list(classes),
        "preprocessing": asdict(config.preprocessing),
        "temperature": temperature,
        # The limits of quality were measured on frames around a nucleus.
        "review": asdict(review)
        | {"quality": asdict(QualityLimits()) if config.preprocessing.framing == "nucleus" else None},
        "known_answer": known_answer(network, config.preprocessing, draft / KNOWN_ANSWER, temperature),
        "files": {file: hashlib.sha256((draft / file).read_bytes()).hexdigest() for file in FILES},
        "training": {
            "recipe": config.for_bundle(),
            "validation": {
                "n": len(right),
                "accuracy": round(float(np.average(right, weights=held_out.weights)), 4),
            },
        }
        | ({"laboratories": figures} if figures else {}),
        "scores": {},
    }


def agreement(
    draft: Path,
    unrounded: Scored,
    scored: Scored,
    loader: DataLoader[Batch],
    laboratories: Sequence[str],
) -> Agreement:
    """Compare with float32 on the validation images; laboratories: of each image.

    Raise BundleError if the service would not start with the draft.
    """
    classifier = load_classifier(draft, "openvino")
    classifier.check()
    bundle, engine = classifier.bundle, classifier.engine
    logits = np.concatenate([engine.infer(pixels.numpy()).logits for pixels, _, _ in loader])
    drift = np.abs(softmax(logits / bundle.temperature) - softmax(scored.logits / bundle.temperature)).max(1)
    labels = scored.logits.argmax(1)
    changed, of = logits.argmax(1) != labels, np.array(laboratories)
    return Agreement(
        half=Changes(int((unrounded.logits.argmax(1) != labels).sum()), len(labels)),
        int8={name: Changes(int(changed[of == name].sum()), int((of == name).sum())) for name in set(of)},
        int8_drift=float(drift.mean()),
    )


def check(agreed: Agreement, int8_agreement: float) -> None:
    """Raise ExportError if half precision or int8 changes too many labels. One is never too many."""
    if agreed.half.n > agreed.half.most(HALF_AGREEMENT):
        raise ExportError(
            f"half precision changes {agreed.half.n} of {agreed.half.of} validation labels; "
            f"at least {HALF_AGREEMENT:.1%} must stay"
        )
    for name, changes in sorted(agreed.int8.items()):
        if changes.n > changes.most(int8_agreement):
            raise ExportError(
                f"the int8 graph changes {changes.n} of {changes.of} validation labels of {name}; at least"
                f" {int8_agreement:.1%} must stay: train longer, or accept fewer with --int8-agreement"
            )


def check_replaceable(out: Path, replace: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out} exists and is not a folder; choose another name")
    if not any(out.iterdir()):
        return
    if not (out / "config.json").is_file():
        raise ExportError(f"{out} exists and is not a bundle; choose another folder")
    if not replace:
        raise ExportError(f"{out} is a bundle already: choose another folder, or add --replace")
