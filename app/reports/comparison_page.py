"""A comparison of two models as an HTML page that prints well, with pictures of the cells they differ on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from app.engine.bundle import Bundle
from app.evaluation.comparison import Change, Comparison
from app.reports.printed_page import page, percent, table, warnings

MOST_PICTURES = 200  # on the page; the JSON names all cells
KINDS = ("The first is right", "The second is right", "Both are wrong")


@dataclass(frozen=True)
class Opinion:
    """A model's answer to a cell."""

    label: str
    confidence: float
    review: bool


@dataclass(frozen=True)
class Difference:
    """A cell that two models label differently. picture: a data URI; None beyond `MOST_PICTURES`."""

    filename: str
    label: str
    first: Opinion
    second: Opinion
    picture: str | None = None


@dataclass(frozen=True)
class Compared:
    """What was compared: two bundles, when, on which cells. failed: cells that a model could not answer."""

    first: Bundle
    second: Bundle
    at: datetime
    data: str
    data_sha256: str
    failed: int


def render(comparison: Comparison, differences: Sequence[Difference], compared: Compared) -> str:
    """Return the page."""
    first, second = compared.first, compared.second
    title = f"{first.name} {first.version} and {second.name} {second.version} on the same cells"
    facts = (f"{compared.at:%Y-%m-%d %H:%M %Z}", "First and second stand for the models in this order")
    return page(
        title,
        facts,
        warnings(comparison.warnings),
        _figures(comparison),
        _classes(comparison),
        _test(comparison),
        _differences(differences),
        _provenance(comparison, compared),
    )


def changed(change: Change) -> str:
    """Return a difference and its interval, in percentage points."""
    interval = ""
    if change.interval is not None:
        low, high = (f"{100 * bound:+.1f}" for bound in change.interval)
        interval = f" ({low} to {high})"
    return f"{100 * change.difference:+.1f}{interval}"


def mcnemar_sentence(comparison: Comparison) -> str:
    """Return McNemar's test in a sentence."""
    rights = comparison.rights
    return (
        f"Right with the first model alone: {rights.only_first}; with the second alone: {rights.only_second}."
        " If both were equally good, numbers as unequal as these or more would occur by chance with a"
        f" probability of {comparison.p_value:.3g} (McNemar's exact test)."
    )


def _figures(comparison: Comparison) -> Iterable[str]:
    unit = "patients or slides" if comparison.unit == "group" else "cells"
    first, second = comparison.first, comparison.second
    yield f"<h2>{comparison.cells} cells</h2>"
    scores = (("Accuracy", comparison.accuracy), ("Balanced accuracy", comparison.balanced_accuracy))
    rows = [(name, percent(one.first), percent(one.second), changed(one)) for name, one in scores]
    kept = ("Sent to review", percent(first.review_share), percent(second.review_share), "")
    right = ("Right among the rest", percent(first.right_when_kept), percent(second.right_when_kept), "")
    head = ("", "first", "second", "difference in points")
    caption = f"In brackets: 95 % interval over {unit}. Review by each model's own thresholds."
    yield table([*rows, kept, right], head, caption=caption, kind="figures")


def _classes(comparison: Comparison) -> Iterable[str]:
    yield "<h2>By class</h2>"
    rows = []
    for label, one in comparison.by_class.items():
        recall = one.recall
        shares = (percent(recall.first), percent(recall.second), changed(recall)) if recall else ("–",) * 3
        rights = one.rights
        counts = (rights.both, rights.only_first, rights.only_second, rights.neither)
        rows.append((label, one.cells, *shares, *counts))
    head = ("", "cells", "first", "second", "difference", "both", "only first", "only second", "neither")
    yield table(rows, head, caption="Recalls, and the numbers of cells by which model is right.")


def _test(comparison: Comparison) -> Iterable[str]:
    yield f"<h2>Chance or not</h2><p>{escape(mcnemar_sentence(comparison))}</p>"


def _differences(differences: Sequence[Difference]) -> Iterable[str]:
    yield f"<h2>Cells that they label differently: {len(differences)}</h2>"
    if unseen := sum(one.picture is None for one in differences):
        yield f"<p>Without a picture here: {unseen}. The JSON file names all.</p>"
    for title in KINDS:
        chosen = [one for one in differences if one.picture is not None and _kind(one) == title]
        if chosen:
            yield f'<h3>{title}</h3><div class="cells">'
            yield from map(_figure, chosen)
            yield "</div>"


def _kind(one: Difference) -> str:
    if one.first.label == one.label:
        return KINDS[0]
    return KINDS[1] if one.second.label == one.label else KINDS[2]


def _figure(one: Difference) -> str:
    lines = (
        f"labelled {one.label}",
        f"first: {_opinion(one.first)}",
        f"second: {_opinion(one.second)}",
        one.filename,
    )
    caption = "<br>".join(map(escape, lines))
    return f'<figure><img src="{one.picture}" alt=""><figcaption>{caption}</figcaption></figure>'


def _opinion(one: Opinion) -> str:
    return f"{one.label} {one.confidence:.2f}{', to review' if one.review else ''}"


def _provenance(comparison: Comparison, compared: Compared) -> Iterable[str]:
    yield "<h2>Provenance</h2>"
    rows = [
        (
            "Labelled cells",
            f"{compared.data}: {comparison.cells}, and {compared.failed} that could not be classified",
        ),
        ("Patients or slides", "not given" if comparison.groups is None else comparison.groups),
        ("SHA-256 of the cells and labels", compared.data_sha256),
        ("SHA-256 of the first model", compared.first.sha256),
        ("SHA-256 of the second model", compared.second.sha256),
    ]
    yield table(rows, kind="mono")
