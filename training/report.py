"""Scores a bundle as it is served, and writes into it what is found: report, figures, model card."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import EngineError
from app.vision.classifier import Classifier, Prediction, load_classifier
from app.vision.decode import decode
from app.vision.evaluation import Report, evaluate
from app.vision.framing import Cell, Preprocessing, frame_cell
from training.card import model_card
from training.config import config_from, read_config
from training.data import Progress, Row, fingerprint
from training.errors import DataError
from training.figures import (
    History,
    draw_confusion,
    draw_curves,
    draw_reliability,
    read_history,
    reliability,
)
from training.pictures import Pictures
from training.results import CONFUSION, CURVES, RELIABILITY

BATCH = 32  # images, the service's largest unless it is told otherwise
READERS = 4  # threads that decode
RESAMPLES = 10_000  # of whole photos
HELD_OUT = {"holdout": "held-out photos", "val": "validation", "test": "test"}

Table = dict[str, Any]


def report(
    bundle: Path,
    rows: Sequence[Row],
    *,
    split: str,
    run: Path | None,
    engine: str = "auto",
    progress: Progress | None = None,
    load: Callable[[Path, str], Classifier] = load_classifier,
) -> Report:
    """rows: the whole manifest; run: where the bundle was trained, for the curves; intervals: over photos."""
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        known = ", ".join(sorted({row.split for row in rows}))
        raise DataError(f"the manifest has no pictures of split {split!r}, only of {known}")
    classifier = load(bundle, engine)
    config: Table = json.loads((bundle / "config.json").read_text())
    history = read_own_history(run, config["training"]["recipe"]) if run else None
    classifier.warm_up(1)
    answers = classify(classifier, chosen, progress)
    found = score(chosen, answers, classifier.bundle.labels)
    draw(bundle / "figures", found, answers, chosen, history, config["training"]["recipe"])
    table = asdict(found) | describe(classifier, config, rows, chosen, answers)
    table["figures"] = [
        name for name in (CURVES, CONFUSION, RELIABILITY) if (bundle / "figures" / name).is_file()
    ]
    (bundle / "report.json").write_text(dump(table))
    (bundle / "README.md").write_text(model_card(config, table), encoding="utf-8")
    record(bundle / "config.json", config, found, split)
    return found


def read_own_history(run: Path, recipe: Mapping[str, Any]) -> History:
    """The run's log, if it is the run that the bundle comes from."""
    history = read_history(run)
    if config_from(read_config(run / "config.json").for_bundle()) != config_from(recipe):
        raise DataError(f"{run} is not the run that the bundle was exported from: their recipes differ")
    return history


def classify(classifier: Classifier, rows: Sequence[Row], progress: Progress | None) -> list[Prediction]:
    """In batches, as the service does."""
    pictures = {archive: Pictures(Path(archive)) for archive in {row.archive for row in rows}}
    preprocessing = classifier.bundle.preprocessing
    answers: list[Prediction] = []
    shown = iter(progress(rows, len(rows)) if progress else rows)
    with ThreadPoolExecutor(READERS) as pool:
        while batch := list(islice(shown, BATCH)):
            contents = [pictures[row.archive].read(row.path) for row in batch]
            cells = list(pool.map(read_cell, batch, contents, [preprocessing] * len(batch)))
            for row, answer in zip(batch, classifier.classify(cells), strict=True):
                if isinstance(answer, EngineError):
                    raise EngineError(f"{row.archive}: {row.path}: {answer.detail}")
                answers.append(answer)
    return answers


def read_cell(row: Row, data: bytes, preprocessing: Preprocessing) -> Cell:
    # the report names the pictures by the manifest's fingerprint, so they must be those pictures
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise DataError(
            f"{row.archive}: {row.path} has changed since the manifest was made; "
            "make that again with `leuko-train data`"
        )
    return frame_cell(decode(data), preprocessing)


def score(rows: Sequence[Row], answers: Sequence[Prediction], labels: Sequence[str]) -> Report:
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
    """What was scored on what, beside the scores."""
    photos = {row.source for row in chosen}
    trained = {row.source for row in rows if row.split == "train"}
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
        "uncertain_images": sum(not row.certain for row in chosen),
        "resamples": RESAMPLES,
        "review": review_counts(chosen, answers),
        "misclassified_photos": misclassified_photos(chosen, answers),
    }


def sha256_before_scores(config: Table) -> str:
    """Of config.json as exported: the same however often the bundle is scored."""
    return hashlib.sha256(dump(config | {"scores": {}}).encode()).hexdigest()


def review_counts(rows: Sequence[Row], answers: Sequence[Prediction]) -> Table:
    """How many images are sent to a person, why, and how many of the wrong ones are among them."""
    reviewed = np.array([answer.review for answer in answers])
    wrong = np.array([answer.label != row.label for row, answer in zip(rows, answers, strict=True)])
    reasons = Counter(reason for answer in answers for reason in answer.review_reasons)
    return {
        "n": int(reviewed.sum()),
        "share": float(reviewed.mean()),
        "low_confidence": reasons["low_confidence"],
        "out_of_distribution": reasons["out_of_distribution"],
        "wrong": int((wrong & reviewed).sum()),
        "accuracy_of_the_rest": None if reviewed.all() else float((~wrong)[~reviewed].mean()),
    }


def misclassified_photos(rows: Sequence[Row], answers: Sequence[Prediction]) -> list[Table]:
    """The photos with a wrong image, those with most first."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row, answer in zip(rows, answers, strict=True):
        found[row.source, row.label][answer.label] += 1
    tables = [
        {
            "photo": photo,
            "label": label,
            "images": called.total(),
            "wrong": called.total() - called[label],
            "predicted": {name: n for name, n in called.most_common() if name != label},
        }
        for (photo, label), called in sorted(found.items())
    ]
    return sorted((table for table in tables if table["wrong"]), key=lambda table: -table["wrong"])


def draw(
    folder: Path,
    found: Report,
    answers: Sequence[Prediction],
    rows: Sequence[Row],
    history: History | None,
    recipe: Mapping[str, Any],
) -> None:
    if history is not None:
        held_out = HELD_OUT[recipe["select_on"]]
        draw_curves(history, folder / CURVES, monitor=recipe["monitor"], held_out=held_out)
    draw_confusion(found.confusion_matrix, found.labels, folder / CONFUSION)
    right = np.array([answer.label == row.label for row, answer in zip(rows, answers, strict=True)])
    bins = reliability(np.array([answer.confidence for answer in answers]), right)
    assert found.ece is not None  # it is given probabilities
    draw_reliability(bins, found.ece, folder / RELIABILITY)


def record(path: Path, config: Table, found: Report, split: str) -> None:
    """Headline scores into config.json, whose hashes are of the files used at run time and stay true."""
    intervals, sources = found.confidence_intervals, found.groups
    assert sources is not None  # it is given photos
    scores = {
        "split": split,
        "n": found.n,
        "photos": sources.n,
        "accuracy": short(found.accuracy),
        "macro_f1": short(found.macro_avg.f1),
        "mse": short(found.mse),
        "ece": short(found.ece),
        "interval": {
            "level": intervals.level,
            "unit": "photo",
            "accuracy": [short(end) for end in intervals.accuracy],
            "macro_f1": [short(end) for end in intervals.macro_f1],
        },
    }
    draft = path.with_suffix(".json.new")
    draft.write_text(dump(config | {"scores": scores}))
    draft.replace(path)  # a bundle is never without a whole config.json


def short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def dump(table: Mapping[str, Any]) -> str:
    return json.dumps(table, indent=2, allow_nan=False) + "\n"
