from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from app.engine.bundle import CLASSES, FILES, GRAPH, KNOWN_ANSWER, OOD, WEIGHTS, Bundle, load_bundle
from app.imaging.framing import Preprocessing
from app.samples.smear import draw_smear
from tests.engine.test_site_bundle import CONFIG
from training import adapt, adapted
from training.cli import main
from training.network import Network

SIZE = 32
COLOURS = ((220, 60, 60), (60, 60, 220), (60, 200, 60), (200, 60, 200))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt, "STEPS", 3)
    monkeypatch.setattr(adapt, "BATCH", 8)
    monkeypatch.setattr(adapt, "FOLDS", 2)
    monkeypatch.setattr(adapted, "export_graph", lambda *_: b"")
    monkeypatch.setattr(adapted, "quantise", lambda _, images: b"a graph of %d images" % len(images))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Return a bundle of a small input that is always sure of the first class."""
    folder = tmp_path / "parent"
    folder.mkdir()
    torch.manual_seed(0)
    network = Network(len(CLASSES), Preprocessing(size=SIZE))
    network.trunk.fc.bias.data[0] += 3
    state = {key: t.half() if t.is_floating_point() else t for key, t in network.trunk.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    bank = np.random.default_rng(0).random((40, 512)).astype(np.float16)
    save_arrays({"bank": bank, "k": np.array([5]), "scale": np.array([1.0], np.float32)}, folder / OOD)
    draw_smear("neutrophil", seed=1).save(folder / KNOWN_ANSWER)
    (folder / GRAPH).write_bytes(b"a graph")
    config = CONFIG | {
        "preprocessing": CONFIG["preprocessing"] | {"size": SIZE},  # type: ignore[operator]
        "scores": {"accuracy": 0.9},
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return load_bundle(folder)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    folder = tmp_path / "cells"
    for path, image in pictures(6):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(image)
    return folder


def pictures(count: int) -> Iterator[tuple[str, bytes]]:
    """Yield pictures of one colour a class; two of each slide."""
    for label, colour in zip(CLASSES, COLOURS, strict=True):
        for number in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (SIZE, SIZE), tuple(c + number for c in colour)).save(buffer, "PNG")
            yield f"{label}/slide{number // 2}-{number}.png", buffer.getvalue()


def arguments(bundle: Bundle, out: Path, *more: str) -> list[str]:
    return ["adapt", *more, "--bundle", str(bundle.path), "--site", "Ward 3", "--out", str(out)]


def test_an_adapted_bundle_is_whole_and_says_what_it_is(
    bundle: Bundle, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    command = arguments(bundle, out, str(cells), "--force", "--group-pattern", "(slide[0-9])")
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "before balanced accuracy 0.250" in shown
    assert "recall of monocyte: 0.00 →" in shown
    written = load_bundle(out)
    assert written.version == "3.0.0+ward-3"
    assert written.site is not None
    assert (written.site.adapted, written.site.cells, written.site.parent_sha256) == (True, 24, bundle.sha256)
    assert written.files[WEIGHTS] != bundle.files[WEIGHTS]
    assert written.files[GRAPH] != bundle.files[GRAPH]
    assert written.files[OOD] == bundle.files[OOD]
    assert not written.scores  # those of other weights
    assert written.training["adapted"]["parent"]["sha256"] == bundle.sha256
    assert sum(written.known_answer) == pytest.approx(1, abs=1e-4)
    report = json.loads((out / "adaptation.json").read_text())
    assert report["before"]["balanced_accuracy"] == 0.25
    assert (out / WEIGHTS).stat().st_mode & 0o777 == 0o644


def test_what_is_not_better_is_not_written(
    bundle: Bundle,
    cells: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapt, "WAYS", (0.0,))
    assert main(arguments(bundle, tmp_path / "mine", str(cells))) == 3
    assert "Not recommended: it is not better. Nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "mine").exists()


def test_a_class_that_loses_too_much_is_named(
    bundle: Bundle,
    cells: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapted, "RECALL_FALLS", -2.0)  # every class counts as fallen
    assert main(arguments(bundle, tmp_path / "mine", str(cells))) == 3
    assert "the recall of eosinophil" in capsys.readouterr().out


def test_pictures_without_labels_renew_the_statistics_and_verify_nothing(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path, image in pictures(3):
        (folder / path.replace("/", "-")).write_bytes(image)
    command = arguments(bundle, tmp_path / "mine", "--unlabelled", str(folder))
    assert main(command) == 1
    assert "12 pictures are too few" in capsys.readouterr().err
    monkeypatch.setattr(adapted, "LEAST_UNLABELLED", 12)
    assert main(command) == 0
    assert "run `leuko verify`" in capsys.readouterr().out
    written = load_bundle(tmp_path / "mine")
    assert written.site is None
    assert written.training["adapted"]["unlabelled"] == 12
    assert (written.review_confidence, written.temperature) == (bundle.review_confidence, bundle.temperature)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ([], "give a folder or ZIP of labelled cells, or --unlabelled"),
        (["absent"], "absent cannot be read"),
    ],
)
def test_what_is_missing_is_said(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], complaint: str
) -> None:
    assert main(arguments(bundle, tmp_path / "mine", *more)) == 1
    assert complaint in capsys.readouterr().err
    assert main(arguments(bundle, tmp_path, *more)) == 1


def test_broken_pictures_are_all_named(
    bundle: Bundle, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (cells / "monocyte" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert main(arguments(bundle, tmp_path / "mine", str(cells))) == 1
    error = capsys.readouterr().err
    assert "monocyte/a.png" in error
    assert "monocyte/b.png" in error
