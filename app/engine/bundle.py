"""Reads a model bundle, and believes nothing in it before its hash is right.

A bundle is a folder. `config.json` names the sha256 of every other file that is used at run time, so
the sha256 of `config.json` itself stands for the whole. Weights are never pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from app.errors import BundleError
from app.evaluation.answer_profile import AnswerProfile, parse
from app.imaging.framing import Preprocessing

FORMAT = 2
WEIGHTS, GRAPH, OOD, KNOWN_ANSWER = (
    "model.safetensors",
    "model.int8.onnx",
    "ood.safetensors",
    "known-answer.png",
)
FILES = (WEIGHTS, GRAPH, OOD, KNOWN_ANSWER)
CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    path: Path
    sha256: str  # of config.json, and so of everything
    name: str
    version: str
    labels: tuple[str, ...]  # in the order of the logits
    preprocessing: Preprocessing
    temperature: float  # logits are divided by it
    review_confidence: float  # review below
    review_ood_score: float  # review above
    known_answer: tuple[float, ...]  # probabilities of known-answer.png
    files: Mapping[str, str]  # name → sha256
    training: Mapping[str, Any]  # recipe and data
    scores: Mapping[str, Any]  # on which set → figures
    reference: AnswerProfile | None = None  # what its answers were like; older bundles have none


def load_bundle(path: Path) -> Bundle:
    """Raises BundleError, naming the file, for anything missing, changed or not understood."""
    raw = _read(path / "config.json")
    try:
        config = json.loads(raw)
        _check(config)
        verify(path, config["files"])
        return _build(path, hashlib.sha256(raw).hexdigest(), config)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path / 'config.json'} is not a bundle's configuration: {error!r}") from error


def verify(path: Path, files: Mapping[str, str]) -> None:
    """Compare every file's sha256 with its entry."""
    if missing := sorted(set(FILES) - set(files)):
        raise BundleError(f"{path / 'config.json'} names no hash for {', '.join(missing)}")
    for name, expected in files.items():
        if Path(name).name != name:
            raise BundleError(f"{path / 'config.json'} names a file outside the bundle: {name!r}")
        found = hashlib.sha256(_read(path / name)).hexdigest()
        if found != expected:
            raise BundleError(
                f"{path / name} has sha256 {found}, config.json says {expected}: it was changed"
            )


def _check(config: Mapping[str, Any]) -> None:
    if config["format"] != FORMAT:
        raise BundleError(
            f"bundle format {config['format']!r} is not {FORMAT}; use a matching version of Leuko"
        )
    if tuple(config["labels"]) != CLASSES:
        raise BundleError(f"labels must be {', '.join(CLASSES)} in this order, not {config['labels']}")
    if len(config["known_answer"]) != len(CLASSES):
        raise BundleError("known_answer needs one probability for each label")
    if not config["temperature"] > 0:
        raise BundleError(f"temperature must be positive, not {config['temperature']}")


def _build(path: Path, sha256: str, config: Mapping[str, Any]) -> Bundle:
    table = config["preprocessing"]
    known = {field.name for field in fields(Preprocessing)}
    if set(table) != known:
        raise BundleError(
            f"preprocessing must give {', '.join(sorted(known))}, not {', '.join(sorted(table))}"
        )
    if table["size"] != 224:
        raise BundleError(f"preprocessing: size must be 224, not {table['size']}")
    if table["framing"] not in ("nucleus", "whole"):
        raise BundleError(f"preprocessing: framing must be nucleus or whole, not {table['framing']!r}")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
    }
    return Bundle(
        path=path,
        sha256=sha256,
        name=str(config["name"]),
        version=str(config["version"]),
        labels=tuple(config["labels"]),
        preprocessing=Preprocessing(**values),
        temperature=float(config["temperature"]),
        review_confidence=float(config["review"]["confidence"]),
        review_ood_score=float(config["review"]["ood_score"]),
        known_answer=tuple(map(float, config["known_answer"])),
        files=dict(config["files"]),
        training=config["training"],
        scores=config["scores"],
        reference=parse(config["reference"], config["labels"]) if "reference" in config else None,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
