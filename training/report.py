"""Scoring of a bundle with the serving engine; writes report, figures and model card into it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from app.engine.classifier import Classifier, Prediction, load_classifier
from app.evaluation.answer_profile import Seen, summarise
from app.evaluation.answer_profile import dump as dump_reference
from app.evaluation.report import Report, evaluate
from training.card import model_card
from training.config import config_from, read_config
from training.data import Progress, Row, classes_of, fingerprint
from training.drafts import draft_of_folder, recover_folder
from training.errors import DataError
from training.figures import draw_confusion, draw_curves, draw_reliability, draw_risk, reliability
from training.findings import (
    agreement,
    headline,
    misclassified_photos,
    ood_separation,
    review_counts,
    risk_coverage,
    separation_by_type,
)
from training.history import History, mean_history, read_history
from training.paper import PAPER_RECIPE, has_classes
from training.results import CONFUSION, CURVES, RELIABILITY, RISK
from training.rows import FOLDED, fold_paths
from training.selection import check_archives
from training.served import classify, frame_background
from training.split import thin

REPORT = "report.json"  # in the bundle
RESAMPLES = 10_000  # bootstrap samples of photos
WINDOWS = 4  # squares without a cell, per photo
FIGURES = (CURVES, CONFUSION, RELIABILITY, RISK)
HELD_OUT = {
    "holdout": "held-out photos",
    "folds": "held-out fold",
    "laboratories": "left-out laboratory",
    "val": "validation",
    "test": "test",
}

Table = dict[str, Any]


def report(
    bundle: Path,
    rows: Sequence[Row],
    *,
    split: str,
    run: Path | None,
    paper: Path | None = None,
    engine: str = "auto",
    progress: Progress | None = None,
    load: Callable[[Path, str], Classifier] = load_classifier,
    replace: bool = False,
) -> Report:
    """Score the bundle on a split and write the results into it; confidence intervals are over photos.

    rows: the whole manifest; run: the bundle's training run, for the learning curves; paper: a scored bundle
    of the paper's recipe, shown beside the paper's figures; replace: even if the bundle has a report already.
    The bundle's folder is replaced as a whole. Raise DataError if split or run do not fit.
    """
    recover_folder(bundle)
    classes = classes_of(rows)
    if paper and not has_classes(classes):
        raise DataError(f"--paper: the paper has other classes than {', '.join(classes)}")
    if (bundle / REPORT).is_file() and not replace:
        raise DataError(f"{bundle} has a report already: copy the bundle, or add --replace")
    chosen = rows_of_split(rows, split)
    others = [row for row in rows if not row.known and row.split == "test"]
    check_archives([*chosen, *others])
    classifier = load(bundle, engine)
    check_labels(classifier.bundle.labels, classes, bundle)
    config: Table = json.loads((bundle / "config.json").read_text())
    history = read_own_history(run, config["training"]["recipe"]) if run else None
    classifier.warm_up(1)
    answers = classify(classifier, chosen, progress)
    exact = classify(load(bundle, "torch"), chosen, progress)
    without_cell = classify(classifier, thin(chosen, WINDOWS, 0), progress, frame_background)
    other_answers = classify(classifier, others, progress)
    scores = score(chosen, answers, classifier.bundle.labels)
    table = asdict(scores) | describe(classifier, config, rows, chosen, answers)
    table |= {
        "float32": agreement(chosen, answers, exact),
        "without_cell": ood_separation(answers, without_cell),
        "other_cells": separation_by_type(answers, others, other_answers),
        "paper_recipe": read_paper_recipe(bundle, paper),
    }
    seen = [
        Seen(answer.label, answer.confidence, answer.ood_score, answer.review, answer.review_reasons)
        for answer in answers
    ]
    reference = summarise(seen, classifier.bundle.labels, f"{', '.join(table['archives'])}, {split}")
    with draft_of_folder(bundle) as draft:
        shutil.copytree(bundle, draft)
        draw(draft / "figures", scores, answers, chosen, table["risk_coverage"])
        if history is not None:
            draw_history(draft / "figures", history, config["training"]["recipe"])
        table["figures"] = [name for name in FIGURES if (draft / "figures" / name).is_file()]
        if table["paper_recipe"] is not None:
            (draft / PAPER_RECIPE).write_text(dump(table["paper_recipe"]))
        (draft / REPORT).write_text(dump(table))
        (draft / "README.md").write_text(model_card(config, table), encoding="utf-8")
        record(draft / "config.json", config | {"reference": dump_reference(reference)}, scores, split)
    return scores


def check_labels(labels: Sequence[str], classes: Sequence[str], bundle: Path) -> None:
    """Raise DataError unless the bundle's labels are the manifest's classes, in any order."""
    if set(labels) != set(classes):
        raise DataError(
            f"{bundle} has the classes {', '.join(labels)}, the manifest {', '.join(classes)}: give the"
            " manifest that the bundle was trained with"
        )


def rows_of_split(rows: Sequence[Row], split: str) -> list[Row]:
    chosen = [row for row in rows if row.known and row.split == split]
    if not chosen:
        known = ", ".join(sorted({row.split for row in rows if row.known}))
        raise DataError(f"the manifest has no images of split {split!r}, only of {known}")
    return chosen


def read_paper_recipe(bundle: Path, paper: Path | None) -> Table | None:
    """Return the scores of the paper's recipe, None if there are none.

    With `paper`, from that bundle's report; else the copy in `bundle` that an earlier report made.
    """
    if paper:
        return headline(json.loads((paper / REPORT).read_text()))
    copy = bundle / PAPER_RECIPE
    scores: Table | None = json.loads(copy.read_text()) if copy.is_file() else None
    return scores


def read_own_history(run: Path, recipe: Mapping[str, Any]) -> History:
    """Return the run's log; raise DataError if the bundle was exported from a run of another recipe."""
    config = read_config(run / "config.json")
    if config_from(config.for_bundle()) != config_from(recipe):
        raise DataError(f"{run} is not the run that the bundle was exported from: their recipes differ")
    if config.select_on in FOLDED:
        return mean_history([read_history(path) for path in fold_paths(run)])
    return read_history(run)


