"""A made-up bundle's configuration and report, for the tests of the model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from app.engine.bundle import CLASSES
from app.evaluation.report import evaluate
from app.imaging.framing import Preprocessing
from tests.evaluation.cases import random_case
from training.config import TrainConfig, load_recipe

RECIPE = replace(load_recipe("default"), select_on="holdout", monitor="val_accuracy")


def config(recipe: TrainConfig = RECIPE, **changes: Any) -> dict[str, Any]:
    """Return config.json as `leuko-train export` writes it, without hashes of files."""
    facts = {
        "archives": ["blood-cells.zip", "pbc-cells.zip"],
        "images": dict(zip(CLASSES, (4458, 3116, 3206, 4461), strict=True)),
        "sources": dict(zip(CLASSES, (2302, 911, 1053, 2542), strict=True)),
        "fingerprint": "f1" * 32,
    }
    table = {
        "format": 2,
        "name": "wbc-resnet18",
        "version": "1.2.3",
        "architecture": "resnet18",
        "labels": list(CLASSES),
        "preprocessing": asdict(recipe.preprocessing),
        "temperature": 1.2345,
        "review": {"confidence": 0.6172, "ood_score": 1.3859, "share": 0.05},
        "known_answer": [0.25] * 4,
        "files": {},
        "training": {
            "recipe": recipe.as_dict(),
            "data": {"train": facts, "validation": {**facts, "fingerprint": "f2" * 32}},
            "validation": {"n": 176, "accuracy": 0.9081},
        },
        "scores": {},
    }
    copied: dict[str, Any] = json.loads(json.dumps(table | changes))
    return copied


def report(labels: Sequence[int] | None = None, predictions: Sequence[int] | None = None) -> dict[str, Any]:
    """Return report.json as `leuko-train report` writes it; by default for random probabilities."""
    if labels is None:
        true, probabilities = random_case(n=310)
        scores = evaluate(true, None, probabilities, names=CLASSES, groups=np.arange(310).tolist())
    else:
        scores = evaluate(labels, predictions, names=CLASSES, groups=range(len(labels)))
    table = asdict(scores) | {
        "model": {"name": "wbc-resnet18", "version": "1.2.3", "sha256": "ab" * 32},
        "engine": {"name": "openvino", "device": "CPU"},
        "split": "test",
        "archives": ["blood-cells.zip"],
        "fingerprint": "f3" * 32,
        "photos": 71,
        "sources": dict(zip(CLASSES, (13, 6, 4, 48), strict=True)),
        "photos_also_in_train": 0,
        "uncertain_images": 87,
        "resamples": 2000,
        "review": {
            "n": 29, "share": 0.0935, "wrong": 17,
            "reasons": {"blurred": 2, "low_confidence": 23, "out_of_distribution": 9},
            "accuracy_of_the_rest": 0.7531,
        },
        "risk_coverage": {
            "area": 0.0417, "coverage": [i / 20 for i in range(1, 21)],
            "risk": [i / 200 for i in range(1, 21)],
        },
        "float32": {"same_label": 0.9968, "accuracy": 0.6123},
        "without_cell": {"n": 281, "auroc": 0.9512, "reviewed": 0.75},
        "paper_recipe": None,
        "misclassified_photos": [
            {
                "photo": "bccd/7", "label": "monocyte", "images": 155, "wrong": 19,
                "predicted": {"neutrophil": 19},
            },
        ],
        "figures": ["curves.png", "confusion.png", "reliability.png", "risk.png"],
    }  # fmt: skip
    copied: dict[str, Any] = json.loads(json.dumps(table))
    return copied


WHOLE = Preprocessing(framing="whole", white_point=False)
