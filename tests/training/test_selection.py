from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.bundle import CLASSES
from training.config import TrainConfig, load_recipe
from training.data import Row
from training.errors import DataError
from training.rows import choose_rows, outliers
from training.selection import check_selection


@pytest.fixture(autouse=True)
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first.zip", "second.zip"):
        (tmp_path / name).touch()


def manifest(
    photos: int, *archives: str, split: str = "train", classes: tuple[str, ...] = CLASSES
) -> list[Row]:
    return [
        Row(archive, f"{label}/{photo}", label, split, f"{archive}/{label}{photo}", True, "")
        for archive in archives
        for label in classes
        for photo in range(photos)
    ]


def check(rows: list[Row], config: TrainConfig) -> None:
    train, validation = choose_rows(rows, config)
    check_selection(train, validation, outliers(rows, config), config)


def refuse(rows: list[Row], recipe: str, *overrides: str) -> str:
    """Return why the selection is refused."""
    with pytest.raises(DataError) as caught:
        check(rows, load_recipe(recipe, overrides))
    return str(caught.value)


ONE = ("mix={first=1}", "shared_epochs=0")


def test_fewer_images_than_a_batch_are_refused_whatever_is_selected_on() -> None:
    tested = manifest(1, "first.zip", split="test")
    eight = manifest(2, "first.zip")
    said = "training images, which do not fill a batch of 32, so it would never take a step: add images, or"
    assert refuse([*eight, *tested], "paper") == f"the network has 8 {said} --set batch=8"
    assert refuse(eight, "paper", 'select_on="holdout"') == f"the network has 4 {said} --set batch=4"
    folds = refuse(eight, "default", *ONE, "folds=2", "samples=0")
    assert folds.startswith(
        f"the network without fold 1 has 4 {said} --set batch=4; the network without fold 2"
    )
    samples = refuse([*eight, *tested], "paper", "samples=8")
    assert "has samples = 8, which do not fill a batch of 32" in samples
    check([*eight, *tested], load_recipe("paper", ["batch=8"]))
    check([*eight, *tested], load_recipe("paper", ["samples=32"]))


def test_a_folder_of_ones_own_is_told_all_that_the_default_recipe_lacks() -> None:
    said = refuse(manifest(8, "first.zip"), "default")
    assert "--set 'mix={ \"first\" = 1 }'" in said
    assert "--set shared_epochs=0" in said
    check(manifest(8, "first.zip"), load_recipe("default", ['mix={ "first" = 1 }', "shared_epochs=0"]))


def test_a_mix_is_of_the_laboratories_of_the_manifest() -> None:
    both = manifest(8, "first.zip", "second.zip")
    assert "mixes first, third, the manifest has first, second" in refuse(
        both, "default", "mix={first=1,third=1}"
    )
    said = refuse(both, "default", "mix={first=1,second=0}")
    assert said.startswith("the shared start has only laboratories of which the mix takes no share")


@pytest.mark.parametrize(
    ("photos", "overrides", "complaint"),
    [
        (1, ('select_on="holdout"',), "eosinophil has 1 source photos, too few to hold photos out; .*: add"),
        (1, ONE, "too few for 5 folds: add"),
        (3, ONE, r"monocyte has 3 source photos, too few for 5 folds;.* \(or --set folds=3\): add"),
        (3, ('select_on="laboratories"', *ONE), "at least two in the manifest: name all of them"),
        (3, ('select_on="val"', *ONE), "no validation images of .*--split 80:10:10"),
        (3, ('select_on="test"', *ONE), "no validation images of .*--split 80:20"),
    ],
)
def test_too_few_photos_or_laboratories_are_said_with_what_to_do(
    photos: int, overrides: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        check(manifest(photos, "first.zip"), load_recipe("default", overrides))


def test_each_laboratory_left_out_leaves_every_class() -> None:
    rows = [*manifest(3, "first.zip"), *manifest(3, "second.zip", classes=CLASSES[:3])]
    said = refuse(rows, "default", 'select_on="laboratories"', "shared_epochs=0", "mix={first=1,second=1}")
    assert said == "the network without first has no training images of neutrophil: add some"


def test_a_manifest_without_the_classes_is_refused() -> None:
    cells = [replace(row, label="basophil") for row in manifest(3, "first.zip")]
    for rows in ([], cells):
        assert "no images of eosinophil, lymphocyte" in refuse(rows, "paper")
    assert "no train images of neutrophil" in refuse(manifest(9, "first.zip", classes=CLASSES[:3]), "paper")


def test_archives_that_are_not_there_are_all_named() -> None:
    rows = [*manifest(8, "a.zip", "first.zip"), *manifest(8, "b.zip", split="test")]
    said = refuse(rows, "paper")
    assert said.startswith("a.zip, b.zip of the manifest do not exist: work in the folder")
