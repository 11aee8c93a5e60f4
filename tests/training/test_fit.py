"""A whole run on drawn images: fit, resume, export, and the bundle in the service's classifier."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from app.engine.bundle import CLASSES
from app.engine.classifier import Prediction, load_classifier
from app.errors import BundleError
from app.imaging.decode import decode
from app.imaging.framing import frame_cell
from training.config import TrainConfig, load_recipe
from training.data import Row, checked_row, kaggle_row, with_kaggle_sources
from training.errors import DataError, ExportError, RecipeError
from training.export import Agreement, Changes, check, export
from training.fit import fit, read_facts
from training.images import ImageArchive
from training.module import BEST, LAST, Finetuning, load_checkpoint
from training.network import Network
from training.rows import choose_rows
from training.split import thin

pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:.*LeafSpec.*:FutureWarning",
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning",
)


def quick(recipe: str = "default", *overrides: str) -> TrainConfig:
    small = ["initial='random'", "workers=0", "epochs=1", "batch=8", "precision='32-true'", "holdout=0.25"]
    if recipe == "default":
        small += [
            "mix={slides=1}",
            "samples=16",
            "select_on='holdout'",
            "monitor='val_accuracy'",
            "detail=96",
        ]
        small += ["coarse_size=64", "shared_epochs=0"]
    return load_recipe(recipe, [*small, *overrides])


@pytest.fixture(scope="module")
def photos(rows: list[Row]) -> list[Row]:
    """One file of each photo: half the work, where copies do not matter."""
    return thin(rows, 1, 0)


@pytest.fixture(scope="module")
def resumed(photos: list[Row], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a run that stopped after its first of two epochs and was resumed, and the output of that."""
    path = tmp_path_factory.mktemp("runs") / "default"
    # A constant rate: the length of a schedule is fixed when it starts.
    fit(photos, quick("default", "schedule='constant'"), path)
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        fit(photos, quick("default", "schedule='constant'", "epochs=2"), path, resume=True)
    return path, output.getvalue()


@pytest.fixture(scope="module")
def run(resumed: tuple[Path, str]) -> Path:
    return resumed[0]


def test_a_run_leaves_checkpoints_a_log_its_recipe_and_its_data(run: Path) -> None:
    assert (run / BEST).is_file()
    assert (run / LAST).is_file()
    with (run / "log" / "version_0" / "metrics.csv").open() as file:
        names = set(next(csv.reader(file)))
    assert {"epoch", "step", "train_loss", "val_loss", "train_accuracy", "val_accuracy"} <= names
    assert json.loads((run / "config.json").read_text())["name"] == "default"
    facts = json.loads((run / "data.json").read_text())
    assert facts["train"]["sources"] == dict.fromkeys(facts["train"]["sources"], 3)


def test_selection_never_sees_a_photo_that_is_trained_on(rows: list[Row]) -> None:
    train, validation = choose_rows(rows, quick())
    assert not {row.source for row in train} & {row.source for row in validation}


def test_a_run_continues_where_it_stopped_and_shows_its_throughput(resumed: tuple[Path, str]) -> None:
    run, output = resumed
    state = torch.load(run / LAST, weights_only=True)
    assert state["epoch"] == 1
    assert state["global_step"] == 4
    assert "images/s=" in output


@pytest.mark.ops
def test_the_paper_recipe_runs_on_the_real_archive_and_its_outcome_loads(tmp_path: Path) -> None:
    path = Path(os.environ.get("LEUKO_DATA", "../shared/data")) / "blood-cells.zip"
    if not path.is_file():
        pytest.skip("LEUKO_DATA is absent: the paper's recipe is not tried on the real archive")
    # test_data checks the whole archive; decoding its 12,444 files again would prove nothing more.
    images = ImageArchive(path)
    named = with_kaggle_sources([row for name in images.names() if (row := kaggle_row(path, name))])
    sample = [row for split in ("train", "test") for row in sample_of(named, split)]
    rows = [checked_row(row, images.read(row.path)) for row in sample]
    config = load_recipe("paper", ["initial='random'", "workers=0", "epochs=1", "samples=32"])
    fit(rows, config, tmp_path / "paper")
    export(rows, tmp_path / "paper", tmp_path / "bundle", name="paper", version="0", int8_agreement=0.0)
    load_classifier(tmp_path / "bundle").warm_up(1)


