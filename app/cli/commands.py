"""The commands `leuko predict`, `evaluate`, `drift` and `sample`. Each returns its exit status."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from PIL import Image
from rich.console import Console

from app.archives.file_labels import assign_groups, read_mapping
from app.archives.image_files import LeftOut, left_out_line
from app.archives.images import Images, find_images, open_labelled
from app.cli import console as terminal
from app.cli.remote import connect
from app.engine.bundle import CLASSES, Bundle, load_bundle
from app.engine.classifier import Classifier
from app.errors import BadLabels, BundleError, LeukoError, Unreadable, Unusable, naming
from app.evaluation.answer_profile import dump, summarise
from app.evaluation.copies import refuse_two_classes
from app.evaluation.review_thresholds import Rules
from app.evaluation.verification import TARGET, Answers
from app.imaging import dicom_writer
from app.inference.offline import Outcome, classify
from app.inference.pipeline import Answer
from app.inference.runtime import Load
from app.inference.scoring import Progress, Scored, judge, record
from app.inference.service import archive_limits, image_limits
from app.observability.drift import Window, check_labels, compare, read_reference, worst
from app.printable import complain, few, printable
from app.registry.fetch import locate
from app.registry.https import without_secrets
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
    all_cells: bool = False,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Classify images and print the predictions. Return 1 if an image failed, else 0.

    url: of a service that classifies them; None: classify on this machine. key: for that service. all_cells:
    classify every leukocyte of each image.
    """
    limits = image_limits(settings)
    if url is not None:
        with connect(url, key) as remote:
            images = find_images(paths, stdin, limits.max_bytes)
            outcomes = track(remote.classify(images.found, all_cells=all_cells), len(images.found))
        model, labels = remote.model, remote.labels
    else:
        classifier = ready(settings, load)
        images = find_images(paths, stdin, limits.max_bytes)
        max_cells = settings.max_cells if all_cells else None
        answers = classify(classifier, images.found, limits, settings.decode_workers, max_cells=max_cells)
        outcomes = track(answers, len(images.found))
        model, labels = model_reference(classifier.bundle), classifier.bundle.labels
    console = console or Console()
    if as_json or not console.is_terminal:
        _print(_predictions(model, labels, outcomes), console)
    else:
        console.print(terminal.predictions_table(outcomes, labels), *terminal.failures(outcomes), sep="\n")
    complain_of(images.left_out)
    return 1 if any(isinstance(outcome.answer, LeukoError) for outcome in outcomes) else 0


