"""Scenario 40: no command, and no library that one imports, calls anywhere or writes what nobody named."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.engine.bundle import CLASSES
from app.samples.smear import draw_smear
from tests.running import REAL, ROOT, running

WATCHED = Path(__file__).parent / "watched"
LEUKO = [sys.executable, "-m", "app"]
# What each of our packages may import, sooner or later.
LIBRARIES = {
    "app.main": "huggingface_hub openvino openvino.tools.ovc pyarrow.dataset ray.data torch",
    "training.cli": "kagglehub lightning.pytorch matplotlib.pyplot nncf onnxruntime scipy.optimize"
    " sklearn.metrics torchvision.models",
}
FOR_SHORT = {
    "initial": "'random'",
    "workers": "0",
    "epochs": "1",
    "batch": "8",
    "precision": "'32-true'",
    "holdout": "0.25",
    "mix": "{slides=1}",
    "select_on": "'holdout'",
    "monitor": "'last'",
    "samples": "16",
    "detail": "96",
    "coarse_size": "64",
    "shared_epochs": "0",
}


@dataclass(frozen=True)
class Watch:
    """A home that is empty, a folder for temporary files, and a record of what Python processes do."""

    home: Path
    temporary: Path
    record: Path

    @property
    def environ(self) -> dict[str, str]:
        # Nothing that this machine sets may keep a library quiet, or tell it where to write.
        kept = {
            name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LD_LIBRARY_PATH")
        }
        return kept | {
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": os.pathsep.join([str(WATCHED), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def strays(self, *named: Path) -> list[str]:
        """Return what went to other machines, or was written outside `named` and the temporary folder."""
        found = []
        for line in {*self.record.read_text().splitlines()}:
            event, _, what = line.partition(" ")
            if event.startswith("socket."):
                if not is_here(what):
                    found.append(line)
            elif not is_within(what, (*named, self.temporary, Path("/dev"), Path("/proc"))):
                found.append(line)
        # What is not Python's is seen by what it leaves behind.
        return [*found, *map(str, self.home.rglob("*")), *map(str, self.temporary.iterdir())]


def is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host in ("None", "localhost", "")


def is_within(path: str, folders: Sequence[Path]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    with tempfile.TemporaryDirectory() as short:  # its path: Ray puts sockets below it
        watch = Watch(tmp_path / "home", Path(short), tmp_path / "home.record")
        watch.home.mkdir()
        watch.record.touch()
        yield watch


def run(watch: Watch, command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, env=watch.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["app.main", pytest.param("training.cli", marks=pytest.mark.ops)])
def test_40_libraries_that_are_imported_call_nobody_and_write_nothing(
    watch: Watch, tmp_path: Path, package: str
) -> None:
    names = [package, *LIBRARIES[package].split()]
    run(watch, [sys.executable, "-c", f"import {', '.join(names)}"], tmp_path)
    assert watch.strays() == []


def test_40_the_watch_sees_a_name_that_is_looked_up_and_a_file_that_is_written(
    watch: Watch, tmp_path: Path
) -> None:
    code = "import os, socket; open('a', 'w').close(); os.mkdir('b'); socket.getaddrinfo('192.0.2.1', 80)"
    run(watch, [sys.executable, "-c", code], tmp_path)
    assert len(watch.strays()) == 3


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    for label in ("monocyte", "neutrophil"):
        folder = tmp_path / "cells" / label
        folder.mkdir(parents=True)
        draw_smear(label, seed=1, width=120, height=100).save(folder / "1.png")
    return tmp_path / "cells"


def test_40_the_commands_call_nobody_and_write_only_what_they_name(
    watch: Watch, tmp_path: Path, cells: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for command in (
        ["--help"],
        ["predict", str(cells)],
        ["evaluate", str(cells)],
        ["sample", "all", "-o", str(out)],
        ["key", "lab", str(out / "keys")],
    ):
        run(watch, [*LEUKO, *command], tmp_path)
    assert watch.strays(out) == []


@pytest.mark.parametrize("arguments", [[], ["--processes", "2"], ["--engine", "torch"]], ids=" ".join)
def test_40_a_service_calls_nobody_and_writes_nothing(
    watch: Watch, cells: Path, arguments: list[str]
) -> None:
    with running(REAL, *arguments, environ=watch.environ) as service:
        with service.client() as client:
            content = (cells / "monocyte/1.png").read_bytes()
            sent = client.post("/predict", content=content, headers={"Content-Type": "image/png"})
            assert sent.status_code == 200
        assert service.end(signal.SIGTERM) == 0
    assert watch.strays() == []


@pytest.mark.ops
def test_40_a_scoring_calls_nobody_and_leaves_only_its_rows(
    watch: Watch, tmp_path: Path, cells: Path
) -> None:
    pytest.importorskip("ray")
    rows = tmp_path / "rows"
    run(watch, [*LEUKO, "score", str(cells), str(rows)], tmp_path)
    assert watch.strays(rows) == []


@pytest.mark.ops
def test_40_training_calls_nobody_and_writes_only_what_it_names(watch: Watch, tmp_path: Path) -> None:
    out, slides = tmp_path / "out", tmp_path / "slides"
    sources = []
    for label in CLASSES:
        (slides / label.upper()).mkdir(parents=True)
        for photo in range(4):
            name = f"{label.upper()}/{photo}.jpg"
            draw_smear(label, seed=photo, width=120, height=100).save(slides / name)
            sources.append(f"{name},{label}-{photo}\n")
    table = tmp_path / "sources.csv"
    table.write_text("".join(sources))
    manifest, bundle, ran = str(out / "manifest.csv"), str(out / "bundle"), str(out / "run")
    settings = [text for name, value in FOR_SHORT.items() for text in ("--set", f"{name}={value}")]
    commands = [
        [
            "data",
            str(slides),
            "--sources",
            str(tmp_path / "sources.csv"),
            "--split",
            "50:50",
            "--out",
            manifest,
        ],
        ["fit", "--manifest", manifest, "--run", ran, *settings],
        ["export", "--manifest", manifest, "--run", ran, "--out", bundle],
        ["report", "--manifest", manifest, "--run", ran, "--bundle", bundle],
    ]
    code = (
        f"import sys; from training.cli import main; sys.exit(any(main(command) for command in {commands}))"
    )
    run(watch, [sys.executable, "-c", code], tmp_path)
    assert watch.strays(out) == []
