from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from app.engine.bundle import CLASSES, FILES, load_bundle
from app.errors import BundleError
from app.imaging.framing import Preprocessing

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a bundle whose files hold nothing of use but whose hashes are right."""

    def write_bundle(**changes: Any) -> Path:
        for name in FILES:
            (tmp_path / name).write_bytes(name.encode())
        config = {
            "format": 2,
            "name": "wbc",
            "version": "1.0.0",
            "labels": list(CLASSES),
            "preprocessing": asdict(Preprocessing()),
            "temperature": 1.5,
            "review": {"confidence": 0.6, "ood_score": 1.4},
            "known_answer": [0.1, 0.2, 0.3, 0.4],
            "files": {name: hashlib.sha256(name.encode()).hexdigest() for name in FILES},
            "training": {},
            "scores": {},
        }
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
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
        ({"format": 1}, "bundle format 1 is not 2"),
        ({"labels": list(reversed(CLASSES))}, "labels must be eosinophil"),
        ({"labels": ["a", "b"]}, "labels must be eosinophil"),
        ({"known_answer": [1.0]}, "one probability for each label"),
        ({"temperature": 0}, "temperature must be positive"),
        ({"temperature": "hot"}, "not a bundle's configuration"),
        ({"preprocessing": {"size": 224}}, "preprocessing must give"),
        ({"preprocessing": {**asdict(Preprocessing()), "size": 256}}, "size must be 224"),
        (
            {"preprocessing": {**asdict(Preprocessing()), "framing": "cell"}},
            "framing must be nucleus or whole",
        ),
        ({"files": {}}, "names no hash for"),
        ({"files": {**dict.fromkeys(FILES, "0"), "../../etc/passwd": "0"}}, "has sha256|outside the bundle"),
        ({"review": {}}, "not a bundle's configuration"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(
    write: Write, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        load_bundle(write(**change))


def test_a_configuration_that_is_not_json_is_refused(write: Write) -> None:
    path = write()
    (path / "config.json").write_text("{")
    with pytest.raises(BundleError, match="not a bundle's configuration"):
        load_bundle(path)


def test_a_file_outside_the_bundle_is_never_read(write: Write) -> None:
    files = {"../secret": "0" * 64, **{name: hashlib.sha256(name.encode()).hexdigest() for name in FILES}}
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(write(files=files))
