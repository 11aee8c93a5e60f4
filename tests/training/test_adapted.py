from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from safetensors.numpy import save_file as save_arrays

from app.api.application import create_app
from app.engine import site_bundle
from app.engine.bundle import (
    CLASSES,
    FILES,
    GRAPH,
    KNOWN_ANSWER,
    OOD,
    WEIGHTS,
    Bundle,
    FamiliarRule,
    load_bundle,
)
from app.engine.classifier import Prediction, load_classifier
from app.engine.laboratories import Styles, describe_all
from app.errors import BundleError
from app.evaluation.review_thresholds import Rules, Thresholds
from app.evaluation.verification import Answers, Verification, cells_of, verify
from app.imaging.decode import decode
from app.imaging.framing import Preprocessing, frame_cell
from app.imaging.quality import QualityLimits
from app.registry.fetch import load
from app.samples.smear import draw_smear
from app.settings import Settings
from tests.engine.test_site_bundle import CONFIG
from tests.fakes import caller
from tests.laboratory import REREAD_S, Laboratory, on_a_loop
from training import adapt, adapted
from training.adapt import Candidate, OwnCells
from training.adapted import Parent
from training.cli import main
from training.export import save_weights
from training.known_answers import known_answer
from training.network import Network, load_network, round_to_half
from training.own_cells import read_labelled

SIZE = 32
COLOURS = ((220, 60, 60), (60, 60, 220), (60, 200, 60), (200, 60, 200))


