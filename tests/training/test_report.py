from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.engine.bundle import CLASSES, FILES, KNOWN_ANSWER, load_bundle
from app.engine.classifier import REASONS, Bank, Classifier, Neighbours, softmax
from app.engine.interface import Floats, Output
from app.errors import BundleError, EngineError
from app.evaluation.answer_profile import dump
from app.evaluation.report import evaluate
from app.imaging.framing import Pixels, Preprocessing
from tests.training.cases import RECIPE, WHOLE, config
from training.config import save_config
from training.data import Row, fingerprint
from training.errors import DataError
from training.report import RESAMPLES, report

STEP = 50  # of red from one class to the next
TEMPERATURE = 2.0


class ColourEngine:
    """Red encodes the class, green its logit (255: not a number), blue the OOD distance."""

    name = "colour"
    device = "none"
    batch = 8
    workers = 1

    def __init__(self) -> None:
        self.batches: list[int] = []

    def infer(self, pixels: Pixels, *, maps: bool = False, exclusive: bool = True) -> Output:  # noqa: ARG002
        self.batches.append(len(pixels))
        colours = pixels[:, 0, 0]
        features = np.zeros((len(pixels), 8), np.float32) + colours[:, 2:]
        return Output(
            logits_of(colours), features, np.ones((len(pixels), 8, 7, 7), np.float32) if maps else None
        )

    def warm_up(self, batch: int, size: int) -> None:
        self.infer(np.zeros((batch, size, size, 3), np.uint8))


def logits_of(colours: Pixels) -> Floats:
    logits = np.zeros((len(colours), 4), np.float32)
    size = np.where(colours[:, 1] == 255, np.nan, colours[:, 1])
    logits[np.arange(len(colours)), colours[:, 0] // STEP] = size
    return logits


@dataclass
class Setting:
    """A bundle, a manifest and the engine that scores it."""

    bundle: Path
    rows: list[Row]
    engine: ColourEngine

    def load(self, path: Path, engine: str) -> Classifier:
        assert engine in ("auto", "torch")
        neighbours = Neighbours(Bank(np.zeros((4, 8), np.float32), 1), 8**0.5)
        return Classifier(load_bundle(path), self.engine, neighbours, np.ones((4, 8), np.float32))

    def draw(self, name: str, colour: tuple[int, int, int], photo: str, split: str = "test") -> None:
        """Add an image of the class that its name begins with."""
        path = self.bundle.parent / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), colour).save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        folder = str(self.bundle.parent / "slides")
        self.rows.append(Row(folder, name, name.split("/")[0], split, photo, True, sha256))

    def config(self) -> dict[str, Any]:
        table: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())
        return table

    def written(self) -> dict[str, Any]:
        table: dict[str, Any] = json.loads((self.bundle / "report.json").read_text())
        return table


def write_bundle(path: Path, preprocessing: Preprocessing = WHOLE) -> None:
    path.mkdir()
    for name in FILES:
        (path / name).write_bytes(name.encode())
    known = np.array([[[0, 6, 0]]], np.uint8)
    Image.fromarray(known).resize((32, 24)).save(path / KNOWN_ANSWER)
    table = config(
        replace(RECIPE, preprocessing=preprocessing),
        temperature=TEMPERATURE,
        review={"confidence": 0.6, "ood_score": 3.0, "share": 0.05},
        known_answer=softmax(logits_of(known[0]) / TEMPERATURE)[0].tolist(),
        files={name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in FILES},
    )
    (path / "config.json").write_text(json.dumps(table, indent=2) + "\n")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """Three photos per class with four copies each: confident and right, except one photo of monocytes."""
    write_bundle(tmp_path / "bundle")
    setting = Setting(tmp_path / "bundle", [], ColourEngine())
    for index, label in enumerate(CLASSES):
        for photo in range(3):
            for copy in range(4):
                lost = label == "monocyte" and photo == 0
                colour = (STEP * (3 if lost and copy else index), 2 if lost else 6 + copy, copy)
                setting.draw(f"{label}/{photo}_{copy}.png", colour, f"{label}-{photo}")
    setting.draw("neutrophil/strange.png", (STEP * 3, 9, 200), "neutrophil-9")
    setting.draw("neutrophil/trained.png", (STEP * 3, 9, 0), "neutrophil-10", split="train")
    return setting


