"""What `leuko predict`, `evaluate`, `drift` and `sample` do, without the service."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from rich.console import Console

from app.archives.file_labels import assign_groups, parse_mapping
from app.archives.images import find_images, open_labelled
from app.cli import console as shown
from app.cli.remote import connect
from app.engine.bundle import CLASSES, load_bundle
from app.engine.classifier import Classifier
from app.errors import BadLabels, BundleError, LeukoError, Unusable
from app.evaluation.answer_profile import dump, summarise
from app.imaging import dicom_writer
from app.inference.offline import Outcome, classify
from app.inference.pipeline import Answer
from app.inference.runtime import Load
from app.inference.scoring import Progress, Scored, judge
from app.inference.service import archive_limits, image_limits
from app.observability.drift import Window, compare, read_reference, worst
from app.registry.fetch import locate
from app.samples.smear import draw_smear
from app.settings import NONE, Settings
from app.wire.problems import image_problem
from app.wire.responses import evaluation, model_reference, prediction
from app.wire.schemas import ModelReference


def predict(
    paths: Sequence[str],
    settings: Settings,
    load: Load,
    *,
    stdin: BinaryIO,
    url: str | None = None,
    key: str | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """url: of a service that is to classify; without one this machine does."""
    limits = image_limits(settings)
    if url is not None:
        with connect(url, key) as remote:
            sources = list(find_images(paths, stdin, limits.max_bytes))
            outcomes = _track(remote.classify(sources), len(sources))
        model, labels = remote.model, remote.labels
    else:
        classifier = _ready(settings, load)
        sources = list(find_images(paths, stdin, limits.max_bytes))
        outcomes = _track(classify(classifier, sources, limits, settings.decode_workers), len(sources))
        model, labels = model_reference(classifier.bundle), classifier.bundle.labels
    console = console or Console()
    if as_json or not console.is_terminal:
        _print(_predictions(model, labels, outcomes), console)
    else:
        console.print(shown.predictions_table(outcomes, labels), *shown.left_out(outcomes), sep="\n")
    return 0 if all(isinstance(outcome.answer, Answer) for outcome in outcomes) else 1


def evaluate(
    path: Path,
    settings: Settings,
    load: Load,
    *,
    groups: Path | str | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """groups: a file that maps file names to sources, or a pattern; None bootstraps over images."""
    console = console or Console()
    classifier, limits = _ready(settings, load), image_limits(settings)
    bundle = classifier.bundle
    with open_labelled(path, bundle.labels, archive_limits(settings)) as sources:
        units = _groups([source.name for source in sources], groups)
        progress = Progress(len(sources))
        found = classify(classifier, sources, limits, settings.decode_workers)
        outcomes = _track(found, len(sources))
    progress.done = len(outcomes)
    scored = _score(bundle.labels, outcomes, units)
    if as_json or not console.is_terminal:
        document = evaluation("", bundle, sources, scored, progress)
        _print(document.model_dump(exclude={"request_id"}), console)
    else:
        console.print(*shown.report_tables(scored.report), *shown.left_out(outcomes), sep="\n")
    return 0


def drift(
    logs: Sequence[Path],
    settings: Settings,
    window: Window,
    *,
    save: Path | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """The reference is settings.reference, else the bundle's. 0, or 3 where the answers have drifted."""
    bundle = load_bundle(locate(settings))
    reference = bundle.reference if settings.reference == NONE else read_reference(Path(settings.reference))
    if reference is None:
        raise BundleError(f"{settings.bundle} carries no reference: score it anew with leuko-train report")
    window.model_sha256 = bundle.sha256
    span = f"{window.since or 'begin'} to {window.until or 'end'}"
    found = summarise(window.read(logs), bundle.labels, span)
    if not found.n:
        raise Unusable(
            f"no answer of this bundle lies within that time; {window.other_models} are of other models"
        )
    shifts = compare(reference, found)
    if save is not None:
        save.write_text(json.dumps(dump(found), indent=2) + "\n")
    console = console or Console()
    if as_json or not console.is_terminal:
        verdicts = [asdict(shift) | {"verdict": shift.verdict} for shift in shifts]
        passed_over = {
            "other_models": window.other_models,
            "repeated": window.repeated,
            "broken_lines": window.broken,
        }
        compared = {"reference": dump(reference), "found": dump(found), "shifts": verdicts}
        _print({"n": found.n, **passed_over, **compared}, console)
    else:
        console.print(*shown.drift_tables(reference, found, shifts, window), sep="\n")
    return 3 if worst(shifts) == "drifted" else 0


def sample(label: str, output: str | None, *, seed: int, size: tuple[int, int]) -> int:
    """output: a file, a folder, or `-` for standard output; `all` makes a folder of it."""
    if label not in (*CLASSES, "all"):
        raise BadLabels(f"{label!r} is not a class; draw {', '.join(CLASSES)} or all")
    if output == "-" and label == "all":
        raise BadLabels("standard output takes one picture, not all")
    width, height = size
    for name in CLASSES if label == "all" else (label,):
        smear = draw_smear(name, seed=seed, width=width, height=height)
        if output == "-":
            smear.save(sys.stdout.buffer, "PNG")
        else:
            path = _sample_path(name, Path(output or "."), several=label == "all")
            _save(smear, path)
            print(path)
    return 0


def _save(smear: Image.Image, path: Path) -> None:
    if path.suffix.lower() == ".dcm":
        path.write_bytes(dicom_writer.write(smear))
    else:
        smear.save(path, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG", quality=92)


def _sample_path(name: str, output: Path, *, several: bool) -> Path:
    folder = output if several or output.is_dir() else output.parent
    folder.mkdir(parents=True, exist_ok=True)
    return output if folder != output else folder / f"{name}.png"


def _ready(settings: Settings, load: Load) -> Classifier:
    classifier = load(settings)
    classifier.warm_up(1)  # for the known answer
    return classifier


def _track(found: Iterable[Outcome], total: int) -> list[Outcome]:
    return list(shown.track(found, total, Console(stderr=True)))


def _groups(names: Sequence[str], groups: Path | str | None) -> list[str] | None:
    if groups is None:
        return None
    if isinstance(groups, str):
        return assign_groups(names, groups)
    try:
        return assign_groups(names, parse_mapping(groups.read_bytes()))
    except OSError as error:
        raise BadLabels(f"{groups} cannot be read: {error.strerror}") from None


def _score(labels: Sequence[str], outcomes: Sequence[Outcome], units: list[str] | None) -> Scored:
    probabilities = np.full((len(outcomes), len(labels)), np.nan)
    for row, one in zip(probabilities, outcomes, strict=True):
        if isinstance(one.answer, Answer):
            row[:] = one.answer.prediction.probabilities
    return judge(labels, [one.source for one in outcomes], units, probabilities, _failures(outcomes))


def _failures(outcomes: Sequence[Outcome]) -> dict[int, LeukoError]:
    return {i: one.answer for i, one in enumerate(outcomes) if isinstance(one.answer, LeukoError)}


def _predictions(model: ModelReference, labels: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """As `POST /predict` answers, less the request's id."""
    good = [
        prediction(i, one.source.name, one.answer, labels).model_dump()
        for i, one in enumerate(outcomes)
        if isinstance(one.answer, Answer)
    ]
    bad = [
        image_problem(error, i, outcomes[i].source.name).model_dump()
        for i, error in _failures(outcomes).items()
    ]
    return {"model": model.model_dump(), "predictions": good, "errors": bad}


def _print(document: dict[str, Any], console: Console) -> None:
    print(json.dumps(document, indent=2, allow_nan=False), file=console.file)
