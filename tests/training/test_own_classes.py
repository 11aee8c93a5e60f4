"""Five classes from a folder of images to a FHIR report: data, fit, export, report, service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from app.engine.bundle import CLASSES, load_bundle
from app.engine.classifier import load_classifier
from app.samples.smear import draw_smear
from tests.fakes import serving
from tests.pictures import real
from training.cli import main
from training.config import load_recipe, read_config
from training.data import classes_of, read_manifest
from training.errors import DataError
from training.fit import fit, read_facts
from training.images import ImageArchive
from training.module import BEST, load_checkpoint
from training.rows import choose_rows

FIVE = ("neutrophil", "basophil", "eosinophil", "lymphocyte", "monocyte")
FHIR = {"accept": "application/fhir+json"}
QUICK = (
    "initial='random'", "mix={cells=1}", "samples=48", "epochs=2", "batch=12", "workers=0", "detail=48",
    "precision='32-true'", "preprocessing.size=32", "preprocessing.framing='whole'", "average=0",
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:.*LeafSpec.*:FutureWarning",
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning",
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of drawn cells of five classes; its basophils are neutrophils in other colours."""
    folder = tmp_path_factory.mktemp("own") / "cells"
    for label in FIVE:
        (folder / label).mkdir(parents=True)
        for seed in range(8):
            image = draw_smear(label if label in CLASSES else "neutrophil", seed=seed, width=120, height=90)
            if label == "basophil":
                image = Image.merge("RGB", image.split()[::-1])
            image.save(folder / label / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def manifest(drawn: Path) -> Path:
    return make_manifest(drawn, drawn.parent, "--split", "50:25:25")


@pytest.fixture(scope="module")
def run(manifest: Path) -> Path:
    path = manifest.parent / "run"
    fit(read_manifest(manifest), load_recipe("pbc", QUICK), path)
    return path


@pytest.fixture(scope="module")
def bundle(manifest: Path, run: Path) -> Path:
    return make_bundle(manifest, run)


def make_manifest(cells: Path, folder: Path, *options: str) -> Path:
    path = folder / "manifest.csv"
    archive = f"cells={cells}"
    assert main(["data", archive, "--classes", ",".join(FIVE), "--out", str(path), *options]) == 0
    return path


def make_bundle(manifest: Path, run: Path) -> Path:
    """Export a run and score the bundle."""
    out = run.parent / "bundle"
    arguments = ["--manifest", str(manifest), "--run", str(run)]
    assert main(["export", *arguments, "--out", str(out), "--name", "own", "--int8-agreement", "0"]) == 0
    assert main(["report", *arguments, "--bundle", str(out)]) == 0
    return out


def count_cells(bundle: Path, images: list[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the service's differential count of the images, as JSON and as FHIR."""
    files = [("files", (path.name, path.read_bytes(), "image/png")) for path in images]
    with serving(cast(Any, load_classifier(bundle, "openvino"))) as client:
        answers = [client.post("/differential", files=files, headers=head) for head in ({}, FHIR)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    return answers[0].json(), answers[1].json()


def check_count(count: dict[str, Any], report: dict[str, Any], n: int) -> None:
    assert list(count["counts"]) == list(FIVE)
    assert sum(count["counts"].values()) == count["n"] == n
    found = [entry["resource"] for entry in report["entry"]]
    texts = [each["code"]["text"] for each in found if each["resourceType"] == "Observation"]
    assert len(texts) == 5
    assert any("basophil" in text.lower() for text in texts)


def test_a_bundle_has_the_classes_of_its_manifest_in_their_order(bundle: Path, run: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.labels == FIVE
    assert len(loaded.known_answer) == 5
    assert loaded.reference is not None
    assert list(loaded.reference.labels) == list(FIVE)
    assert list(loaded.training["data"]["train"]["images"].items()) == [(label, 4) for label in FIVE]
    network = load_checkpoint(run / BEST, read_config(run / "config.json"))
    assert network.trunk.fc.out_features == 5


def test_the_card_has_the_own_classes_and_no_comparison_with_the_paper(bundle: Path) -> None:
    card = (bundle / "README.md").read_text()
    assert "cells (neutrophil, basophil, eosinophil, lymphocyte and monocyte)" in card
    assert "--classes neutrophil,basophil,eosinophil,lymphocyte,monocyte" in card
    assert "aper" not in card.replace("aperture", "").replace("the paper's equation 6", "")
    report = json.loads((bundle / "report.json").read_text())
    assert report["labels"] == list(FIVE)
    assert len(report["confusion_matrix"]) == 5


def test_five_drawn_classes_go_from_data_to_fhir(bundle: Path, drawn: Path) -> None:
    images = [drawn / label / "0.png" for label in FIVE]
    count, report = count_cells(bundle, images)
    check_count(count, report, len(images))


def test_the_papers_figures_are_refused_for_other_classes(
    manifest: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--manifest", str(manifest), "--bundle", str(bundle), "--paper", str(bundle), "--replace"]
    assert main(["report", *arguments]) == 1
    assert "--paper: the paper has other classes than neutrophil, basophil" in capsys.readouterr().err


def test_a_manifest_of_other_classes_does_not_fit_a_run(
    manifest: Path, run: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "turned.csv"
    _, _, rest = manifest.read_text().partition("\n")
    turned = ",".join(FIVE[::-1])
    path.write_text(f"# classes: {turned}\n{rest}")
    train, validation = choose_rows(read_manifest(path), read_config(run / "config.json"))
    with pytest.raises(DataError, match="was trained with the classes neutrophil, basophil"):
        read_facts(run, train, validation)
    four = tmp_path / "four.csv"
    four.write_text(rest)
    assert classes_of(read_manifest(four)) == CLASSES
    assert main(["report", "--manifest", str(four), "--bundle", str(bundle), "--replace"]) == 1
    assert "has the classes neutrophil, basophil" in capsys.readouterr().err


def test_commands_say_how_long_they_took(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_manifest(drawn, tmp_path)
    assert capsys.readouterr().out.splitlines()[-1].startswith("took ")


@pytest.mark.ops
def test_raabins_five_classes_go_from_data_to_fhir(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells, sources = real("raabin-cells.zip"), real("raabin-sources.csv")
    manifest = make_manifest(cells, tmp_path, "--sources", str(sources), "--split", "86:7:7")
    rows = read_manifest(manifest)
    assert "neutrophil: cells of one slide or photo are in several splits" in capsys.readouterr().err
    for label in FIVE:
        assert {row.split for row in rows if row.label == label} == {"train", "val", "test"}
    fit(rows, load_recipe("pbc", [*QUICK, "files=4", "epochs=1"]), tmp_path / "run")
    bundle = make_bundle(manifest, tmp_path / "run")
    assert load_bundle(bundle).labels == FIVE
    warning = "neutrophil: cells of the same slides or photos are among the training images"
    assert warning in (bundle / "README.md").read_text()
    images = []
    for label in FIVE:
        path = next(row.path for row in rows if row.label == label)
        images.append(tmp_path / f"{label}.jpg")
        images[-1].write_bytes(ImageArchive(cells).read(path))
    count, report = count_cells(bundle, images)
    check_count(count, report, len(images))