def score(setting: Setting, **changes: Any) -> Any:
    arguments: dict[str, Any] = {"split": "test", "run": None, "load": setting.load, "replace": True}
    return report(setting.bundle, setting.rows, **arguments | changes)


def test_the_report_in_the_bundle_is_what_evaluate_says_and_what_is_returned(setting: Setting) -> None:
    scores = score(setting)
    rows = setting.rows[:-1]
    colours = np.array([Image.open(Path(row.archive) / row.path).getpixel((0, 0)) for row in rows], np.uint8)
    probabilities = softmax(logits_of(colours) / TEMPERATURE)
    expected = evaluate(
        [CLASSES.index(row.label) for row in rows],
        None,
        probabilities,
        names=CLASSES,
        groups=[row.source for row in rows],
        resamples=RESAMPLES,
    )
    assert json.loads(json.dumps(asdict(scores))) == {
        name: setting.written()[name] for name in asdict(scores)
    }
    assert scores.confusion_matrix == expected.confusion_matrix
    assert scores.ece == pytest.approx(expected.ece)
    assert scores.confidence_intervals == expected.confidence_intervals
    assert scores.confidence_intervals.unit == "group"


def test_the_report_says_what_was_scored_on_what(setting: Setting) -> None:
    before = hashlib.sha256((setting.bundle / "config.json").read_bytes()).hexdigest()
    score(setting)
    written = setting.written()
    assert written["model"] == {"name": "wbc-resnet18", "version": "1.2.3", "sha256": before}
    assert written["engine"] == {"name": "colour", "device": "none"}
    assert (written["n"], written["photos"], written["split"]) == (49, 13, "test")
    assert written["sources"] == {"eosinophil": 3, "lymphocyte": 3, "monocyte": 3, "neutrophil": 4}
    assert written["fingerprint"] == fingerprint(setting.rows[:-1])
    assert written["photos_also_in_train"] == 0
    assert written["archives"] == ["slides"]


def test_images_sent_to_review_are_counted_by_reason(setting: Setting) -> None:
    score(setting)
    assert setting.written()["review"] == {
        "n": 5,
        "share": 5 / 49,
        "reasons": dict.fromkeys(REASONS, 0) | {"low_confidence": 4, "out_of_distribution": 1},
        "wrong": 3,
        "accuracy_of_the_rest": 1.0,
    }


def test_misclassified_images_are_summed_up_by_photo(setting: Setting) -> None:
    setting.draw("lymphocyte/odd.png", (0, 9, 0), "lymphocyte-0")
    score(setting)
    assert setting.written()["misclassified_photos"] == [
        {"photo": "monocyte-0", "label": "monocyte", "images": 4, "wrong": 3, "predicted": {"neutrophil": 3}},
        {
            "photo": "lymphocyte-0",
            "label": "lymphocyte",
            "images": 5,
            "wrong": 1,
            "predicted": {"eosinophil": 1},
        },
    ]


def test_scores_go_into_the_configuration_and_the_bundle_still_loads(setting: Setting) -> None:
    before = setting.config()
    scores = score(setting)
    bundle = load_bundle(setting.bundle)
    headlines, reference = bundle.scores, bundle.reference
    assert reference is not None
    assert (reference.n, reference.of.endswith(", test")) == (49, True)
    assert headlines["accuracy"] == round(scores.accuracy, 4)
    assert headlines["macro_f1"] == round(scores.macro_avg.f1, 4)
    assert (headlines["split"], headlines["n"], headlines["photos"]) == ("test", 49, 13)
    assert headlines["interval"]["unit"] == "photo"
    assert {"mse", "ece"} < set(headlines)
    assert setting.config() | {"scores": {}} == before | {"reference": dump(reference)}
    assert (setting.bundle / "config.json").read_text() == json.dumps(setting.config(), indent=2) + "\n"


def test_scoring_twice_gives_the_same_files(setting: Setting) -> None:
    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in setting.bundle.rglob("*") if path.is_file()}

    score(setting)
    first = contents()
    score(setting)
    assert contents() == first


def test_card_and_figures_are_written(setting: Setting) -> None:
    scores = score(setting)
    card = (setting.bundle / "README.md").read_text()
    assert f"**{scores.accuracy:.4f}**" in card
    assert setting.written()["figures"] == ["confusion.png", "reliability.png", "risk.png"]
    assert all(f"(figures/{name})" in card for name in setting.written()["figures"])
    assert "curves.png" not in card