def sample_of(rows: list[Row], split: str) -> list[Row]:
    """Return a file of each of four photos per class, the fewest that a class of TEST has."""
    photos = thin([row for row in rows if row.split == split and row.certain], 1, 0)
    return [row for label in CLASSES for row in [row for row in photos if row.label == label][:4]]


@pytest.mark.ops
def test_folds_start_together_and_their_mean_is_what_is_exported(
    photos: list[Row], archive: Path, tmp_path: Path
) -> None:
    other = str(shutil.copyfile(archive, tmp_path / "other.zip"))
    first = [row for row in photos if row.source.endswith(("0", "1"))]  # of each class, one for each fold
    both = [
        *first,
        *(replace(row, archive=other, laboratory="", source=f"other/{row.source}") for row in first),
    ]
    recipe = [
        "select_on='folds'",
        "folds=2",
        "monitor='last'",
        "shared_epochs=1",
        "mix={slides=0.5, other=0.5}",
        "samples=8",
        "detail=64",
        "coarse_size=32",
    ]
    config = quick("default", *recipe)
    run = tmp_path / "run"
    best = fit(both, config, run)
    folds = [load_checkpoint(run / f"fold-{k}" / BEST, config).trunk for k in (1, 2)]
    mean = load_checkpoint(best, config).trunk
    assert torch.allclose(mean.fc.weight, (folds[0].fc.weight + folds[1].fc.weight) / 2, atol=1e-6)
    assert not torch.equal(folds[0].fc.weight, folds[1].fc.weight)

    fit(both, config, run, resume=True)  # all folds are done: only the mean is computed again
    again = load_checkpoint(best, config).trunk
    assert torch.equal(again.bn1.running_mean, mean.bn1.running_mean)

    export(both, run, tmp_path / "bundle", name="mean", version="0", int8_agreement=0.0)
    written = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert written["training"]["validation"]["n"] == len(first)  # all of them out of fold
    load_classifier(tmp_path / "bundle").warm_up(1)


def test_a_finished_run_is_never_overwritten(rows: list[Row], run: Path) -> None:
    with pytest.raises(RecipeError, match="already holds a run"):
        fit(rows, quick(), run)


def test_resuming_what_never_ran_is_refused(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to resume"):
        fit(rows, quick(), tmp_path / "run", resume=True)


def test_other_images_than_the_runs_are_refused_when_it_is_resumed_or_exported(
    photos: list[Row], run: Path, tmp_path: Path
) -> None:
    others = [replace(photos[0], sha256="0" * 64), *photos[1:]]
    files = {path: path.read_bytes() for path in (run / "data.json", run / "config.json")}
    with pytest.raises(DataError, match=r"does not have the images that .* was trained on"):
        fit(others, quick("default", "schedule='constant'", "epochs=3"), run, resume=True)
    with pytest.raises(DataError, match=r"does not have the images that .* was trained on"):
        export(others, run, tmp_path / "out", name="x", version="1")
    assert {path: path.read_bytes() for path in files} == files
    for content in (b"", b"[]", b'{"train": {}}'):
        (tmp_path / "data.json").write_bytes(content)
        with pytest.raises(DataError, match="was not written by"):
            read_facts(tmp_path, photos, photos)
    with pytest.raises(DataError, match="run `leuko-train fit` first"):
        read_facts(tmp_path / "nowhere", photos, photos)


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 30])
def test_a_schedule_of_any_number_of_steps_warms_up_and_ends(steps: int) -> None:
    module = Finetuning(
        Network(len(CLASSES), quick().preprocessing), quick("default", "schedule='one-cycle'")
    )
    module.trainer = Mock(estimated_stepping_batches=steps)
    configured = module.configure_optimizers()  # type: ignore[no-untyped-call]
    if steps == 1:
        assert configured.param_groups[0]["lr"] == quick().learning_rate
        return
    schedule, rates = configured["lr_scheduler"]["scheduler"], []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        configured["optimizer"].step()
        if len(rates) < steps:
            schedule.step()
    assert max(rates) > 0.9 * quick().learning_rate
    assert rates[0] < max(rates)