class Unquantised:
    """A classifier of a bundle whose graph is none: it answers as the weights do."""

    def __init__(self, folder: Path, _engine: str) -> None:
        self.bundle = load_bundle(folder)

    def check(self) -> None:
        network = load_network(self.bundle)
        answer = known_answer(
            network, self.bundle.preprocessing, self.bundle.path / KNOWN_ANSWER, self.bundle.temperature
        )
        if answer != pytest.approx(self.bundle.known_answer, abs=1e-4):
            raise BundleError("this engine does not compute the bundle's network here")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt, "VIEWS", 1)
    monkeypatch.setattr(adapt, "FOLDS", 2)
    monkeypatch.setattr(adapt, "RIDGES", (0.001,))
    monkeypatch.setattr(adapted, "export_graph", lambda *_: b"")
    monkeypatch.setattr(adapted, "quantise", lambda _, images: b"a graph of %d images" % len(images))
    monkeypatch.setattr(site_bundle, "load_classifier", Unquantised)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Return a bundle of a small input that is always sure of the first class."""
    folder = tmp_path / "parent"
    folder.mkdir()
    torch.manual_seed(0)
    preprocessing = Preprocessing(**CONFIG["preprocessing"] | {"size": SIZE})  # type: ignore[operator]
    network = Network(len(CLASSES), preprocessing).eval()
    network.trunk.fc.bias.data[0] += 3
    round_to_half(network)
    save_weights(network, folder / WEIGHTS)
    bank = np.random.default_rng(0).random((40, 512)).astype(np.float16)
    save_arrays({"bank": bank, "k": np.array([5]), "scale": np.array([1.0], np.float32)}, folder / OOD)
    draw_smear("neutrophil", seed=1).save(folder / KNOWN_ANSWER)
    (folder / GRAPH).write_bytes(b"a graph")
    config = CONFIG | {
        "preprocessing": CONFIG["preprocessing"] | {"size": SIZE},  # type: ignore[operator]
        "scores": {"accuracy": 0.9},
        "review": CONFIG["review"] | {"ood_score": 1000.0},  # type: ignore[operator]  # the bank is noise
        "known_answer": known_answer(network, preprocessing, folder / KNOWN_ANSWER, 1.5),
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
    assert "\ntook " in shown
    written = load_bundle(out)
    assert written.version == "3.0.0+ward-3.adapted"
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
    assert report["after"]["current"] == report["before"]["current"]
    assert (out / WEIGHTS).stat().st_mode & 0o777 == 0o644


def test_until_now_is_judged_as_the_bundle_did_with_its_own_thresholds_for_familiar_pictures(
    bundle: Bundle,
) -> None:
    familiar = draw_smear("neutrophil", seed=2).resize((SIZE, SIZE))
    pixels = np.stack([np.asarray(familiar), np.full((SIZE, SIZE, 3), (20, 200, 20), np.uint8)])
    parent = replace(
        Parent.of(bundle),
        thresholds=Thresholds(0.9, 2.0),
        familiar=FamiliarRule(1.0, 0.6, 2.0),
        styles=Styles(describe_all(pixels[:1]), np.eye(30, dtype=np.float32)),
    )
    own = OwnCells(pixels, pixels, np.array([0, 0]), ("a", "b"))
    found = Answers(np.array([[0.7, 0.3], [0.7, 0.3]]), np.ones(2), np.zeros(2, bool))

    def reviewed(one: Parent) -> list[bool]:
        answers = replace(found, familiar=one.knows(own))
        return [not kept for kept in cells_of(own.labels, answers).keep_by(one.rules)]

    assert reviewed(parent) == [False, True]
    assert reviewed(replace(parent, familiar=None)) == [True, True]


def test_a_bundle_with_which_the_service_would_not_start_is_not_written(
    bundle: Bundle,
    cells: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapted, "known_answer", lambda *_: [1.0, 0.0, 0.0, 0.0])
    assert main(arguments(bundle, tmp_path / "mine", str(cells), "--force")) != 0
    assert "does not compute the bundle's network" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("n", "lost", "fallen"), [(5, 1, False), (10, 2, True), (40, 2, False), (40, 3, True), (100, 5, False)]
)
def test_a_recall_falls_by_more_than_a_cell_and_five_in_a_hundred(n: int, lost: int, fallen: bool) -> None:
    def judged(right: int) -> Verification:
        labels = np.repeat([0, 1], n)
        answer = np.eye(2)[[0] * right + [1] * (2 * n - right)]
        marks = np.zeros(2 * n, bool)
        rules = Rules(Thresholds(0.0, 1.0))
        return verify(labels, Answers(answer, np.zeros(2 * n), marks), rules, names=("a", "b"))

    comparison = adapted.Comparison(
        Candidate(0, 0.1),
        1.0,
        judged(n),
        judged(n - lost),
        {"a": 1.0, "b": 1.0},
        {"a": (n - lost) / n, "b": 1.0},
    )
    assert comparison.fallen == (["a"] if fallen else [])


def test_what_is_not_better_is_not_written(
    bundle: Bundle,
    cells: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapt, "RIDGES", ())
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
    monkeypatch.setattr(adapted, "RECALL_FALLS", -2.0)
    monkeypatch.setattr(adapted, "CHANCE", -20)  # every class counts as fallen
    assert main(arguments(bundle, tmp_path / "mine", str(cells))) == 3
    assert "the recall of eosinophil" in capsys.readouterr().out


def test_a_class_with_too_few_cells_is_named_before_a_picture_is_read(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tmp_path / "few"
    for label, count in zip(CLASSES, (5, 6, 2, 4), strict=True):
        (cells / label).mkdir(parents=True)
        for number in range(count):
            (cells / label / f"{number}.png").write_bytes(b"no picture")
    command = arguments(bundle, tmp_path / "mine", str(cells), "--unlabelled", str(tmp_path / "absent"))
    assert main(command) == 1
    errors = capsys.readouterr().err
    assert "at least 5 cells of each class are needed; monocyte: 2, neutrophil: 4." in errors
    assert "cannot be read" not in errors


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
    assert written.temperature == bundle.temperature
    before, after = (
        json.loads((one.path / "config.json").read_text())["review"] for one in (bundle, written)
    )
    assert before == after


def test_files_that_are_left_out_are_counted_with_the_reason(
    bundle: Bundle,
    cells: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapted, "LEAST_UNLABELLED", 12)
    (cells / "monocyte" / "notes.txt").write_text("of whom they are")
    (cells / ".DS_Store").write_bytes(b"")
    command = arguments(bundle, tmp_path / "mine", str(cells), "--unlabelled", str(cells))
    main([*command, "--replay", str(cells), "--force"])
    told = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(told) == 3
    assert all(str(cells) in line and "not an image (1)" in line for line in told)


@on_a_loop
async def test_it_runs_as_a_shadow_beside_its_parent_then_serves_and_the_parent_comes_back(
    bundle: Bundle, cells: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    assert main(arguments(bundle, mine, str(cells), "--force")) == 0
    lab = Laboratory(FastAPI(), tmp_path / "models.toml")
    lab.write(str(bundle.path))
    settings = Settings(
        models=str(lab.file), engine="torch", threads=1, max_batch=2, decode_workers=1, probation_s=0
    )
    lab.app = create_app(settings, load, lab.failures.append)
    lab.models.reread_s = REREAD_S
    image = (cells / "monocyte" / "slide0-0.png").read_bytes()
    parent, adapted_one = "wbc-3.0.0", "wbc-3.0.0+ward-3.adapted"

    async def shadowed(outcome: str) -> float:
        return await lab.metric(
            f'leuko_shadow_images_total{{name="wbc",outcome="{outcome}",version="3.0.0+ward-3.adapted"}}'
        )

    async def compared() -> bool:
        assert await lab.version(image=image) == parent
        return await shadowed("agreed") + await shadowed("disagreed") > 0

    async def site() -> str:
        async with caller(lab.app) as client:
            found = (await client.get("/model")).json()["site"]
        return str(found and found["name"])

    async with lab.app.router.lifespan_context(lab.app):
        await lab.app.state.lifecycle.settled()
        lab.write(str(bundle.path), f"{mine}*")
        await lab.until(compared)
        assert await shadowed("failed") == 0
        assert await site() == "None"
        lab.write(str(mine), f"{bundle.path}*")
        await lab.until_served(adapted_one)
        assert await site() == "Ward 3"
        lab.write(str(bundle.path))
        await lab.until_served(parent)
        assert await site() == "None"
    assert not lab.failures


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


def right_from_now_on(_starts: object, cells: OwnCells) -> adapt.Trial:
    """Say that another final layer makes every cell right, and that none is before."""
    features = np.zeros((len(cells), 512), np.float32)
    right = 9 * np.eye(4, dtype=np.float32)[cells.labels]
    outputs = {Candidate(0, None): np.roll(right, 1, axis=1), Candidate(0, 0.001): right}
    return adapt.Trial({one: adapt.Outputs(logits, features) for one, logits in outputs.items()})


def test_what_is_forced_against_its_own_verification_is_not_verified(
    bundle: Bundle,
    cells: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapt, "RIDGES", ())  # nothing is better
    assert main(arguments(bundle, tmp_path / "mine", str(cells), "--force")) == 0
    assert "it is not verified for this laboratory" in capsys.readouterr().out
    assert load_bundle(tmp_path / "mine").site is None
    assert not (tmp_path / "mine" / "verification.html").exists()


def test_what_is_recommended_has_a_verification_that_says_who_when_and_how(
    bundle: Bundle, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapted, "cross_validate", right_from_now_on)
    out = tmp_path / "mine"
    assert main(arguments(bundle, out, str(cells), "--by", "A. Tester")) == 0
    written = load_bundle(out)
    assert written.site is not None
    assert written.site.adapted
    page = (out / "verification.html").read_text(encoding="utf-8")
    assert "by A. Tester" in page
    assert "Adapted; judged by cross-validation" in page
    figures = json.loads((out / "verification.json").read_text())
    assert (figures["judged_by"], figures["by"], figures["at"]) == (
        "cross-validation",
        "A. Tester",
        written.site.verified_at,
    )
    hashes = {hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in cells.rglob("*.png")}
    assert set(written.training["adapted"]["pictures"]) == hashes


def test_pictures_of_bad_quality_go_to_review_in_site_as_with_the_bundle(
    bundle: Bundle, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapted, "cross_validate", right_from_now_on)
    config = json.loads((bundle.path / "config.json").read_text())
    config["review"]["quality"] = asdict(
        QualityLimits(nuclear_contrast=-1, detail=0, brightness=50, brightness_range=0)
    )
    (bundle.path / "config.json").write_text(json.dumps(config))
    dark = Image.new("RGB", (SIZE, SIZE), (40, 40, 40))  # `exposure`
    for number in range(6):
        dark.putpixel((0, 0), (number, 0, 0))
        dark.save(cells / "monocyte" / f"slide{number // 2}-dark{number}.png")
    read, _ = read_labelled(cells, load_bundle(bundle.path), None)
    assert read.poor is not None
    assert read.poor.sum() == 6
    out = tmp_path / "mine"
    assert main(arguments(load_bundle(bundle.path), out, str(cells))) == 0
    site = load_bundle(out).site
    assert site is not None
    assert site.review_share == pytest.approx(6 / 30, abs=1e-4)
    classifier = load_classifier(out, "torch")
    found = [
        classifier.classify([frame_cell(decode(file.read_bytes()), classifier.bundle.preprocessing)])[0]
        for file in cells.rglob("*dark*.png")
    ]
    assert all(isinstance(one, Prediction) and "exposure" in one.review_reasons for one in found)


def test_several_archives_are_replayed_and_their_other_classes_left_out_by_name(
    bundle: Bundle, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(cells, other)
    shutil.copytree(cells / "monocyte", other / "basophil")
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", other)
    command = arguments(bundle, tmp_path / "mine", str(cells), "--force", "--replay", str(other), archive)
    assert main(command) == 0
    told = capsys.readouterr().err
    for path in (str(other), archive):
        assert f"{path}: folders of no class of the bundle were left out: basophil (6)" in told
    assert main(arguments(bundle, tmp_path / "again", str(other))) == 1
    assert "in basophil (6)" in capsys.readouterr().err


def test_statistics_are_renewed_without_any_labelled_cell(bundle: Bundle, cells: Path) -> None:
    own, _ = read_labelled(cells, bundle, None)
    others = np.random.default_rng(0).integers(0, 255, (9, SIZE, SIZE, 3)).astype(np.uint8)
    parent = Parent.of(bundle)
    mixed, alone = (parent.starts(own, some)[1] for some in (np.concatenate([own.framed, others]), others))
    assert torch.equal(mixed.network.trunk.bn1.running_mean, alone.network.trunk.bn1.running_mean)
    assert len(parent.starts(own, own.framed)) == 1
    assert own.hashes


def test_one_picture_in_two_classes_is_refused_by_name(
    bundle: Bundle, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(cells / "monocyte" / "slide0-0.png", cells / "neutrophil" / "again.png")
    assert main(arguments(bundle, tmp_path / "mine", str(cells))) == 1
    assert "in two classes: monocyte/slide0-0.png and neutrophil/again.png" in capsys.readouterr().err
