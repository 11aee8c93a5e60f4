from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.engine.bundle import CLASSES, FamiliarRule, load_bundle
from app.engine.classifier import load_classifier
from training.cli import main
from training.data import Row, write_manifest
from training.errors import ExportError
from training.export import export
from training.laboratories import judge
from training.laboratory import lines_of, table_of
from training.review import ReviewLimits, calibrate_elsewhere, familiar_rule, limits_elsewhere
from training.scored import HeldOut

IGNORED = pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:.*LeafSpec.*:FutureWarning",
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning",
)
NO_LIMITS = ReviewLimits(confidence=0.0, ood_score=9.0, share=0.0)


def held_out(laboratories: dict[str, tuple[float, float]], n: int = 400) -> HeldOut:
    """Return made-up scores: of each laboratory, the share right among its sure and its unsure half."""
    rows, logits, labels = [], [], []
    for name, shares in laboratories.items():
        for i in range(n):
            sure = i % 2 == 0
            label = (i // 2) % 4
            right = (i // 8) % (n // 8) < shares[not sure] * (n // 8)
            scores = np.zeros(4, np.float32)
            scores[label if right else (label + 1) % 4] = 5.0 if sure else 1.0
            rows.append(Row(f"{name}.zip", f"{i}", CLASSES[label], "train", f"{name}/{i // 8}", True, ""))
            logits.append(scores)
            labels.append(label)
    count = len(rows)
    return HeldOut(
        rows,
        np.stack(logits),
        np.ones(count, np.float32),
        np.array(labels),
        np.full(count, 1 / count, np.float32),
        np.zeros(count, bool),
    )


def test_the_scores_of_each_laboratory_are_its_own() -> None:
    good, bad = judge(held_out({"bad": (0.9, 0.5), "good": (1.0, 1.0)}), 1.0, NO_LIMITS)[::-1]
    assert (bad.laboratory, bad.images, bad.groups) == ("bad", 400, 50)
    assert bad.balanced_accuracy == pytest.approx(0.7, abs=0.01)
    assert bad.interval[0] < 0.7 < bad.interval[1]
    assert bad.interval[1] - bad.interval[0] < 0.2
    assert (good.balanced_accuracy, good.interval, good.kept, good.right_when_kept) == (
        1.0,
        (1.0, 1.0),
        1.0,
        1.0,
    )


def test_classes_weigh_the_same_however_many_images_they_have() -> None:
    scores = held_out({"one": (1.0, 1.0)})
    wrong = scores.labels == 3
    scores.logits[wrong] = np.roll(scores.logits[wrong], 1, axis=1)
    many = [i for i in range(400) if not wrong[i] or i % 16 == 6]
    chosen = HeldOut(
        [scores.rows[i] for i in many],
        scores.logits[many],
        scores.ood_scores[many],
        scores.labels[many],
        scores.weights[many],
        scores.familiar[many],
    )
    assert judge(chosen, 1.0, NO_LIMITS)[0].balanced_accuracy == pytest.approx(0.75)


def test_thresholds_keep_what_is_right_in_laboratories_left_out() -> None:
    scores = held_out({"bad": (0.97, 0.5), "good": (1.0, 0.99)})
    limits = limits_elsewhere(scores, 1.0, 0.95)
    kept = limits.keep(scores, 1.0)
    assert kept.mean() == pytest.approx(0.5)
    assert limits.share == pytest.approx(0.5)
    bad, good = judge(scores, 1.0, limits)
    assert bad.right_when_kept == pytest.approx(0.97, abs=0.02)
    assert good.right_when_kept == 1.0


def test_images_like_those_trained_on_have_thresholds_of_their_own() -> None:
    scores = held_out({"bad": (0.97, 0.5), "good": (1.0, 0.99)})
    strict = limits_elsewhere(scores, 1.0, 0.95)
    familiar = replace(scores, familiar=np.arange(len(scores.rows)) % 4 == 1)  # half of the unsure ones
    limits = limits_elsewhere(familiar, 1.0, 0.95, FamiliarRule(5.0, 0.0, 9.0))
    assert limits.confidence == pytest.approx(strict.confidence, abs=1e-3)
    kept = limits.keep(familiar, 1.0)
    assert kept[familiar.familiar].all()
    assert (kept[~familiar.familiar] == strict.keep(scores, 1.0)[~familiar.familiar]).all()
    assert limits.share == pytest.approx(0.25, abs=0.01)


def test_the_rule_for_familiar_images_sends_a_twentieth_of_them_to_review() -> None:
    scores = held_out({"home": (0.97, 0.9)})
    rng = np.random.default_rng(0)
    logits = scores.logits * rng.uniform(0.5, 2, len(scores.rows))[:, None]
    spread = replace(scores, logits=logits.astype(np.float32), ood_scores=rng.random(len(logits), np.float32))
    rule = familiar_rule(spread, 1.0, 7.0)
    kept = ReviewLimits(2.0, -1.0, 0.0, rule).keep(replace(spread, familiar=np.ones(len(logits), bool)), 1.0)
    assert rule.distance == 7.0
    assert kept.mean() == pytest.approx(0.95, abs=0.02)


def test_where_laboratories_look_alike_all_images_have_the_same_thresholds() -> None:
    scores = held_out({"bad": (0.97, 0.5), "good": (1.0, 0.99)})
    seen = held_out({"home": (1.0, 1.0)})
    few, many = (replace(scores, familiar=np.arange(len(scores.rows)) % 10 < n) for n in (1, 5))
    assert calibrate_elsewhere(few, seen, 7.0, 0.95)[1].familiar is not None
    temperature, limits = calibrate_elsewhere(many, seen, 7.0, 0.95)
    assert limits == limits_elsewhere(many, temperature, 0.95)


def test_where_no_threshold_keeps_cells_that_are_right_often_enough_nothing_is_exported() -> None:
    with pytest.raises(ExportError, match="95% are right in laboratories left out"):
        limits_elsewhere(held_out({"bad": (0.8, 0.8), "good": (1.0, 1.0)}), 1.0, 0.95)


def test_the_table_has_the_mean_and_the_worst() -> None:
    text = table_of(judge(held_out({"bad": (0.6, 0.6), "good": (1.0, 1.0)}), 1.0, NO_LIMITS))
    assert "| bad | no | 400 | 50 | 0.600 (" in text
    assert text.endswith("Mean 0.800; worst 0.600 (bad).")


def test_the_table_fits_a_terminal_however_long_a_name_is() -> None:
    name = "Haematology, General Hospital"
    text = lines_of(judge(held_out({name: (0.6, 0.6), "good": (1.0, 1.0)}), 1.0, NO_LIMITS))
    lines = text.splitlines()
    assert max(map(len, lines[:3])) <= 80
    assert lines[1].startswith("Haematology, Gen    400     50  0.600 (")
    assert lines[-1] == f"Mean 0.800; worst 0.600 ({name})."


@pytest.mark.ops
@IGNORED
def test_one_command_trains_without_each_laboratory_and_its_run_can_be_exported(
    rows: list[Row], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(shutil.copyfile(archive, tmp_path / "other.zip"))
    first = [row for row in rows if row.source.endswith(("0", "1"))]
    second = [replace(row, archive=other, laboratory="", source=f"other/{row.source}") for row in first]
    spare = [replace(row, label="basophil") for row in rows if row.source.endswith("2")]
    unknown = [*spare[:2], replace(spare[0], archive=other, laboratory="")]
    both = [*first, *second, *unknown]
    manifest, run, bundle = tmp_path / "manifest.csv", tmp_path / "run", tmp_path / "bundle"
    write_manifest(both, manifest)
    settings = (
        "epochs=1",
        "coarse_epochs=0",
        "samples=8",
        "batch=8",
        "detail=64",
        "workers=0",
        'initial="random"',
        "preprocessing.size=64",
        "holdout_files=1",
        "outliers=0.3",
    )
    arguments = ["--manifest", str(manifest), "--run", str(run)]
    options = ["--right-when-kept", "0", *(part for one in settings for part in ("--set", one))]
    assert main(["laboratories", *arguments, *options]) == 0
    *shown, took = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()[:3]) for line in shown[-4:-2]] == ["other 8 8", "slides 8 8"]
    assert max(map(len, shown[-5:])) <= 80
    assert took.startswith("took ")
    assert sorted(path.name for path in run.glob("fold-*")) == ["fold-1", "fold-2"]

    export(both, run, bundle, name="elsewhere", version="0", int8_agreement=0.0, right_when_kept=0.0)
    figures = json.loads((bundle / "config.json").read_text())["training"]["laboratories"]
    assert [one["laboratory"] for one in figures] == ["other", "slides"]
    assert load_bundle(bundle).preprocessing.size == 64
    load_classifier(bundle).warm_up(1)
