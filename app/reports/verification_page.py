"""A verification as an HTML page that prints well: figures, curve, limits, and room for a signature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape

from app.engine.bundle import Bundle
from app.evaluation.report import Report
from app.evaluation.review_thresholds import Kept, thinned
from app.evaluation.verification import Marks, Verification, exactly, right_interval
from app.reports.printed_page import SIGN, bullets, page, percent, table, warnings

# Agreement of devices and of people, to read one's own figures beside.
PUBLISHED = (
    (
        "CellaVision DM96, before a person's review: 89.2 % of cells in the right class",
        "Briggs et al. 2009, Int J Lab Hematol, doi:10.1111/j.1751-553X.2007.01002.x",
    ),
    (
        "CellaVision DC-1 on leukaemia samples, before against after a person's review: kappa 0.52",
        "Diagnostics 2025, 15, 2029, doi:10.3390/diagnostics15162029",
    ),
    (
        "Two counts of 200 cells by people differ within the limits of Rümke's table",
        "CLSI H20-A2, Reference Leukocyte (WBC) Differential Count",
    ),
)
LIMITS = (
    "The figures hold for cells like these: the same stain, microscope, camera and kinds of patients.",
    "Thresholds are judged on the cells that they were chosen on: of others, less is right, with few cells as"
    " much less as the lower end of the interval says.",
    "The cells are of the model's classes: how many cells of no class go to review, they do not show.",
    "Verify again after a change of any of them, and after every change of the model.",
    "Percentages of a patient's cells also depend on how the cells were found and chosen.",
    "Not for diagnosis: a person reviews every result.",
)

PAGE, FIGURES = "verification.html", "verification.json"
NOBODY = "(nobody named)"
CROSS_VALIDATION = "cross-validation"
CROSS_VALIDATED = (
    "Adapted; judged by cross-validation: each cell by a network that was adapted without its group, not by"
    " the network of this bundle. How far to adapt was chosen on the same cells, so the figures are slightly"
    " too good: verify the bundle on cells of other slides."
)
THRESHOLDS = ("", "confidence at least", "OOD score at most", "sent to review", "right when kept")
WIDTH, HEIGHT, MARGIN = 460, 260, 44  # of the curve, in pixels
RIGHT = 24  # room for half of the last tick's text
LOWEST = 0.5  # of the curve's vertical axis


@dataclass(frozen=True)
class Verified:
    """What was verified: where, when, by whom, with which cells.

    by: empty if nobody is named. data_sha256: see `data_hash`. adapted: the model was adapted to these cells,
    and each was judged by a network that was adapted without its group.
    """

    site: str
    by: str
    at: datetime
    data: str
    data_sha256: str
    adapted: bool = False


def render(bundle: Bundle, report: Report, verification: Verification, verified: Verified) -> str:
    """Return the page."""
    title = f"Verification of {bundle.name} {bundle.version}"
    if verified.adapted:
        title += ", adapted"
    facts = (verified.site, f"{verified.at:%Y-%m-%d %H:%M %Z}", f"by {verified.by or NOBODY}")
    return page(
        title,
        facts,
        warnings([CROSS_VALIDATED] * verified.adapted + verification.warnings),
        _figures(verification),
        _classes(report),
        _thresholds(verification),
        _context(),
        _provenance(bundle, verification, verified),
        (SIGN,),
    )


def document(
    bundle: Bundle, report: Report, verification: Verification, verified: Verified
) -> dict[str, object]:
    """Return the report as JSON."""
    return {
        "site": verified.site,
        "by": verified.by,
        "at": verified.at.isoformat(timespec="seconds"),
        "adapted": verified.adapted,
        "judged_by": CROSS_VALIDATION if verified.adapted else "the model itself",
        "model": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "data": {"name": verified.data, "sha256": verified.data_sha256},
        "verification": asdict(verification),
        "report": asdict(report),
    }


def _figures(verification: Verification) -> Iterable[str]:
    interval = verification.interval
    known = f"{percent(interval[0])} to {percent(interval[1])}" if interval else "interval not known"
    unit = "patients or slides" if verification.unit == "group" else "cells"
    marks = verification.recommended
    yield "<h2>What to expect in this laboratory</h2>"
    rows = [
        (
            f"Balanced accuracy (95 % interval over {unit})",
            f"{percent(verification.balanced_accuracy)} ({known})",
        ),
        ("Sent to review", percent(marks.review_share)),
        ("Right among the cells not sent to review", _right(verification.cells, marks)),
    ]
    yield table(rows, kind="figures")


def _right(cells: int, marks: Marks) -> str:
    """Return how much of the kept is right, with the Wilson interval, which takes cells as independent."""
    found = right_interval(marks, cells)
    if found is None:
        return "no cell is kept"
    kept, (low, high) = found
    return f"{percent(marks.right_when_kept)} of {kept} cells ({low:.1f} % to {high:.1f} %)"


def _classes(report: Report) -> Iterable[str]:
    yield "<h2>Cells by class</h2>"
    rows = [
        (label, *counts, sum(counts), percent(report.per_class[label].recall))
        for label, counts in zip(report.labels, report.confusion_matrix, strict=True)
    ]
    caption = "Rows: the laboratory's label. Columns: the model's."
    yield table(rows, ("", *report.labels, "cells", "recall"), caption=caption)


def _thresholds(verification: Verification) -> Iterable[str]:
    yield "<h2>Review thresholds</h2>"
    head = (*THRESHOLDS, "cells of no class marked")
    rows = [_marks("of the bundle until now", verification.current)]
    if verification.proposed:
        rows.append(_marks("proposed for this laboratory", verification.proposed))
    if verification.chosen:
        rows.append(_marks("set by this laboratory", verification.chosen))
    yield table(rows, head)
    yield from (f"<p>{escape(line)}</p>" for line in (*two_sets(verification), *of_no_class(verification)))
    yield (
        "<p>The proposed thresholds keep as many cells as possible while"
        f" {exactly(verification.target)} of the kept ones are right, with no OOD score above the bundle's."
        " What other confidence thresholds cost:</p>"
    )
    yield from _curve(verification)
    yield table(
        [
            (f"{point.confidence:.3f}", percent(1 - point.kept), percent(point.right))
            for point in thinned(verification.curve)
        ],
        ("confidence at least", "sent to review", "right when kept"),
        caption=f"With an OOD score of at most {limit(verification.recommended, 'ood_score')}.",
    )


def _marks(name: str, marks: Marks) -> tuple[str, ...]:
    shares = (marks.review_share, marks.right_when_kept, marks.others_marked)
    return (name, limit(marks, "confidence"), limit(marks, "ood_score"), *map(percent, shares))


def limit(marks: Marks, name: str) -> str:
    """Return a threshold, `confidence` or `ood_score`; if familiar pictures have another, both."""
    values = [f"{getattr(one, name):.3f}" for one in (marks.thresholds, marks.familiar) if one is not None]
    return " or ".join(dict.fromkeys(values))


def two_sets(verification: Verification) -> Iterable[str]:
    """Yield what two numbers for one threshold mean."""
    cells, familiar = verification.cells, verification.familiar_cells
    if familiar is not None:
        yield (
            "Where there are two numbers, the second is for pictures that look like those that the model was"
            f" trained on: {familiar} of these {cells} cells."
        )


def of_no_class(verification: Verification) -> Iterable[str]:
    """Yield what the thresholds do to cells of no class."""
    before, after = verification.current.others_marked, verification.recommended.others_marked
    if before is not None and after is not None:
        yield (
            f"Of cells of no class that the bundle carries, at least {percent(after)} are still sent to"
            f" review by their OOD score ({percent(before)} with the bundle's thresholds)."
        )


def _curve(verification: Verification) -> Iterable[str]:
    def x(share: float) -> float:
        return MARGIN + share * (WIDTH - MARGIN - RIGHT)

    def y(share: float) -> float:
        return 10 + (1 - max(share, LOWEST)) / (1 - LOWEST) * (HEIGHT - MARGIN - 10)

    def line(points: Iterable[Kept]) -> str:
        return " ".join(f"{x(point.kept):.1f},{y(point.right):.1f}" for point in points)

    label = "Share of cells kept without review, against the share of them that is right"
    yield f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{label}">'
    for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        yield f'<line x1="{x(0)}" x2="{x(1)}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>'
        yield f'<text x="{MARGIN - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{percent(tick, 0)}</text>'
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield f'<text x="{x(tick):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{percent(tick, 0)}</text>'
    yield f'<text x="{x(0.5)}" y="{HEIGHT - 4}" text-anchor="middle">kept without review</text>'
    target = f"{y(verification.target):.1f}"
    place = f'x1="{x(0)}" x2="{x(1)}" y1="{target}" y2="{target}"'
    yield f'<line {place} stroke="#b26a00" stroke-dasharray="5 4"/>'
    yield f'<polyline points="{line(verification.curve)}" fill="none" stroke="#1f5fa8" stroke-width="2"/>'
    marks = verification.recommended
    if marks.right_when_kept is not None:
        place = f'cx="{x(1 - marks.review_share):.1f}" cy="{y(marks.right_when_kept):.1f}"'
        yield f'<circle {place} r="5" fill="#1f5fa8"/>'
    yield f'</svg><p class="muted">{label}. Dashed: the target. Dot: the last thresholds of the table.</p>'


def _context() -> Iterable[str]:
    yield "<h2>What these figures can and cannot say</h2>"
    yield bullets((limit, "") for limit in LIMITS)
    yield "<h2>Published agreement, for comparison</h2>"
    yield bullets((f"{text}.", source) for text, source in PUBLISHED)


def _provenance(bundle: Bundle, verification: Verification, verified: Verified) -> Iterable[str]:
    cells = f"{verified.data}: {verification.cells}"
    yield "<h2>Provenance</h2>"
    rows = [
        ("Labelled cells", cells),
        ("Patients or slides", "not given" if verification.groups is None else verification.groups),
        ("SHA-256 of the cells and labels", verified.data_sha256),
        (
            f"SHA-256 of the model {'before it was adapted' if verified.adapted else 'verified'}",
            bundle.sha256,
        ),
    ]
    yield table(rows, kind="mono")
