from __future__ import annotations

import hashlib
import json
import math
from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from app.engine.bundle import CLASSES, FILES, WEIGHTS, check_code, load_bundle
from app.errors import BundleError
from app.evaluation.answer_profile import Seen, dump, summarise
from app.imaging.framing import Preprocessing

Write = Callable[..., Path]

PREPROCESSING = asdict(Preprocessing())
HASHES = {name: hashlib.sha256(name.encode()).hexdigest() for name in FILES}
CONFIG: dict[str, Any] = {
    "format": 2,
    "name": "wbc",
    "version": "1.0.0",
    "labels": list(CLASSES),
    "preprocessing": PREPROCESSING,
    "temperature": 1.5,
    "review": {"confidence": 0.6, "ood_score": 1.4},
    "known_answer": [0.1, 0.2, 0.3, 0.4],
    "files": HASHES,
    "training": {},
    "scores": {},
}

SITE: dict[str, Any] = {
    "name": "Ward 3",
    "verified_at": "2026-11-30T09:00:00+00:00",
    "cells": 40,
    "balanced_accuracy": 0.9,
    "interval": [0.8, 0.95],
    "review_share": 0.3,
    "right_when_kept": None,
    "adapted": False,
    "parent_sha256": "0" * 64,
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a bundle of dummy files with correct hashes."""

    def write_bundle(**changes: Any) -> Path:
        for name in FILES:
            (tmp_path / name).write_bytes(name.encode())
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
        return tmp_path

    return write_bundle


def test_a_bundle_is_read_as_it_was_written(write: Write) -> None:
    bundle = load_bundle(write())
    assert bundle.labels == CLASSES
    assert bundle.preprocessing == Preprocessing()
    assert bundle.temperature == 1.5
    assert bundle.sha256 == hashlib.sha256((bundle.path / "config.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_refuses_by_name(write: Write, name: str) -> None:
    path = write()
    content = bytearray((path / name).read_bytes())
    content[0] ^= 1
    (path / name).write_bytes(bytes(content))
    with pytest.raises(BundleError, match=f"{name} has sha256"):
        load_bundle(path)


@pytest.mark.parametrize("name", ["config.json", *FILES])
def test_a_missing_file_is_named(write: Write, name: str) -> None:
    path = write()
    (path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} cannot be read"):
        load_bundle(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "format must be 2, not 1: use a matching version of Leuko"),
        ({"format": "2"}, "format must be a valid integer, not '2'"),
        ({"name": 5}, "name must be a valid string, not 5"),
        ({"labels": "eosinophil"}, "labels must be a list of 2 to 32 class names, not 'eosinophil'"),
        ({"labels": ["neutrophil"]}, "labels must be a list of 2 to 32 class names"),
        ({"labels": [f"class {i}" for i in range(33)]}, "labels must be a list of 2 to 32 class names"),
        ({"labels": ["Band", "blast"]}, "labels must have names .* small letters, .* not 'Band'"),
        ({"labels": ["", "blast"]}, "labels must have names .* not ''"),
        ({"labels": ["band\n", "blast"]}, "labels must have names"),
        ({"labels": ["band ", "blast"]}, "labels must have names .* not 'band '"),
        ({"labels": ["zelle", "zählt"]}, "labels must have names .* not 'zählt'"),
        ({"labels": ["b" * 65, "blast"]}, "labels must have names of at most 64 characters"),
        ({"labels": [1, 2]}, "labels must have names .* not 1"),
        ({"labels": ["blast", "band", "blast"]}, "labels must have each name once, but repeat blast"),
        ({"labels": ["blast", "not_a_cell"]}, "labels must not have the name 'not_a_cell'"),
        ({"codes": {"blast": {"none": "26446-5"}}}, r"codes must have only codes of .*, not of \['blast'\]"),
        ({"codes": {"monocyte": {"flow": "26485-3"}}}, "codes.monocyte.flow.* must be 'none', 'manual' or"),
        ({"codes": {"monocyte": {"none": "26485-4"}}}, "codes.monocyte.none must be a LOINC code with its"),
        ({"codes": {"monocyte": {"none": "monocytes"}}}, "codes.monocyte.none must be a LOINC code"),
        (
            {"codes": {"monocyte": {"none": "26485-3"}, "neutrophil": {"manual": "26485-3"}}},
            "codes must not give one code to two labels: 26485-3",
        ),
        ({"codes": {"monocyte": "26485-3"}}, "codes.monocyte must be an object, not '26485-3'"),
        ({"known_answer": [1.0]}, r"known_answer must have one probability for each label \(4\), not 1"),
        ({"known_answer": [0.1, 0.2, 0.3, 4]}, "known_answer.3 must be less than or equal to 1, not 4"),
        ({"temperature": 0}, "temperature must be greater than 0, not 0"),
        ({"temperature": -1.5}, "temperature must be greater than 0, not -1.5"),
        ({"temperature": math.nan}, "temperature must be a finite number, not nan"),
        ({"temperature": math.inf}, "temperature must be a finite number, not inf"),
        ({"temperature": 10**400}, "temperature must be a finite number"),
        ({"temperature": True}, "temperature must be a valid number, not True"),
        ({"temperature": "hot"}, "temperature must be a valid number, not 'hot'"),
        (
            {"preprocessing": {"size": 224}},
            "preprocessing.framing is missing; preprocessing.margin is missing",
        ),
        ({"preprocessing": PREPROCESSING | {"zoom": 2}}, "preprocessing.zoom is unknown"),
        (
            {"preprocessing": PREPROCESSING | {"size": 513}},
            "preprocessing.size must be less than or equal to 512, not 513",
        ),
        ({"preprocessing": PREPROCESSING | {"framing": "cell"}}, "framing must be 'nucleus' or 'whole'"),
        ({"preprocessing": PREPROCESSING | {"std": [1, 1, 0]}}, "std.2 must be greater than 0, not 0"),
        (
            {"preprocessing": PREPROCESSING | {"mean": [0] * 4}},
            "preprocessing.mean: .* at most 3 items .* not 4$",
        ),
        ({"files": {}}, "files must have the sha256 of model.safetensors, model.int8.onnx"),
        ({"files": ["model.safetensors"]}, r"files must be an object, not \['model.safetensors'\]"),
        ({"files": HASHES | {WEIGHTS: 0}}, "files.model.safetensors must be a valid string, not 0"),
        ({"files": HASHES | {"../../etc/passwd": "0"}}, "outside the bundle: '../../etc/passwd'"),
        ({"files": HASHES | {"a\0b": "0"}}, "outside the bundle"),
        ({"review": {}}, "review.confidence is missing; review.ood_score is missing"),
        ({"review": []}, r"review must be an object, not \[\]"),
        ({"site": SITE | {"verified_at": "last week"}}, "site.verified_at must be a time in ISO 8601"),
        ({"site": SITE | {"name": ""}}, "site.name must not be empty"),
        ({"training": []}, r"training must be an object, not \[\]"),
        ({"scores": None}, "scores must be an object, not None"),
        ({"reference": None}, "reference is invalid"),
        ({"reference": {"of": "cells", "n": math.inf}}, "reference is invalid"),
    ],
)
def test_an_invalid_field_is_named_with_what_is_allowed(
    write: Write, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=f"config.json is not a valid bundle configuration: .*{message}"):
        load_bundle(write(**change))


@pytest.mark.parametrize("field", CONFIG)
def test_a_missing_field_is_named(write: Write, field: str) -> None:
    path = write()
    table = json.loads((path / "config.json").read_text())
    del table[field]
    (path / "config.json").write_text(json.dumps(table))
    with pytest.raises(
        BundleError, match=f"config.json is not a valid bundle configuration: {field} is missing$"
    ):
        load_bundle(path)


def test_one_error_names_every_invalid_field(write: Write) -> None:
    with pytest.raises(BundleError) as caught:
        load_bundle(write(labels="x", temperature=-1, review={"confidence": 0.5}, files=[], reference=[]))
    for field in ("labels", "temperature", "review.ood_score", "files", "reference"):
        assert f" {field} " in caught.value.detail


def test_another_format_is_the_only_complaint_about_a_bundle_of_that_format(write: Write) -> None:
    with pytest.raises(BundleError) as caught:
        load_bundle(write(format=3, temperature=None))
    assert caught.value.detail.endswith(
        "configuration: format must be 2, not 3: use a matching version of Leuko"
    )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "Invalid JSON"),
        (b"", "Invalid JSON"),
        (b'{"format": ' + b"[" * 100_000, "Invalid JSON: recursion limit"),
        (json.dumps({"name": "wbc"}).encode("utf-16"), "Invalid JSON"),
        ('{"name": "Zürich"}'.encode("latin-1"), "Invalid JSON: invalid unicode"),
        (b"[]", r"the document must be an object, not \[\]"),
        (b"null", "the document must be an object, not None"),
    ],
    ids=["cut", "empty", "deep", "UTF-16", "Latin-1", "list", "null"],
)
def test_a_configuration_that_is_not_a_json_object_is_refused(write: Write, raw: bytes, message: str) -> None:
    path = write()
    (path / "config.json").write_bytes(raw)
    with pytest.raises(BundleError, match=f"config.json is not a valid bundle configuration: {message}"):
        load_bundle(path)


@pytest.mark.parametrize("n", [2, 5, 32])
def test_a_bundle_has_its_own_labels_in_its_own_order(write: Write, n: int) -> None:
    labels = ["neutrophil", "basophil", "band-form", "ig 2", *(f"class_{i}" for i in range(28))][:n]
    answers = [Seen(label, 0.9, 1.0, review=False) for label in labels]
    path = write(
        labels=labels,
        known_answer=[1 / n] * n,
        reference=dump(summarise(answers, labels, "cells")),
        codes={"basophil": {"none": "30180-4", "manual": "707-0"}},
    )
    bundle = load_bundle(path)
    assert bundle.labels == tuple(labels)
    assert bundle.codes == {"basophil": {"none": "30180-4", "manual": "707-0"}}
    assert bundle.reference is not None
    assert list(bundle.reference.labels) == labels


def test_known_answer_and_reference_must_be_of_the_bundles_own_labels(write: Write) -> None:
    reference = dump(summarise([Seen("monocyte", 0.9, 1.0, review=False)], CLASSES, "cells"))
    with pytest.raises(BundleError) as caught:
        load_bundle(write(labels=["blast", "band", "monocyte"], reference=reference))
    assert "known_answer must have one probability for each label (3), not 4" in caught.value.detail
    assert "reference is invalid: the reference is not a valid answer profile: no count of blast, band" in (
        caught.value.detail
    )


@pytest.mark.parametrize("code", ["30180-4", "706-2", "707-0", "5905-5", "58413-6"])
def test_the_check_digit_of_a_loinc_code_is_verified(code: str) -> None:
    assert check_code(code) == code
    wrong = f"{code[:-1]}{(int(code[-1]) + 1) % 10}"
    with pytest.raises(ValueError, match="must be a LOINC code with its check digit"):
        check_code(wrong)


def test_additional_fields_and_a_byte_order_mark_are_ignored(write: Write) -> None:
    path = write(architecture="resnet18", review={"confidence": 0.6, "ood_score": 1.4, "share": 0.05})
    (path / "config.json").write_bytes(BOM_UTF8 + (path / "config.json").read_bytes())
    assert load_bundle(path).review_ood_score == 1.4


def test_figures_may_be_any_json_that_python_writes(write: Write) -> None:
    bundle = load_bundle(write(scores={"test": {"auroc": math.nan}}))
    assert math.isnan(bundle.scores["test"]["auroc"])


def test_a_file_outside_the_bundle_is_never_read(write: Write) -> None:
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(write(files={"../secret": "0" * 64, **HASHES}))
