from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.bundle import FILES, Bundle, FamiliarRule, SiteRecord, load_bundle
from app.engine.site_bundle import beside, check_site, slug, write
from app.errors import BundleError, SettingsError
from app.evaluation.review_thresholds import Thresholds
from app.evaluation.verification import Marks

SITE = SiteRecord("Ward 3", "2026-11-30T09:00:00+00:00", 40, 0.9, (0.8, 0.95), 0.3, 0.96, False, "0" * 64)
MARKS = Marks(Thresholds(0.7, 1.5), 0.3, 0.96)
CONFIG = {
    "format": 2,
    "name": "wbc",
    "version": "3.0.0",
    "labels": ["eosinophil", "lymphocyte", "monocyte", "neutrophil"],
    "preprocessing": {
        "size": 112,
        "framing": "whole",
        "margin": 2.6,
        "white_point": False,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
    },
    "temperature": 1.5,
    "review": {"confidence": 0.5, "ood_score": 2.0, "share": 0.05, "kept": "as it is"},
    "known_answer": [0.1, 0.2, 0.3, 0.4],
    "files": {name: hashlib.sha256(name.encode()).hexdigest() for name in FILES},
    "training": {},
    "scores": {},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = tmp_path / "wbc"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(name.encode())
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return load_bundle(folder)


def test_a_bundle_of_a_laboratory_has_its_thresholds_record_and_reports(bundle: Bundle) -> None:
    out = beside(bundle, SITE.name)
    written = write(bundle, out, SITE.name, SITE, MARKS, {"verification.html": "<p>ü</p>"})
    assert out.name == "wbc-ward-3"
    assert (written.version, written.site) == ("3.0.0+ward-3", SITE)
    assert (written.review_confidence, written.review_ood_score) == (0.7, 1.5)
    assert json.loads((out / "config.json").read_text())["review"]["kept"] == "as it is"
    assert (out / "verification.html").read_text(encoding="utf-8") == "<p>ü</p>"
    assert load_bundle(bundle.path) == bundle
    again = write(written, out.with_name("again"), "Ward 4", None, MARKS, {})
    assert (again.version, again.site) == ("3.0.0+ward-4", None)


def test_both_sets_of_thresholds_are_written_if_the_bundle_has_a_rule_for_familiar_pictures(
    bundle: Bundle,
) -> None:
    rule = FamiliarRule(7.5, 0.3, 7.7)
    marks = replace(MARKS, familiar=Thresholds(0.7, 4.5))
    out = bundle.path.with_name("new")
    written = write(replace(bundle, familiar=rule), out, SITE.name, replace(SITE, interval=None), marks, {})
    assert written.familiar == FamiliarRule(7.5, 0.7, 4.5)
    assert written.site is not None
    assert written.site.interval is None


def test_a_bundle_of_other_weights_has_another_version(bundle: Bundle) -> None:
    verified = replace(bundle, training={"adapted": {}}, version="3.0.0+ward-3.adapted")
    assert write(verified, bundle.path.with_name("new"), "Ward 3", SITE, MARKS, {}).version.endswith(
        ".adapted"
    )


def test_what_exists_is_not_written_over(bundle: Bundle) -> None:
    before = sorted(bundle.path.parent.rglob("*"))
    with pytest.raises(BundleError, match="exists already"):
        write(bundle, bundle.path, SITE.name, SITE, MARKS, {})
    assert sorted(bundle.path.parent.rglob("*")) == before


def test_a_bundle_that_cannot_be_written_whole_is_not_there(bundle: Bundle) -> None:
    before = sorted(bundle.path.parent.rglob("*"))
    (bundle.path / FILES[0]).unlink()
    with pytest.raises(BundleError, match="cannot be written"):
        write(bundle, bundle.path.parent / "new", SITE.name, SITE, MARKS, {})
    assert set(before) - set(bundle.path.parent.rglob("*")) == {bundle.path / FILES[0]}


@pytest.mark.parametrize(
    ("name", "part"),
    [("General Hospital, Haematology", "general-hospital-haematology"), ("北京", "site"), ("../x", "x")],
)
def test_a_name_becomes_a_part_of_a_folders_name(name: str, part: str) -> None:
    assert slug(name) == part


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 129])
def test_names_that_cannot_be_printed_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="printable"):
        check_site(name)