def write_run(path: Path, **changes: Any) -> Path:
    path.mkdir()
    (path / "metrics.csv").write_text("epoch,step,val_loss,train_loss\n0,9,0.5,\n0,9,,0.7\n")
    save_config(replace(RECIPE, preprocessing=WHOLE, **changes), path / "config.json")
    return path


def test_what_the_papers_recipe_gave_is_kept_in_the_bundle(setting: Setting, tmp_path: Path) -> None:
    score(setting)
    assert setting.written()["paper_recipe"] is None
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "report.json").write_text(json.dumps(setting.written() | {"accuracy": 0.1234}))
    score(setting, paper=tmp_path / "paper")
    score(setting)
    assert setting.written()["paper_recipe"]["accuracy"] == 0.1234
    assert "0.1234" in (setting.bundle / "README.md").read_text()


def test_the_risk_is_that_of_the_most_confident_first(setting: Setting) -> None:
    score(setting)
    curve = setting.written()["risk_coverage"]
    assert curve["risk"][-1] == 3 / 49
    assert curve["risk"][0] == 0
    assert 0 < curve["area"] < 3 / 49


def test_the_engine_is_compared_with_float32(setting: Setting) -> None:
    scores = score(setting)
    assert setting.written()["float32"] == {"same_label": 1.0, "accuracy": scores.accuracy}


def test_curves_come_from_the_run_and_stay_when_the_bundle_is_scored_again(
    setting: Setting, tmp_path: Path
) -> None:
    score(setting, run=write_run(tmp_path / "run"))
    score(setting)
    assert setting.written()["figures"] == ["curves.png", "confusion.png", "reliability.png", "risk.png"]
    assert "(figures/curves.png)" in (setting.bundle / "README.md").read_text()


def test_the_curves_of_another_run_are_refused_before_anything_is_written(
    setting: Setting, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="not the run that the bundle was exported from"):
        score(setting, run=write_run(tmp_path / "run", epochs=7))
    assert not (setting.bundle / "report.json").exists()


def test_images_are_classified_in_batches_and_each_once(setting: Setting) -> None:
    seen: list[Row] = []

    def watch(rows: Iterable[Row], total: int) -> Iterable[Row]:
        rows = list(rows)
        assert total == len(rows)
        for row in rows:
            seen.append(row)
            yield row

    score(setting, progress=watch)
    assert seen[:49] == seen[49:98] == setting.rows[:-1]
    once = [32, 17]
    assert setting.engine.batches == [
        1,
        1,
        *once,
        *once,
    ]  # warming up, the known answer, as served, in float32


def test_photos_that_are_also_trained_on_are_counted(setting: Setting) -> None:
    setting.draw("eosinophil/copy.png", (0, 9, 0), "eosinophil-1", split="train")
    score(setting)
    assert setting.written()["photos_also_in_train"] == 1


def test_a_split_without_images_is_named(setting: Setting) -> None:
    with pytest.raises(DataError, match="no images of split 'val', only of test, train"):
        score(setting, split="val")


def test_an_image_that_is_not_the_manifests_is_named(setting: Setting) -> None:
    setting.rows[3] = replace(setting.rows[3], sha256="0" * 64)
    with pytest.raises(DataError, match=r"eosinophil/0_3\.png has changed"):
        score(setting)


def test_an_image_that_the_network_fails_on_is_named(setting: Setting) -> None:
    setting.draw("monocyte/bad.png", (0, 255, 0), "monocyte-1")
    with pytest.raises(EngineError, match=r"monocyte/bad\.png: .* not finite"):
        score(setting)


def test_an_engine_that_gets_the_known_answer_wrong_scores_nothing(setting: Setting) -> None:
    table = setting.config() | {"known_answer": [0.0, 0.0, 0.0, 1.0]}
    (setting.bundle / "config.json").write_text(json.dumps(table, indent=2) + "\n")
    with pytest.raises(BundleError, match="does not compute"):
        score(setting)


def test_rows_may_come_from_several_archives(setting: Setting, tmp_path: Path) -> None:
    for name in ("monocyte/a.png", "monocyte/b.png"):
        setting.draw(name, (2 * STEP, 9, 0), "monocyte-9")
        target = tmp_path / "second" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "slides" / name).rename(target)
        setting.rows[-1] = replace(setting.rows[-1], archive=str(tmp_path / "second"))
    assert score(setting).n == 51
    assert setting.written()["archives"] == ["second", "slides"]
