"""`leuko verify`: judge the bundle on a laboratory's own cells, and set its review thresholds there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from app.archives.images import open_labelled
from app.cli import console as terminal
from app.cli.commands import (
    assign,
    complain_of,
    failures,
    hashes_of,
    ready,
    refuse_unread,
    score,
    track,
)
from app.engine import site_bundle
from app.engine.bundle import Bundle
from app.errors import SettingsError, Unusable
from app.evaluation.review_thresholds import Rules
from app.evaluation.verification import data_hash, exactly
from app.inference.offline import Outcome, classify
from app.inference.pipeline import Answer
from app.inference.runtime import Load
from app.inference.service import archive_limits, image_limits
from app.new_folder import new_folder
from app.printable import complain, few
from app.reports import verification_page
from app.reports.verification_page import FIGURES, PAGE
from app.settings import Settings

REFUSED = 3  # exit status: no thresholds reach the target, and no bundle was written


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
    confidence, ood_score: thresholds that the laboratory sets; if only the other is given, those that the
    bundle applies to each picture; if neither is, those that reach the target. out: the new bundle's folder;
    None: beside the old one. groups: as in `evaluate`. Return 0, or `REFUSED`: then `out` has the report
    alone. Raise Unusable if a picture cannot be read, BadLabels if one is in two classes.
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
    refuse_broken(outcomes)
    scored = score(classifier, outcomes, units, target, set_rules(bundle, confidence, ood_score))
    verified = verification_page.Verified(
        site=site,
        by=by.strip(),
        at=datetime.now(UTC),
        data=path.name,
        data_sha256=hash_of(outcomes),
    )
    verification = scored.verification
    figures = verification_page.document(bundle, scored.report, verification, verified)
    reports = {
        PAGE: verification_page.render(bundle, scored.report, verification, verified),
        FIGURES: json.dumps(figures, indent=2) + "\n",
    }
    marks = verification.chosen or verification.proposed
    if marks is None:
        write_reports(out, reports)
    else:
        adapted = "adapted" in bundle.training
        record = site_bundle.record(bundle, verification, marks, site, verified.at, adapted=adapted)
        site_bundle.write(bundle, out, site, record, marks, reports)
    if as_json or not console.is_terminal:
        print(json.dumps(figures, indent=2, allow_nan=False), file=console.file)
    else:
        console.print(*terminal.verification_tables(scored.report, verification), sep="\n")
    if marks is None:
        complain(
            f"no thresholds keep cells of which {exactly(target)} are right here: no bundle was written, only"
            f" the report {out / PAGE}. Adapt the model, review all cells, or set thresholds with"
            " --confidence and --ood-score"
        )
        return REFUSED
    complain(f"wrote the bundle {out} and its report {out / PAGE}")
    return 0


def refuse_broken(outcomes: Sequence[Outcome]) -> None:
    """Raise Unusable, which names the files, if an image could not be classified.

    What is signed rests on all cells of the folder, not on those that could be read.
    """
    if broken := failures(outcomes):
        named = [f"{outcomes[i].image.name}: {error.detail}" for i, error in broken.items()]
        raise Unusable(f"pictures that cannot be read: {few(named)}")


def write_reports(folder: Path, reports: Mapping[str, str]) -> None:
    """Write the report of a verification that failed, which is a record to sign too."""
    try:
        with new_folder(folder) as draft:
            for name, text in reports.items():
                (draft / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}") from error


def set_rules(bundle: Bundle, confidence: float | None, ood_score: float | None) -> Rules | None:
    """Return the thresholds that the laboratory sets; None if it sets none."""
    if confidence is None and ood_score is None:
        return None
    return bundle.rules.with_set(confidence, ood_score)


def hash_of(outcomes: Sequence[Outcome]) -> str:
    """Return `data_hash` of the images that were classified."""
    done = [outcome for outcome in outcomes if isinstance(outcome.answer, Answer)]
    return data_hash(hashes_of(done), [outcome.image.label for outcome in done])