def score(rows: Sequence[Row], answers: Sequence[Prediction], labels: Sequence[str]) -> Report:
    """Evaluate the answers; images are grouped by photo."""
    return evaluate(
        [labels.index(row.label) for row in rows],
        [labels.index(answer.label) for answer in answers],
        [answer.probabilities for answer in answers],
        names=labels,
        groups=[row.source for row in rows],
        resamples=RESAMPLES,
    )


def describe(
    classifier: Classifier,
    config: Table,
    rows: Sequence[Row],
    chosen: Sequence[Row],
    answers: Sequence[Prediction],
) -> Table:
    """Return the rest of the report: model, engine, data, review, risk and misclassified photos."""
    photos = {row.source for row in chosen}
    trained = {row.source for row in rows if row.split == "train"}
    cells_trained = {(row.label, row.source) for row in rows if row.split == "train" and row.certain}
    return {
        "model": {
            "name": config["name"],
            "version": config["version"],
            "sha256": sha256_before_scores(config),
        },
        "engine": {"name": classifier.engine.name, "device": classifier.engine.device},
        "split": chosen[0].split,
        "archives": sorted({Path(row.archive).name for row in chosen}),
        "fingerprint": fingerprint(chosen),
        "photos": len(photos),
        "sources": {
            label: len({row.source for row in chosen if row.label == label})
            for label in classifier.bundle.labels
        },
        "photos_also_in_train": len(photos & trained),
        "divided": sorted({row.label for row in chosen if (row.label, row.source) in cells_trained}),
        "uncertain_images": sum(not row.certain for row in chosen),
        "resamples": RESAMPLES,
        "review": review_counts(chosen, answers),
        "risk_coverage": risk_coverage(chosen, answers),
        "misclassified_photos": misclassified_photos(chosen, answers),
    }


def sha256_before_scores(config: Table) -> str:
    """Return the sha256 of config.json as exported, which scoring does not change."""
    exported = {key: value for key, value in config.items() if key != "reference"}
    return hashlib.sha256(dump(exported | {"scores": {}}).encode()).hexdigest()


def draw(
    folder: Path, scores: Report, answers: Sequence[Prediction], rows: Sequence[Row], curve: Table
) -> None:
    draw_confusion(scores.confusion_matrix, scores.labels, folder / CONFUSION)
    right = np.array([answer.label == row.label for row, answer in zip(rows, answers, strict=True)])
    bins = reliability(np.array([answer.confidence for answer in answers]), right)
    assert scores.ece is not None  # None only without probabilities
    draw_reliability(bins, scores.ece, folder / RELIABILITY)
    draw_risk(np.array(curve["coverage"]), np.array(curve["risk"]), curve["area"], folder / RISK)


def draw_history(folder: Path, history: History, recipe: Mapping[str, Any]) -> None:
    held_out = HELD_OUT[recipe["select_on"]]
    draw_curves(history, folder / CURVES, monitor=recipe["monitor"], held_out=held_out)


def record(path: Path, config: Table, scores: Report, split: str) -> None:
    """Write the headline scores into config.json; the hashes in it are of other files and stay valid."""
    intervals, sources = scores.confidence_intervals, scores.groups
    assert sources is not None  # None only without photos
    headlines = {
        "split": split,
        "n": scores.n,
        "photos": sources.n,
        "accuracy": rounded(scores.accuracy),
        "macro_f1": rounded(scores.macro_avg.f1),
        "mse": rounded(scores.mse),
        "ece": rounded(scores.ece),
        "interval": {
            "level": intervals.level,
            "unit": "photo",
            "accuracy": [rounded(end) for end in intervals.accuracy],
            "macro_f1": [rounded(end) for end in intervals.macro_f1],
        },
    }
    path.write_text(dump(config | {"scores": headlines}))


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def dump(table: Mapping[str, Any]) -> str:
    return json.dumps(table, indent=2, allow_nan=False) + "\n"
