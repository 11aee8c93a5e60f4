"""Leuko as users install it: in fresh environments, started from a folder that has nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.running import PATIENCE_S, ROOT, serves

UV = Path(sys.executable).with_name("uv")
LOCK = ROOT / "requirements.lock"
SHIPPED = ROOT / "models/wbc-resnet18/config.json"

pytestmark = [
    pytest.mark.ops,
    pytest.mark.skipif(not UV.exists(), reason="uv is absent: run `make setup`"),
    pytest.mark.skipif(not SHIPPED.exists(), reason="the shipped bundle is absent"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the repository in another place, without what was built or installed in this one."""
    folder = tmp_path_factory.mktemp("checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def installed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment after `pip install .`, with the versions of our lock."""
    environment = tmp_path_factory.mktemp("environment")
    run(checkout, UV, "venv", "--clear", "--python", sys.executable, environment)
    python = environment / "bin/python"
    run(checkout, UV, "pip", "install", "--python", python, "--constraint", LOCK, ".")
    return environment / "bin"


def run(folder: Path, *command: str | Path) -> None:
    done = subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def clean() -> dict[str, str]:
    """The environment variables without this one's environment, its settings and its search path."""
    mine = ("VIRTUAL_ENV", "PYTHONPATH", "LEUKO_")
    return {name: value for name, value in os.environ.items() if not name.startswith(mine)}


@contextmanager
def started(folder: Path, *command: str | Path) -> Iterator[str]:
    """Start a service on a free port and yield its address. The end of its log fails the test."""
    process = subprocess.Popen(
        [*command, "serve", "--port", "0"], cwd=folder, env=clean(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process:
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if serves(line):
                    break
            assert serves(lines[-1]), "".join(lines)
            yield json.loads(lines[-1])["message"].split()[-1]
        finally:
            process.terminate()
            process.stderr.close()


def answers_with_the_shipped_model(address: str) -> bool:
    served = httpx.get(f"{address}/model", timeout=PATIENCE_S).json()
    described = json.loads(SHIPPED.read_text())
    return (served["name"], served["version"]) == (described["name"], described["version"])


def test_an_installation_serves_the_shipped_model_from_any_folder(installed: Path, tmp_path: Path) -> None:
    with started(tmp_path, installed / "leuko") as address:
        assert answers_with_the_shipped_model(address)
    run(tmp_path, installed / "leuko", "sample", "neutrophil", "-o", "cell.jpg")
    run(tmp_path, installed / "leuko", "predict", "cell.jpg")
    training = subprocess.run(
        [installed / "leuko-train", "fit"],
        cwd=tmp_path,
        env=clean(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (training.returncode, training.stderr.count("\n")) == (1, 1)
    assert "is missing: run `make install EXTRAS=train`" in training.stderr
    absent = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"
    run(tmp_path, installed / "python", "-c", absent)


def test_uvx_serves_the_shipped_model_without_an_installation(checkout: Path, tmp_path: Path) -> None:
    uvx = (UV, "tool", "run", "--python", sys.executable, "--constraints", LOCK, "--from")
    with started(checkout, *uvx, ".", "leuko") as address:
        assert answers_with_the_shipped_model(address)
    with started(tmp_path, *uvx, checkout, "leuko") as address:
        assert answers_with_the_shipped_model(address)


def test_make_install_in_a_fresh_checkout_adds_an_extra_and_serves(checkout: Path, tmp_path: Path) -> None:
    run(checkout, "make", f"PYTHON={sys.executable}", "install", "EXTRAS=client")
    leuko = checkout / ".venv/bin/leuko"
    with started(tmp_path, leuko) as address:
        assert answers_with_the_shipped_model(address)
        run(tmp_path, leuko, "sample", "monocyte", "-o", "cell.jpg")
        run(tmp_path, leuko, "predict", "--url", address, "cell.jpg")


def test_an_installation_without_a_bundle_says_in_one_sentence_how_to_get_one(
    installed: Path, tmp_path: Path
) -> None:
    [bundle] = installed.parent.glob("lib/python*/site-packages/app/shipped")
    bundle.rename(tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    try:
        for arguments in (["serve", "--port", "0"], ["predict", "cell.jpg"], ["evaluate", "cells.zip"]):
            done = subprocess.run(
                [str(installed / "leuko"), *arguments],
                cwd=tmp_path / "here",
                env=clean(),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 1
            assert "this installation has no bundle: set LEUKO_BUNDLE to" in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr
    finally:
        (tmp_path / "elsewhere").rename(bundle)
