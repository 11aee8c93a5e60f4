"""A verification as an HTML page that prints well: figures, curve, limits, and room for a signature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from app.engine.bundle import Bundle
from app.evaluation.report import Report
from app.evaluation.review_thresholds import Kept
from app.evaluation.verification import Marks, Verification

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
    "Verify again after a change of any of them, and after every change of the model.",
    "Percentages of a patient's cells also depend on how the cells were found and chosen.",
    "Not for diagnosis: a person reviews every result.",
)

WIDTH, HEIGHT, MARGIN = 460, 260, 44  # of the curve, in pixels
RIGHT = 24  # room for half of the last tick's text
LOWEST = 0.5  # of the curve's vertical axis

STYLE = """
:root { color-scheme: light; font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; background: #fff }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem }
table { border-collapse: collapse; margin: .4rem 0 } caption { text-align: left; color: #555 }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ccc; text-align: right }
th:first-child, td:first-child { text-align: left } th { font-weight: 600 }
.figures td { font-size: 1.05rem } .muted { color: #555 }
.mono { font: .8rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
.warning { border-left: 4px solid #b26a00; padding: .2rem .8rem; background: #fff7e8 }
.sign { display: grid; grid-template-columns: 1fr 1fr; gap: 2.5rem 2rem; margin-top: 2.5rem }
.sign div { border-top: 1px solid #1b1b1b; padding-top: .2rem; color: #555 }
svg text { font: 12px system-ui, sans-serif; fill: #333 }
@page { margin: 18mm }
@media print { body { margin: 0; max-width: none } h2, table, svg, .sign { break-inside: avoid } }
"""


@dataclass(frozen=True)
class Verified:
    """What was verified: where, when, by whom, with which cells. data_sha256: see `data_hash`."""

    site: str
    by: str
    at: datetime
    data: str
    data_sha256: str
    failed: int


def render(bundle: Bundle, report: Report, verification: Verification, verified: Verified) -> str:
    """Return the page."""
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f"<title>Verification: {escape(verified.site)}</title><style>{STYLE}</style></head><body>",
            *_head(bundle, verified),
            *_warnings(verification.warnings),
            *_figures(verification),
            *_classes(report),
            *_thresholds(verification),
            *_context(),
            *_provenance(bundle, verification, verified),
            "</body></html>\n",
        )
    )


def _head(bundle: Bundle, verified: Verified) -> Iterable[str]:
    yield f"<h1>Verification of {escape(bundle.name)} {escape(bundle.version)}</h1>"
    facts = (verified.site, f"{verified.at:%Y-%m-%d %H:%M %Z}", f"by {verified.by}")
    yield f'<p class="muted">{escape(" · ".join(facts))}</p>'


def _warnings(warnings: Sequence[str]) -> Iterable[str]:
    for warning in warnings:
        yield f'<p class="warning">{escape(warning)}</p>'


def _figures(verification: Verification) -> Iterable[str]:
    low, high = verification.interval
    unit = "patients or slides" if verification.unit == "group" else "cells"
    chosen = verification.proposed or verification.current
    yield '<h2>What to expect in this laboratory</h2><table class="figures"><tbody>'
    rows = [
        (
            f"Balanced accuracy (95 % interval over {unit})",
            f"{_percent(verification.balanced_accuracy)} ({_percent(low)} to {_percent(high)})",
        ),
        ("Sent to review", _percent(chosen.review_share)),
        ("Right among the cells not sent to review", _percent(chosen.right_when_kept)),
    ]
    yield from (f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    yield "</tbody></table>"


def _classes(report: Report) -> Iterable[str]:
    yield "<h2>Cells by class</h2><table>"
    yield "<caption>Rows: the laboratory's label. Columns: the model's.</caption>"
    heads = "".join(f"<th>{escape(label)}</th>" for label in report.labels)
    yield f"<thead><tr><th></th>{heads}<th>cells</th><th>recall</th></tr></thead><tbody>"
    for label, counts in zip(report.labels, report.confusion_matrix, strict=True):
        cells = "".join(f"<td>{count}</td>" for count in counts)
        recall = _percent(report.per_class[label].recall)
        yield f"<tr><td>{escape(label)}</td>{cells}<td>{sum(counts)}</td><td>{recall}</td></tr>"
    yield "</tbody></table>"


def _thresholds(verification: Verification) -> Iterable[str]:
    yield "<h2>Review thresholds</h2><table><thead><tr><th></th><th>confidence at least</th>"
    yield "<th>OOD score at most</th><th>sent to review</th><th>right when kept</th></tr></thead><tbody>"
    yield _marks("of the bundle until now", verification.current)
    if verification.proposed:
        yield _marks("of this laboratory", verification.proposed)
    yield "</tbody></table>"
    yield (
        "<p>The laboratory's thresholds keep as many cells as possible while"
        f" {_percent(verification.target, 0)} of the kept ones are right. The curve shows what other"
        " confidence thresholds cost.</p>"
    )
    yield from _curve(verification)


def _marks(name: str, marks: Marks) -> str:
    thresholds = marks.thresholds
    return (
        f"<tr><td>{name}</td><td>{thresholds.confidence:.3f}</td><td>{thresholds.ood_score:.3f}</td>"
        f"<td>{_percent(marks.review_share)}</td><td>{_percent(marks.right_when_kept)}</td></tr>"
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
        yield f'<text x="{MARGIN - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_percent(tick, 0)}</text>'
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield f'<text x="{x(tick):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{_percent(tick, 0)}</text>'
    yield f'<text x="{x(0.5)}" y="{HEIGHT - 4}" text-anchor="middle">kept without review</text>'
    target = f"{y(verification.target):.1f}"
    place = f'x1="{x(0)}" x2="{x(1)}" y1="{target}" y2="{target}"'
    yield f'<line {place} stroke="#b26a00" stroke-dasharray="5 4"/>'
    yield f'<polyline points="{line(verification.curve)}" fill="none" stroke="#1f5fa8" stroke-width="2"/>'
    chosen = verification.proposed or verification.current
    if chosen.right_when_kept is not None:
        place = f'cx="{x(1 - chosen.review_share):.1f}" cy="{y(chosen.right_when_kept):.1f}"'
        yield f'<circle {place} r="5" fill="#1f5fa8"/>'
    yield f'</svg><p class="muted">{label}. Dashed: the target. Dot: the thresholds above.</p>'


def _context() -> Iterable[str]:
    yield "<h2>What these figures can and cannot say</h2><ul>"
    yield from (f"<li>{limit}</li>" for limit in LIMITS)
    yield "</ul><h2>Published agreement, for comparison</h2><ul>"
    yield from (
        f'<li>{escape(text)}. <span class="muted">{escape(source)}</span></li>' for text, source in PUBLISHED
    )
    yield "</ul>"


def _provenance(bundle: Bundle, verification: Verification, verified: Verified) -> Iterable[str]:
    groups = "not given" if verification.groups is None else str(verification.groups)
    rows = [
        (
            "Labelled cells",
            f"{verified.data}: {verification.cells}, and {verified.failed} that could not be read",
        ),
        ("Patients or slides", groups),
        ("SHA-256 of the cells and labels", verified.data_sha256),
        ("SHA-256 of the model verified", bundle.sha256),
    ]
    yield "<h2>Provenance</h2><table><tbody>"
    yield from (f'<tr><td>{name}</td><td class="mono">{escape(value)}</td></tr>' for name, value in rows)
    yield "</tbody></table>"
    yield '<div class="sign"><div>Date, name</div><div>Signature</div></div>'


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"