def evaluate(
    path: Path,
    settings: Settings,
    load: Load,
    *,
    groups: Path | str | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Score the bundle on a labelled archive and print the report. Return 1 if a file cannot be read, else 0.

    groups: a file that maps file names to sources, or a pattern whose first group is the source; None: the
    intervals are over images.
    """
    console = console or Console()
    classifier, limits = ready(settings, load), image_limits(settings)
    bundle = classifier.bundle
    with open_labelled(path, bundle.labels, archive_limits(settings)) as images:
        found = images.found
        units = assign(images, groups)
        progress = Progress(len(found))
        outcomes = track(classify(classifier, found, limits, settings.decode_workers), len(found))
    progress.done = len(outcomes)
    scored = score(classifier, outcomes, units)
    if as_json or not console.is_terminal:
        document = evaluation("", bundle, found, scored, progress, left_out=images.left_out)
        _print(document.model_dump(exclude={"request_id"}), console)
    else:
        tables = terminal.report_tables(scored.report, scored.verification.current)
        console.print(*tables, *terminal.failures(outcomes), sep="\n")
    complain_of(images.left_out)
    unread = sum(isinstance(outcome.answer, Unreadable) for outcome in outcomes)
    if unread:
        complain(f"{unread} files or folders cannot be read and are not in the report")
    return 1 if unread else 0


def drift(
    logs: Sequence[Path],
    settings: Settings,
    window: Window,
    *,
    save: Path | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Compare the answers in audit logs with a reference. Return 3 if they have drifted, else 0.

    The reference is the file settings.reference, else the bundle's. save: where to write a new reference.
    Raise BundleError if there is no reference, Unusable if there are no answers to compare.
    """
    bundle = load_bundle(locate(settings))
    reference = bundle.reference if settings.reference == NONE else read_reference(Path(settings.reference))
    if reference is None:
        raise BundleError(
            f"{without_secrets(settings.bundle)} has no reference: run `leuko-train report` on it"
        )
    check_labels(reference, bundle.labels)
    window.model_sha256, window.labels = bundle.sha256, bundle.labels
    span = f"{window.since or 'begin'} to {window.until or 'end'}"
    profile = summarise(window.read(logs), bundle.labels, span)
    if not profile.n:
        raise Unusable(
            f"the logs have no answers of this bundle in that time, and {window.other_models} of other models"
        )
    shifts = compare(reference, profile)
    if save is not None:
        _replace(save, f"{json.dumps(dump(profile), indent=2)}\n".encode())
    console = console or Console()
    if as_json or not console.is_terminal:
        verdicts = [asdict(shift) | {"verdict": shift.verdict} for shift in shifts]
        ignored = {
            "other_models": window.other_models,
            "repeated": window.repeated,
            "broken_lines": window.broken,
        }
        compared = {"reference": dump(reference), "found": dump(profile), "shifts": verdicts}
        _print({"n": profile.n, **ignored, **compared}, console)
    else:
        console.print(*terminal.drift_tables(reference, profile, shifts, window), sep="\n")
    return 3 if worst(shifts) == "drifted" else 0


def _replace(path: Path, data: bytes) -> None:
    """Write a file as a whole; if that fails, it is as it was. Raise OSError."""
    exists = path.exists()
    if exists and not path.is_file():  # such as /dev/stdout
        with naming(path):
            path.write_bytes(data)
        return
    path = path.resolve()  # a link stays
    draft = path.with_name(f"{uuid4().hex}.draft")
    try:
        with naming(path), draft.open("xb") as file:
            if exists:
                draft.chmod(stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def sample(label: str, output: str | None, *, seed: int, size: tuple[int, int]) -> int:
    """Draw a smear of a class, or of each class for `all`, and print the paths. Return 0.

    output: a file, a folder, or `-` for standard output; for `all` it is always a folder. None: the current
    folder. size: width and height in pixels. Raise BadLabels.
    """
    if label not in (*CLASSES, "all"):
        raise BadLabels(f"{label!r} cannot be drawn; choose {', '.join(CLASSES)} or all")
    if output == "-" and label == "all":
        raise BadLabels("standard output takes one image: name a class, not all")
    width, height = size
    for name in CLASSES if label == "all" else (label,):
        smear = draw_smear(name, seed=seed, width=width, height=height)
        if output == "-":
            smear.save(sys.stdout.buffer, "PNG")
        else:
            path = _sample_path(name, Path(output or "."), several=label == "all")
            _save(smear, path)
            print(printable(str(path)))
    return 0


def _save(smear: Image.Image, path: Path) -> None:
    if path.suffix.lower() == ".dcm":
        _replace(path, dicom_writer.write(smear))
    else:
        data = io.BytesIO()
        smear.save(data, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG", quality=92)
        _replace(path, data.getvalue())


def _sample_path(name: str, output: Path, *, several: bool) -> Path:
    folder = output if several or output.is_dir() else output.parent
    folder.mkdir(parents=True, exist_ok=True)
    return output if folder != output else folder / f"{name}.png"


def ready(settings: Settings, load: Load) -> Classifier:
    """Load the bundle and check its known answer."""
    classifier = load(settings)
    classifier.warm_up(1)
    return classifier


def complain_of(left_out: LeftOut) -> None:
    """Say in one line how many files were left out, and why."""
    if line := left_out_line(left_out):
        complain(line)


def refuse_unread(images: Images) -> None:
    """Raise Unusable if the labelled images are not complete."""
    if images.unread:
        names = few(sorted(images.unread), ", ")
        raise Unusable(f"{len(images.unread)} files or folders cannot be read: {names}")


def track(outcomes: Iterable[Outcome], total: int) -> list[Outcome]:
    """Collect the outcomes beside a progress bar."""
    return list(terminal.track(outcomes, total, Console(stderr=True)))


def assign(images: Images, groups: Path | str | None) -> list[bytes] | None:
    """Return the source of each image, by a file or a pattern; of what cannot be read, an empty one.

    None without groups. Raise BadLabels.
    """
    if groups is None:
        return None
    names = [image.name for image in images.found if image.name not in images.unread]
    grouping = groups if isinstance(groups, str) else read_mapping(groups)
    assigned = dict(zip(names, assign_groups(names, grouping), strict=True))
    return [assigned.get(image.name, b"") for image in images.found]


def score(
    classifier: Classifier,
    outcomes: Sequence[Outcome],
    units: list[bytes] | None,
    target: float = TARGET,
    chosen: Rules | None = None,
) -> Scored:
    """Evaluate the answers. units: the source of each image. target, chosen: see `verify`.

    Raise BadLabels if a picture is in two classes.
    """
    bundle, images = classifier.bundle, [outcome.image for outcome in outcomes]
    answers, others = answers_of(bundle, outcomes), classifier.scores_of_others
    hashes = hashes_of(outcomes)
    refuse_two_classes(images, hashes)
    return judge(bundle, images, units, answers, failures(outcomes), hashes, target, chosen, others)


def hashes_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the SHA-256 of each image, empty for one that failed."""
    return [outcome.answer.image_sha256 if isinstance(outcome.answer, Answer) else "" for outcome in outcomes]


def answers_of(bundle: Bundle, outcomes: Sequence[Outcome]) -> Answers:
    answers = Answers.empty(len(outcomes), len(bundle.labels))
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome.answer, Answer):
            record(answers, index, outcome.answer.prediction)
    return answers


def failures(outcomes: Sequence[Outcome]) -> dict[int, LeukoError]:
    return {i: outcome.answer for i, outcome in enumerate(outcomes) if isinstance(outcome.answer, LeukoError)}


def _predictions(model: ModelReference, labels: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the response of `POST /predict` without its request_id."""
    good = [
        (i, outcome.image.name, outcome.answer.cells)
        for i, outcome in enumerate(outcomes)
        if not isinstance(outcome.answer, LeukoError)
    ]
    cells = [prediction(i, name, cell, labels).model_dump() for i, name, found in good for cell in found]
    empty = [{"index": i, "filename": name} for i, name, found in good if not found]
    bad = [
        image_problem(error, i, outcomes[i].image.name).model_dump()
        for i, error in failures(outcomes).items()
    ]
    return {"model": model.model_dump(), "predictions": cells, "empty": empty, "errors": bad}


def _print(document: dict[str, Any], console: Console) -> None:
    print(json.dumps(document, indent=2, allow_nan=False), file=console.file)