def test_an_image_that_changed_since_the_manifest_was_created_is_not_trained_on(
    photos: list[Row], tmp_path: Path
) -> None:
    changed = [replace(row, sha256=f"{i:064}") for i, row in enumerate(photos)]
    with pytest.raises(DataError, match=r"slides\.zip: .* has changed since the manifest was created"):
        fit(changed, quick(), tmp_path / "run")


def test_selecting_on_a_split_that_the_manifest_lacks_is_refused(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no validation images of eosinophil"):
        fit(rows, quick("paper"), tmp_path / "run")


@pytest.fixture(scope="module")
def bundle(photos: list[Row], run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "drawn"
    agreed = export(photos, run, out, name="drawn", version="0.0.1", int8_agreement=0.0)
    assert agreed.half.same == 1
    return out


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_an_exported_bundle_loads_warms_up_and_answers_on_each_engine(
    bundle: Path, rows: list[Row], engine: str
) -> None:
    classifier = load_classifier(bundle, engine)
    classifier.warm_up(2)
    image = decode(ImageArchive(Path(rows[0].archive)).read(rows[0].path))
    cell = replace(frame_cell(image, classifier.bundle.preprocessing), cam=True)
    (answer,) = classifier.classify([cell])
    assert isinstance(answer, Prediction)
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-6)
    assert answer.cam is not None


def test_a_bundle_says_what_it_was_trained_on(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    assert config["training"]["data"]["train"]["archives"] == ["slides.zip"]
    assert config["training"]["recipe"]["name"] == "default"
    assert config["review"]["share"] == 0.05


def test_a_bundle_whose_graph_disagrees_is_not_written(
    photos: list[Row], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.export.agreement", lambda *_: agreement({"slides": Changes(2, 4)}))
    with pytest.raises(ExportError, match=r"changes 2 of 4 validation labels of slides; .*--int8-agreement"):
        export(photos, run, tmp_path / "bad", name="bad", version="1")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_with_which_the_service_would_not_start_is_not_written(
    photos: list[Row], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.export.known_answer", lambda *_: [0.0, 0.0, 0.0, 1.0])
    with pytest.raises(BundleError, match=r"the bundle expects \(0.0, 0.0, 0.0, 1.0\)"):
        export(photos, run, tmp_path / "bad", name="bad", version="1", int8_agreement=0.0)
    assert list(tmp_path.iterdir()) == []


def agreement(int8: dict[str, Changes], half: Changes | None = None) -> Agreement:
    return Agreement(half or Changes(0, 4), int8, 0.01)


def test_one_changed_label_of_a_few_does_not_refuse_a_bundle() -> None:
    check(agreement({"a": Changes(1, 8), "b": Changes(3, 200)}, Changes(1, 208)), 0.985)
    with pytest.raises(ExportError, match="changes 4 of 200 validation labels of b"):
        check(agreement({"a": Changes(1, 8), "b": Changes(4, 200)}), 0.985)
    with pytest.raises(ExportError, match="changes 1 of 8 validation labels of a"):
        check(agreement({"a": Changes(1, 8)}), 1.0)
    check(agreement({"a": Changes(8, 8)}), 0.0)


def test_half_precision_that_changes_a_label_is_refused() -> None:
    with pytest.raises(ExportError, match="half precision changes 5 of 1000 validation labels"):
        check(agreement({"a": Changes(0, 1000)}, Changes(5, 1000)), 0.9)


def test_a_folder_that_is_not_a_bundle_is_never_replaced(rows: list[Row], run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(ExportError, match="is not a bundle"):
        export(rows, run, tmp_path / "thesis", name="x", version="1", int8_agreement=0.0)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"


def test_exporting_a_run_without_a_checkpoint_says_what_to_do(
    rows: list[Row], run: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "data.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(ExportError, match="leuko-train fit"):
        export(rows, tmp_path, tmp_path / "out", name="x", version="1")
