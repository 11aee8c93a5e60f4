"""The scripts that build images, with an engine that only writes down what it is asked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.running import ROOT, wait_until

[TAG] = re.findall(r"^ARG BASE_TAG=(\S+)", (ROOT / "Dockerfile").read_text(), re.M)
ENGINE = """#!/bin/sh
echo "$@" >> "$0.calls"
case "$1 $2" in
"image inspect") test -e "$0.has" ;;
"pull "*) exit 1 ;;
esac
"""


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine that has no image and can pull none."""
    return program(tmp_path / "engine", ENGINE)


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | variables
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def test_the_makefile_s_interpreter_is_not_the_base(engine: Path) -> None:
    Path(f"{engine}.has").touch()
    for command, variables in (
        (["make", "image", "PYTHON=python3.11"], {}),
        (["make", "image"], {"PYTHON": "p"}),
    ):
        done = run(*command, ENGINE=str(engine), **variables)
        assert done.returncode == 0, done.stderr
        assert f"python:{TAG} is there" in done.stdout
    calls = Path(f"{engine}.calls").read_text()
    assert "--target cpu" in calls
    assert "BASE_TAG" not in calls


def test_another_base_is_asked_for_and_given_to_every_build(engine: Path) -> None:
    Path(f"{engine}.has").touch()
    done = run("make", "image", "BASE_TAG=3.14-slim-trixie", ENGINE=str(engine))
    assert "python:3.14-slim-trixie is there" in done.stdout
    assert "--build-arg BASE_TAG=3.14-slim-trixie" in Path(f"{engine}.calls").read_text()


@pytest.mark.parametrize(
    ("tag", "why"),
    [(f"{TAG}@sha256:{'0' * 64}", "leave the digest out of BASE_TAG"), ("latest", "names no Debian release")],
)
def test_a_tag_that_no_stand_in_can_have_is_refused_in_words(engine: Path, tag: str, why: str) -> None:
    done = run(".ci/base-image", ENGINE=str(engine), BASE_TAG=tag)
    assert done.returncode == 1
    assert f"python:{tag} cannot be pulled" in done.stderr
    assert why in done.stderr


def test_a_stand_in_that_is_interrupted_leaves_nothing(engine: Path, tmp_path: Path) -> None:
    half = """#!/bin/sh
for last; do :; done
mkdir -p "$last/etc"
echo begun > "$last/etc/half"
sleep 60
"""
    program(tmp_path / "bin/debootstrap", half)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environ = os.environ | {"ENGINE": str(engine), "PATH": path, "TMPDIR": str(temporary), "MIRROR": ""}
    command = [ROOT / ".ci/base-image"]
    with subprocess.Popen(command, env=environ, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: any(path.stat().st_size for path in temporary.glob("*/system/etc/half")))
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait() == 1
    assert [*temporary.iterdir()] == []


def test_without_an_engine_each_that_was_tried_is_named(tmp_path: Path) -> None:
    asleep = program(tmp_path / "asleep", "#!/bin/sh\nexit 1\n")
    old = program(tmp_path / "old", '#!/bin/sh\ntest "$1" != build\n')
    done = run(".ci/engine", ENGINE=f"nosuch {asleep} {old}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nosuch is no command" in done.stderr
    assert f"the daemon of {asleep} does not answer" in done.stderr
    assert f"{old} cannot build with BuildKit" in done.stderr
