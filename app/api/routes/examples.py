"""Examples for the API's documentation; tests check them against the schemas.

No required field is null, since FastAPI omits nulls from the document.
"""

from __future__ import annotations

from typing import Any

from app.api.openapi import REQUEST_ID

SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
LABELS = ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]
MODEL = {"name": "wbc-resnet18", "version": "1.0.0", "sha256": SHA256}

PREDICTIONS = {
    "request_id": REQUEST_ID,
    "model": MODEL,
    "predictions": [
        {
            "index": 0,
            "filename": "cell.jpg",
            "image_sha256": SHA256,
            "label": "neutrophil",
            "confidence": 0.97,
            "probabilities": {"eosinophil": 0.01, "lymphocyte": 0.01, "monocyte": 0.01, "neutrophil": 0.97},
            "ood_score": 0.94,
            "review": False,
            "review_reasons": [],
            "frame": {"left": 81.5, "top": 40.0, "width": 142.0, "height": 142.0, "nucleus": True},
            "cam": None,
        }
    ],
    "errors": [
        {
            "type": "/problems/undecodable_image",
            "title": "Image cannot be decoded",
            "status": 422,
            "detail": "the JPEG data is truncated, corrupt or of an unsupported variant",
            "code": "undecodable_image",
            "index": 1,
            "filename": "cut.jpg",
        }
    ],
}

_SURE = {"label": "neutrophil", "confidence": 0.97, "image_sha256": SHA256}
_UNSURE = {
    "label": "eosinophil",
    "confidence": 0.61,
    "image_sha256": SHA256[::-1],
    "review_reasons": ["low_confidence"],
}
PREDICTED = {"predictions": [_SURE, _UNSURE], "specimen": "S-1", "accession": "A-1"}
SIGNED = {
    "predictions": [_SURE, _UNSURE | {"reviewed": "neutrophil"}],
    "specimen": "S-1",
    "accession": "A-1",
    "reviewer": "A. Smith",
}
CHANGED = {
    "index": 1,
    "filename": "2.jpg",
    "image_sha256": SHA256[::-1],
    "label": "eosinophil",
    "reviewed": "neutrophil",
}
FORMER = {
    "fingerprint": SHA256,
    "status": "final",
    "reviewer": "A. Smith",
    "counts": {"eosinophil": 0, "lymphocyte": 0, "monocyte": 0, "neutrophil": 2, "unidentified": 0},
    "changes": [CHANGED],
}
CORRECTED = SIGNED | {
    "predictions": [_SURE, _UNSURE | {"reviewed": "unidentified"}],
    "reviewer": "B. Jones",
    "replaces": SHA256,
    "former": FORMER,
}
CELLS: dict[str, dict[str, Any]] = {
    "predicted": {"summary": "earlier predictions: a preliminary report", "value": PREDICTED},
    "signed": {"summary": "reviewed and signed: a final report", "value": SIGNED},
    "corrected": {"summary": "a correction of a signed report", "value": CORRECTED},
}

DIFFERENTIAL = {
    "request_id": REQUEST_ID,
    "model": MODEL,
    "site": {"name": "Haematology, General Hospital", "verified_at": "2026-11-30T09:00:00+00:00"},
    "specimen": "S-1",
    "accession": "A-1",
    "status": "preliminary",
    "fingerprint": SHA256,
    "unreviewed_fingerprint": SHA256,
    "n": 2,
    "leukocytes": 2,
    "counts": {"eosinophil": 1, "lymphocyte": 0, "monocyte": 0, "neutrophil": 1},
    "model_counts": {"eosinophil": 1, "lymphocyte": 0, "monocyte": 0, "neutrophil": 1},
    "not_a_cell": 0,
    "agreement": {"reviewed": 0, "kept": 0},
    "changes": [],
    "percent": {"eosinophil": 50.0, "lymphocyte": 0.0, "monocyte": 0.0, "neutrophil": 50.0},
    "per_100_leukocytes": {},
    "intervals": {
        "level": 0.95,
        "unit": "percent",
        "wilson": {
            "eosinophil": [9.45, 90.55],
            "lymphocyte": [0.0, 65.76],
            "monocyte": [0.0, 65.76],
            "neutrophil": [9.45, 90.55],
        },
        "exact": {
            "eosinophil": [1.26, 98.74],
            "lymphocyte": [0.0, 84.19],
            "monocyte": [0.0, 84.19],
            "neutrophil": [1.26, 98.74],
        },
    },
    "intervals_per_100_leukocytes": {"level": 0.95, "unit": "per 100 leukocytes", "wilson": {}, "exact": {}},
    "review": [
        {
            "index": 1,
            "filename": "2.jpg",
            "image_sha256": SHA256,
            "label": "eosinophil",
            "confidence": 0.61,
            "reasons": ["low_confidence"],
        }
    ],
    "warnings": [
        {
            "code": "few_cells",
            "detail": "Cells classified: 2. A differential count needs at least 100.",
        },
        {
            "code": "classified_cells_only",
            "detail": "Percentages are of classified cells: the model knows 4 classes, no basophils, bands,"
            " immature granulocytes, blasts or nucleated erythrocytes. Any other cell is counted as one of"
            " its classes.",
        },
    ],
    "errors": [],
}

