from __future__ import annotations

import unicodedata

import pytest

from app.archives.spelling import composed, did_you_mean, find_class, path_key

CLASSES = {"eosinophil": 0, "lymphocyte": 1, "monocyte": 2, "neutrophil": 3}


@pytest.mark.parametrize("name", ["Müller 0.jpg", "ñandú/Å.png", "가.png", "Ầ/ễ.tif", "\ud83d"])
def test_names_of_every_system_are_composed(name: str) -> None:
    assert composed(unicodedata.normalize("NFD", name)) == composed(name) == name


@pytest.mark.parametrize("name", ["a\\b.png", "./a/b.png", ".\\a\\b.png"])
def test_a_path_is_the_same_with_the_separators_of_windows_and_from_the_current_folder(name: str) -> None:
    assert path_key(name) == path_key("a/b.png")
    assert path_key("../b.png") != path_key("b.png")


def test_a_name_that_no_file_system_allows_costs_little() -> None:
    endless = (
        "a" + "\u0345\u0316" * 1_000_000
    )  # putting these marks in order takes the square of their number
    assert composed(endless) is endless


@pytest.mark.parametrize(
    "name", ["neutrophil", "NEUTROPHIL", "Neutrophils", " neutrophil ", "neutrophils\t", "\u00a0NEUTROPHILS"]
)
def test_a_class_is_found_whatever_its_case_blanks_and_number(name: str) -> None:
    assert find_class(name, CLASSES) == 3


def test_a_class_whose_name_ends_in_s_is_found_with_and_without_it() -> None:
    classes = {"blasts": 0, "cell": 1, "cells": 2, "basis": 3}
    assert [find_class(name, classes) for name in ("Blast", "blasts", "cell", "Cells", "basis", "basi")] == [
        0, 0, 1, 2, 3, 3,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", "s", "neutro phil", "neutrophilss", "basophil", "neutrophill"])
def test_another_name_is_no_class(name: str) -> None:
    assert find_class(name, CLASSES) is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("neutrophill", "neutrophil"),
        ("Neutrofil", "neutrophil"),
        ("eosinophile", "eosinophil"),
        ("monocyte_test", "monocyte"),
        ("lymhpocytes ", "lymphocyte"),
    ],
)
def test_a_misspelled_class_is_asked_about(name: str, meant: str) -> None:
    assert did_you_mean([name], CLASSES) == f"did you mean {meant}?"


def test_nothing_is_asked_about_other_names() -> None:
    assert (
        did_you_mean(["basophil", "erythroblast", "images", "Doe^Jane", "", "\x1b" * 10_000], CLASSES) == ""
    )
