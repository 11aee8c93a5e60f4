"""Write a bundle that was verified for one laboratory: a copy with thresholds and a record of its own."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from app.engine.bundle import CONFIG, MAX_SITE, Bundle, SiteRecord, load_bundle
from app.engine.classifier import load_classifier
from app.errors import BundleError, SettingsError
from app.evaluation.verification import Marks, Verification
from app.new_folder import new_folder


@dataclass(frozen=True)
class Adapted:
    """What an adapted bundle has instead of its parent's: files of `folder`, and entries of `config.json`."""

    folder: Path
    config: Mapping[str, Any]


def check_site(name: str) -> str:
    """Return the name of a laboratory without surrounding blanks. Raise SettingsError."""
    name = name.strip()
    if not name or len(name) > MAX_SITE or not name.isprintable():
        raise SettingsError(f"the laboratory's name needs 1 to {MAX_SITE} printable characters")
    return name


def slug(name: str) -> str:
    """Return the name for a folder or a version (semver.org, 10): small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "site"


def beside(bundle: Bundle, site: str) -> Path:
    """Return the default folder of the bundle for a laboratory."""
    return bundle.path.resolve().with_name(f"{bundle.path.resolve().name}-{slug(site)}")


def record(
    bundle: Bundle, verification: Verification, marks: Marks, name: str, at: datetime, *, adapted: bool
) -> SiteRecord:
    """Return the block `site` of the bundle for a laboratory, with these review thresholds."""
    interval = verification.interval
    return SiteRecord(
        name=name,
        verified_at=at.isoformat(timespec="seconds"),
        cells=verification.cells,
        balanced_accuracy=round(verification.balanced_accuracy, 4),
        interval=interval and (round(interval[0], 4), round(interval[1], 4)),
        review_share=round(marks.review_share, 4),
        right_when_kept=marks.right_when_kept,
        adapted=adapted,
        parent_sha256=bundle.sha256,
    )


def write(
    bundle: Bundle,
    out: Path,
    name: str,
    site: SiteRecord | None,
    marks: Marks | None,
    reports: Mapping[str, str],
    adapted: Adapted | None = None,
) -> Bundle:
    """Write the bundle for a laboratory into the new folder `out`, whole or not at all, and return it.

    name: of the laboratory. site: None if it was not verified. marks: the review thresholds; None: those of
    `bundle`. reports: texts of further files, by name. adapted: other weights. Raise BundleError if `out`
    exists or cannot be written, or if the service would not start with other weights.
    """
    config = json.loads((bundle.path / CONFIG).read_bytes())
    other_weights = adapted is not None or "adapted" in bundle.training
    config["version"] = f"{bundle.version.partition('+')[0]}+{slug(name)}{'.adapted' * other_weights}"
    if marks is not None:
        familiar = None
        if bundle.familiar is not None and marks.familiar is not None:
            familiar = {"distance": bundle.familiar.distance} | asdict(marks.familiar)
        share = round(marks.review_share, 4)
        config["review"] |= asdict(marks.thresholds) | {"share": share, "familiar": familiar}
    config["site"] = asdict(site) if site else None
    parts = dict.fromkeys(bundle.files, bundle.path)
    if adapted is not None:
        changed = [name for name in bundle.files if (adapted.folder / name).is_file()]
        parts |= dict.fromkeys(changed, adapted.folder)
        config |= adapted.config
        config["scores"] = {}  # the parent's are of other weights
        config.pop("reference", None)
        config["files"] |= {
            name: sha256((adapted.folder / name).read_bytes()).hexdigest() for name in changed
        }
    try:
        with new_folder(out) as draft:
            for file, folder in parts.items():
                shutil.copyfile(folder / file, draft / file)
            for file, text in {**reports, CONFIG: json.dumps(config, indent=2) + "\n"}.items():
                (draft / file).write_text(text, encoding="utf-8")
            if adapted is None:
                load_bundle(draft)
            else:
                load_classifier(draft, "openvino").check()
    except FileExistsError:
        raise BundleError(f"{out} exists already: name another folder with --out") from None
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror}") from error
    return load_bundle(out)