REPORT = {
    "request_id": REQUEST_ID,
    "n": 8,
    "labels": LABELS,
    "accuracy": 0.875,
    "per_class": {
        "eosinophil": {"precision": 1.0, "recall": 0.5, "f1": 0.6667, "specificity": 1.0, "support": 2},
        "lymphocyte": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "specificity": 1.0, "support": 2},
        "monocyte": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "specificity": 1.0, "support": 2},
        "neutrophil": {"precision": 0.6667, "recall": 1.0, "f1": 0.8, "specificity": 0.8333, "support": 2},
    },
    "macro_avg": {"precision": 0.9167, "recall": 0.875, "f1": 0.8667, "support": 8},
    "weighted_avg": {"precision": 0.9167, "recall": 0.875, "f1": 0.8667, "support": 8},
    "mse": 1.125,
    "rmse": 1.0607,
    "confusion_matrix": [[1, 0, 0, 1], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]],
    "balanced_accuracy": 0.875,
    "cohen_kappa": 0.8333,
    "matthews_corrcoef": 0.8468,
    "log_loss": 0.3106,
    "brier": 0.1874,
    "ece": 0.0612,
    "roc_auc_ovr": 0.9792,
    "confidence_intervals": {
        "level": 0.95,
        "unit": "group",
        "accuracy": [0.75, 1.0],
        "macro_f1": [0.7333, 1.0],
    },
    "groups": {"n": 5, "accuracy": 0.8, "correct": 4},
}

EVALUATION = {
    **REPORT,
    "model": MODEL,
    "verification": {
        "cells": 8,
        "groups": 5,
        "by_class": {"eosinophil": 2, "lymphocyte": 2, "monocyte": 2, "neutrophil": 2},
        "balanced_accuracy": 0.875,
        "level": 0.95,
        "unit": "group",
        "interval": [0.75, 1.0],
        "target": 0.95,
        "current": {
            "thresholds": {"confidence": 0.6, "ood_score": 1.2},
            "review_share": 0.125,
            "right_when_kept": 0.8571,
            "familiar": {"confidence": 0.3, "ood_score": 7.7},
            "others_marked": 0.87,
        },
        "proposed": {
            "thresholds": {"confidence": 0.74, "ood_score": 1.1},
            "review_share": 0.25,
            "right_when_kept": 1.0,
            "familiar": {"confidence": 0.74, "ood_score": 5.2},
            "others_marked": 0.901,
        },
        "curve": [
            {"confidence": 0.98, "kept": 0.5, "right": 1.0},
            {"confidence": 0.51, "kept": 1.0, "right": 0.875},
        ],
        "warnings": ["8 cells say little: use at least 100."],
        "chosen": None,
        "familiar_cells": 6,
    },
    "elapsed_seconds": 0.05,
    "images_per_second": 180.0,
    "misclassified": [
        {
            "filename": "TEST/EOSINOPHIL/7.jpeg",
            "label": "eosinophil",
            "predicted": "neutrophil",
            "confidence": 0.51,
        }
    ],
    "errors": [],
    "warnings": [{"code": "files_left_out", "detail": "1 file was left out: not an image (1)."}],
}

EVENTS = """\
event: progress
data: {"done":0,"total":2487,"images_per_second":0.0}

event: result
data: {"request_id":"…","n":2487,"accuracy":0.97,"…":"…"}

"""

OUTCOMES = {
    "labels": ["eosinophil", "eosinophil", "lymphocyte", "monocyte"],
    "probabilities": [[0.9, 0, 0, 0.1], [0.3, 0, 0, 0.7], [0, 1, 0, 0], [0, 0.2, 0.8, 0]],
    "groups": ["photo 1", "photo 1", "photo 2", "photo 3"],
}

MODEL_CARD = {
    **MODEL,
    "labels": LABELS,
    "codes": {
        "eosinophil": "26450-7",
        "lymphocyte": "26478-8",
        "monocyte": "26485-3",
        "neutrophil": "26511-6",
    },
    "preprocessing": {"size": 112, "framing": "nucleus", "margin": 2.6},
    "temperature": 1.3,
    "review": {
        "confidence": 0.9,
        "ood_score": 2.0,
        "familiar": {"distance": 7.0, "confidence": 0.5, "ood_score": 3.0},
    },
    "training": {"recipe": "laboratories", "data": "…"},
    "scores": {"test": {"accuracy": 0.97}},
    "site": {
        "name": "Haematology, General Hospital",
        "verified_at": "2026-11-30T09:00:00+00:00",
        "cells": 400,
        "balanced_accuracy": 0.91,
        "interval": [0.87, 0.94],
        "review_share": 0.18,
        "right_when_kept": 0.96,
        "adapted": False,
        "parent_sha256": SHA256,
    },
    "engine": "openvino",
    "device": "CPU",
    "service_version": "0.1.0",
    "limits": {
        "max_body_mib": 512,
        "max_image_mib": 16,
        "max_pixels": 25_000_000,
        "max_side": 12_000,
        "max_files": 256,
        "max_cells": 256,
        "max_archive_entries": 200_000,
        "deadline_s": 30.0,
        "evaluate_deadline_s": 1800.0,
    },
}
