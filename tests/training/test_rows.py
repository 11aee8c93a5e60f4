from __future__ import annotations

from dataclasses import replace

import pytest

from app.engine.bundle import CLASSES
from training.config import load_recipe
from training.data import Row
from training.errors import DataError
from training.rows import choose_rows, fold_rows, outliers, shared_rows

CONFIG = load_recipe("default", ["folds=3", "files=2", "holdout_files=1"])


def split_of(photo: int) -> str:
    return "test" if photo == 6 else "train"


def manifest() -> list[Row]:
    """Return seven photos per class with four files each, from two laboratories; one photo is in TEST."""
    return [
        Row(archive, f"{label}/{photo}_{i}", label, split_of(photo), f"{archive}/{label}{photo}", True, "")
        for archive in ("first.zip", "second.zip")
        for label in CLASSES
        for photo in range(7)
        for i in range(4)
    ]


def test_every_photo_is_held_out_once_by_a_network_that_never_saw_it() -> None:
    train, validation = choose_rows(manifest(), CONFIG)
    held_out = []
    for fold_train, fold_validation in fold_rows(train, validation, CONFIG):
        assert not {row.source for row in fold_train} & {row.source for row in fold_validation}
        assert {row.label for row in fold_validation} == set(CLASSES)
        held_out += fold_validation
    assert sorted(row.source for row in held_out) == sorted(row.source for row in validation)
    assert {row.archive for row in held_out} == {"first.zip"}


def test_every_laboratory_is_left_out_once() -> None:
    config = replace(CONFIG, select_on="laboratories", shared_epochs=0)
    train, validation = choose_rows(manifest(), config)
    folds = fold_rows(train, validation, config)
    assert [{row.archive for row in held_out} for _, held_out in folds] == [{"first.zip"}, {"second.zip"}]
    assert [{row.archive for row in trained} for trained, _ in folds] == [{"second.zip"}, {"first.zip"}]


def test_leaving_out_the_only_laboratory_is_refused() -> None:
    config = replace(CONFIG, select_on="laboratories", shared_epochs=0)
    train, validation = choose_rows([row for row in manifest() if row.archive == "first.zip"], config)
    with pytest.raises(DataError, match="at least two"):
        fold_rows(train, validation, config)


def test_test_is_neither_trained_nor_validated_on() -> None:
    train, validation = choose_rows(manifest(), CONFIG)
    assert {row.split for row in (*train, *validation)} == {"train"}


def test_only_so_many_files_of_a_photo_are_used() -> None:
    train, validation = choose_rows(manifest(), CONFIG)
    assert (len(train), len(validation)) == (2 * 4 * 6 * 2, 4 * 6)


def test_the_shared_start_never_sees_the_archive_that_is_validated_on() -> None:
    train, validation = choose_rows(manifest(), CONFIG)
    assert {row.archive for row in shared_rows(train, validation)} == {"second.zip"}


def test_a_source_that_is_uncertain_is_neither_trained_nor_validated_on() -> None:
    rows = [replace(row, certain=row.path != "monocyte/0_0") for row in manifest()]
    for config in (CONFIG, replace(CONFIG, select_on="holdout", holdout=0.5)):
        train, validation = choose_rows(rows, config)
        assert all(row.certain for row in (*train, *validation))


def test_too_few_photos_for_the_folds_are_named() -> None:
    train, validation = choose_rows(manifest(), CONFIG)
    with pytest.raises(DataError, match="eosinophil has 6 source photos, too few for 7 folds"):
        fold_rows(train, validation, replace(CONFIG, folds=7))


def test_cells_of_no_class_are_outliers_of_training_only_and_only_where_the_recipe_wants_them() -> None:
    kinds = [replace(row, label="platelet") for row in manifest() if row.label == "monocyte"]
    rows = [*manifest(), *kinds]
    assert choose_rows(rows, CONFIG) == choose_rows(manifest(), CONFIG)
    assert outliers(rows, CONFIG) == []
    found = outliers(rows, replace(CONFIG, outliers=0.1))
    assert {(row.label, row.split) for row in found} == {("platelet", "train")}
    with pytest.raises(DataError, match="--others FOLDER"):
        outliers(manifest(), replace(CONFIG, outliers=0.1))
