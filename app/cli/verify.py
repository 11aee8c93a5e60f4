"""`leuko verify`: judge the bundle on a laboratory's own cells, and set its review thresholds there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from app.archives.images import open_labelled
from app.cli import console as terminal
from app.cli.commands import assign, complain_of, ready, refuse_unread, score, track
from app.engine import site_bundle
from app.engine.bundle import Bundle
from app.errors import SettingsError
from app.evaluation.review_thresholds import Thresholds
from app.inference.offline import Outcome, classify
from app.inference.pipeline import Answer
from app.inference.runtime import Load
from app.inference.scoring import Scored
from app.inference.service import archive_limits, image_limits
from app.printable import complain
from app.reports import verification_page
from app.settings import Settings

PAGE, FIGURES = "verification.html", "verification.json"
REFUSED = 3  # exit status: no thresholds reach the target, and nothing was written


def verify(
    path: Path,
    settings: Settings,
    load: Load,
    *,
    site: str,
    by: str,
    target: float,
    confidence: float | None = None,
    ood_score: float | None = None,
    out: Path | None = None,
    groups: Path | str | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Verify the bundle on labelled cells, and write it for this laboratory, with a report.

    site: name of the laboratory. by: who verifies. target: share of the kept cells that is to be right.
    confidence, ood_score: thresholds that the laboratory sets; the bundle's if only the other is given, those
    that reach the target if neither is. out: the new bundle's folder; None: beside the old one. groups: as in
    `evaluate`. Return 0, or `REFUSED`.
    """
    site = site_bundle.check_site(site)
    if not by.strip():
        raise SettingsError("--by needs the name of the person who verifies")
    console = console or Console()
    classifier, limits = ready(settings, load), image_limits(settings)
    bundle = classifier.bundle
    out = out or site_bundle.beside(bundle, site)
    if out.exists():
        raise SettingsError(f"{out} exists already: name another folder with --out")
    with open_labelled(path, bundle.labels, archive_limits(settings)) as images:
        found = images.found
        refuse_unread(images)
        units = assign(images, groups)
        outcomes = track(classify(classifier, found, limits, settings.decode_workers), len(found))
    complain_of(images.left_out)
    scored = score(bundle, outcomes, units, target, thresholds(bundle, confidence, ood_score))
    verified = verification_page.Verified(
        site=site,
        by=by.strip(),
        at=datetime.now(UTC),
        data=path.name,
        data_sha256=data_hash(outcomes),
        failed=len(scored.failures),
    )
    figures = document(bundle, scored, verified)
    marks = scored.verification.chosen or scored.verification.proposed
    if marks is not None:
        page = verification_page.render(bundle, scored.report, scored.verification, verified)
        record = site_bundle.record(
            bundle, scored.verification, marks, site, verified.at, adapted="adapted" in bundle.training
        )
        reports = {PAGE: page, FIGURES: json.dumps(figures, indent=2) + "\n"}
        site_bundle.write(bundle, out, site, record, marks, reports)
    if as_json or not console.is_terminal:
        print(json.dumps(figures, indent=2, allow_nan=False), file=console.file)
    else:
        tables = terminal.verification_tables(scored.report, scored.verification)
        console.print(*tables, *terminal.failures(outcomes), sep="\n")
    if marks is None:
        complain(
            f"no thresholds keep cells of which {target:.0%} are right here: nothing was written."
            " Adapt the model, review all cells, or set thresholds with --confidence and --ood-score"
        )
        return REFUSED
    complain(f"wrote the bundle {out} and its report {out / PAGE}")
    return 0


def thresholds(bundle: Bundle, confidence: float | None, ood_score: float | None) -> Thresholds | None:
    """Return the thresholds that the laboratory sets; None if it sets none."""
    if confidence is None and ood_score is None:
        return None
    return Thresholds(
        bundle.review_confidence if confidence is None else confidence,
        bundle.review_ood_score if ood_score is None else ood_score,
    )


def document(bundle: Bundle, scored: Scored, verified: verification_page.Verified) -> dict[str, object]:
    """Return the report as JSON."""
    return {
        "site": verified.site,
        "by": verified.by,
        "at": verified.at.isoformat(timespec="seconds"),
        "model": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "data": {"name": verified.data, "sha256": verified.data_sha256, "failed": verified.failed},
        "verification": asdict(scored.verification),
        "report": asdict(scored.report),
    }


def data_hash(outcomes: Sequence[Outcome]) -> str:
    """Return the SHA-256 of the cells' own hashes with their labels, sorted: file names do not matter."""
    lines = sorted(
        f"{outcome.answer.image_sha256} {outcome.image.label}"
        for outcome in outcomes
        if isinstance(outcome.answer, Answer)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
