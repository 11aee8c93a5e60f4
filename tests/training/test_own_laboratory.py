"""Run every command of docs/own-laboratory.md, in its order, on drawn cells.

Faked: the model answers by a picture's grey, adaptation succeeds without fitting anything (`cross_validate`),
and no graph is exported or quantised (`quick`). What `adapt` really does is tested in `test_adapt.py` and
`test_adapted.py`, and once with the shipped bundle in `tests/api/web/test_leaving.py`.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from app.api.application import create_app
from app.cli import main as leuko
from app.engine.bundle import CLASSES, Bundle, load_bundle
from app.engine.classifier import Classifier
from app.settings import Settings, parse
from tests.fake_classifier import FakeClassifier, png
from tests.fakes import GREYS, caller, zipped
from tests.laboratory import IMAGE
from tests.training.test_adapted import bundle as bundle  # a fixture
from tests.training.test_adapted import quick as quick  # a fixture
from training import adapted
from training.adapt import Candidate, Outputs, OwnCells, Trial
from training.cli import main as leuko_train

GUIDE = (Path(__file__).parents[2] / "docs" / "own-laboratory.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def load(settings: Settings) -> Classifier:
    """Load a classifier that knows greys, with the bundle that the settings name."""
    classifier = FakeClassifier()
    classifier.bundle = load_bundle(Path(settings.bundle))
    return cast(Classifier, classifier)


def write_cells(folder: Path, first: int) -> None:
    for label, grey in zip(CLASSES, GREYS, strict=True):
        for number in range(first, first + 6):
            file = folder / label / f"slide-{number // 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(grey + number))


def cross_validate(_starts: object, cells: OwnCells) -> Trial:
    """Say that another final layer makes every cell right, and that none is before."""
    features = np.zeros((len(cells), 512), np.float32)
    right = 9 * np.eye(4, dtype=np.float32)[cells.labels]
    outputs = {Candidate(0, None): np.roll(right, 1, axis=1), Candidate(0, 0.001): right}
    return Trial({candidate: Outputs(logits, features) for candidate, logits in outputs.items()})


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the guide begins in; adaptation is replaced by one that succeeds."""
    home = tmp_path / "home"
    shutil.copytree(bundle.path, home / "models" / "wbc-resnet18")
    write_cells(home / "cells", 0)
    write_cells(home / "more-cells", 6)
    labelled = {f"{label}/S-1001/1.png": png(grey) for label, grey in zip(CLASSES, GREYS, strict=True)}
    (home / "leuko-S-1001-labelled.zip").write_bytes(zipped(labelled | {"cells.csv": b"cell,label\n"}))
    monkeypatch.chdir(home)
    monkeypatch.setattr(adapted, "cross_validate", cross_validate)
    return home


def fail(error: Exception) -> None:
    raise AssertionError("a model failed") from error


def served(arguments: list[str]) -> list[dict[str, Any]]:
    """Return `GET /model` of what `leuko serve` with these arguments serves, after an image."""
    known = {leuko.flag(field): field for field in fields(Settings)}
    given = {known[name]: value for name, value in zip(arguments[::2], arguments[1::2], strict=True)}
    values = {field.name: parse(field, value, field.name) for field, value in given.items()}

    async def ask() -> list[dict[str, Any]]:
        app = create_app(Settings(max_batch=2, decode_workers=1, **values), load, fail)
        async with app.router.lifespan_context(app), caller(app) as client:
            await app.state.lifecycle.settled()
            answer = await client.post("/predict", content=png(GREYS[0]), headers=IMAGE)
            assert answer.status_code == 200
            models = [runner.bundle for runner in app.state.lifecycle.models.served.runners]
            default = (await client.get("/model")).json()
            assert default["sha256"] == models[0].sha256
            return [{"version": one.version, "site": one.site and one.site.name} for one in models]

    return asyncio.run(ask())


def commands() -> Iterator[list[str]]:
    for script in blocks("sh"):
        for line in script.replace("\\\n", " ").splitlines():
            yield shlex.split(line)


def test_every_command_of_the_guide_does_what_it_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models,) = blocks("toml")
    (folder / "models.toml").write_text(models)
    run = []
    for program, command, *arguments in commands():
        if program == "python3":
            subprocess.run([sys.executable, command, *arguments], check=True)
            assert (folder / "reviewed" / "monocyte" / "S-1001" / "1.png").is_file()
            continue
        run.append((program, command))
        if (program, command) == ("leuko", "serve"):
            seen = served(arguments)
            assert seen[0]["site"] == "General Hospital, Haematology"
            shadows = [one["site"] for one in seen[1:]]
            assert shadows == (["General Hospital"] if "--models" in arguments else [])
        elif program == "leuko":
            assert leuko.main([command, *arguments], load=load) == 0, capsys.readouterr().err
        else:
            assert program == "leuko-train"
            assert leuko_train([command, *arguments]) == 0, capsys.readouterr().err
    assert [command for _, command in run] == [
        "verify",
        "verify",
        "serve",
        "adapt",
        "compare",
        "verify",
        "serve",
    ]
    models_folder = folder / "models"
    strict = load_bundle(models_folder / "strict")
    assert strict.review_confidence == 0.6
    assert (models_folder / "wbc-resnet18-general-hospital-haematology" / "verification.html").is_file()
    assert (folder / "comparison" / "comparison.html").is_file()
    final = load_bundle(models_folder / "mine-verified")
    assert final.site is not None
    assert final.site.adapted
    assert final.site.parent_sha256 == load_bundle(models_folder / "mine").sha256


def test_every_option_and_file_that_the_guide_names_is_there() -> None:
    helps = " ".join(
        parser.format_help()
        for parser in leuko.build_parser()._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr]
    )
    from training.cli import build_parser

    helps += " ".join(
        parser.format_help()
        for parser in build_parser()._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr]
    )
    options = set(re.findall(r"--[a-z][a-z-]+", GUIDE)) - {"--form-string"}  # curl's
    assert options
    assert {option for option in options if option not in helps} == set()
