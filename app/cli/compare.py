"""`leuko compare`: two bundles on the same labelled cells."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from app.archives.images import StoredImage, open_labelled
from app.cli import console as terminal
from app.cli.commands import answers_of, assign, complain_of, failures, hashes_of, ready, refuse_unread, track
from app.cli.verify import hash_of
from app.engine.bundle import Bundle
from app.errors import BundleError, SettingsError, Unusable, naming
from app.evaluation import comparison
from app.evaluation.copies import adapted_to, cautions_of_copies, refuse_two_classes
from app.imaging.decode import decode
from app.imaging.framing import frame_cell
from app.imaging.limits import ImageLimits
from app.inference.offline import Outcome, classify
from app.inference.pipeline import Answer
from app.inference.runtime import Load
from app.inference.service import archive_limits, image_limits
from app.new_folder import new_folder
from app.printable import complain
from app.reports import comparison_page
from app.reports.comparison_page import MOST_PICTURES, Compared, Difference, Opinion
from app.settings import Settings
from app.wire.responses import model_reference

PAGE, FIGURES = "comparison.html", "comparison.json"
SIDE = 112  # of a picture, in pixels


def compare(
    bundles: tuple[str, str],
    path: Path,
    settings: Settings,
    load: Load,
    *,
    out: Path | None = None,
    groups: Path | str | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Compare two bundles on labelled cells, print the figures, and return 0.

    out: a new folder for the report; None: none is written. groups: as in `evaluate`. Raise BundleError if
    the labels differ.
    """
    if out is not None and out.exists():
        raise SettingsError(f"{out} exists already: name another folder with --out")
    console = console or Console()
    first, second = (ready(replace(settings, bundle=bundle), load) for bundle in bundles)
    check_labels(first.bundle, second.bundle)
    limits = image_limits(settings)
    with open_labelled(path, first.bundle.labels, archive_limits(settings)) as images:
        refuse_unread(images)
        units, found = assign(images, groups), images.found
        answered = [
            track(classify(one, found, limits, settings.decode_workers), len(found))
            for one in (first, second)
        ]
        refuse_two_classes(found, hashes_of(answered[0]))
        done = [i for i, both in enumerate(zip(*answered, strict=True)) if all(map(is_answered, both))]
        if not done:
            error = next(iter((failures(answered[0]) | failures(answered[1])).values()))
            raise Unusable(f"no image could be classified by both models; first error: {error.detail}")
        pairs = [(answered[0][i], answered[1][i]) for i in done]
        differences = list(differing(pairs, first.bundle, limits, pictures=MOST_PICTURES if out else 0))
    complain_of(images.left_out)
    result = comparison.compare(
        np.array([found[i].label for i in done]),
        (
            answers_of(first.bundle, answered[0]).take(done),
            answers_of(second.bundle, answered[1]).take(done),
        ),
        (first.bundle.rules, second.bundle.rules),
        names=first.bundle.labels,
        groups=None if units is None else [units[i] for i in done],
    )
    hashes = hashes_of([pair[0] for pair in pairs])
    known = adapted_to(first.bundle.training) | adapted_to(second.bundle.training)
    result = replace(result, warnings=[*cautions_of_copies(hashes, known), *result.warnings])
    compared = Compared(
        first.bundle,
        second.bundle,
        datetime.now(UTC),
        path.name,
        hash_of([pair[0] for pair in pairs]),
        failed=len(found) - len(done),
    )
    text = json.dumps(document(result, differences, compared), indent=2, allow_nan=False)
    if out is not None:
        with naming(out), new_folder(out) as draft:
            page = comparison_page.render(result, differences, compared)
            (draft / PAGE).write_text(page, encoding="utf-8")
            (draft / FIGURES).write_text(f"{text}\n", encoding="utf-8")
    if as_json or not console.is_terminal:
        print(text, file=console.file)
    else:
        tables = terminal.comparison_tables(result, len(differences))
        console.print(*tables, *terminal.failures(answered[0]), sep="\n")
    if out is not None:
        complain(f"wrote {out / PAGE}")
    return 0


def check_labels(first: Bundle, second: Bundle) -> None:
    """Raise BundleError, which says how the labels of two bundles differ."""
    if first.labels == second.labels:
        return
    if set(first.labels) == set(second.labels):
        how = "the same labels in another order"
    else:
        parts = [
            f"only {one.name} {one.version} has {', '.join(only)}"
            for one, other in ((first, second), (second, first))
            if (only := [label for label in one.labels if label not in other.labels])
        ]
        how = "; ".join(parts)
    raise BundleError(f"bundles with different labels cannot be compared: {how}")


def is_answered(outcome: Outcome) -> bool:
    return isinstance(outcome.answer, Answer)


def differing(
    pairs: Sequence[tuple[Outcome, Outcome]], bundle: Bundle, limits: ImageLimits, pictures: int
) -> Iterator[Difference]:
    """Yield the cells to which two bundles give different labels, up to `pictures` of them with a picture."""
    shown = 0
    for first, second in pairs:
        one, other = opinion(first), opinion(second)
        if one.label == other.label:
            continue
        image = first.image
        picture = draw(image, bundle, limits) if shown < pictures else None
        shown += 1
        yield Difference(image.name, bundle.labels[image.label], one, other, picture)


def opinion(outcome: Outcome) -> Opinion:
    assert isinstance(outcome.answer, Answer)
    found = outcome.answer.prediction
    return Opinion(found.label, found.confidence, found.review)


def draw(image: StoredImage, bundle: Bundle, limits: ImageLimits) -> str:
    """Return the cell as the network sees it, as a data URI."""
    pixels = frame_cell(decode(image.read(), limits), bundle.preprocessing).pixels
    buffer = BytesIO()
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"


def document(
    result: comparison.Comparison, differences: Sequence[Difference], compared: Compared
) -> dict[str, object]:
    """Return the report as JSON, without pictures."""
    return {
        "at": compared.at.isoformat(timespec="seconds"),
        "first": model_reference(compared.first).model_dump(),
        "second": model_reference(compared.second).model_dump(),
        "data": {"name": compared.data, "sha256": compared.data_sha256, "failed": compared.failed},
        "comparison": asdict(result),
        "differences": [
            {name: value for name, value in asdict(one).items() if name != "picture"} for one in differences
        ],
    }
