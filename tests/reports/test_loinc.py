"""LOINC codes and texts of any bundle's labels."""

from __future__ import annotations

import pytest

from app.engine.bundle import CLASSES, check_code
from app.evaluation.cell_types import find_type
from app.reports.loinc import CODES, amount, codes, name, note
from tests.own_labels import FIVE, THIRTY_TWO
from tests.reports.examples import count


@pytest.mark.parametrize("method", CODES)
def test_every_code_is_of_a_known_type_and_has_its_check_digit(method: str) -> None:
    for key, code in CODES[method].items():
        cell_type = find_type(key)
        assert cell_type is not None
        assert cell_type.key == key
        assert check_code(code) == code


def test_no_code_stands_twice() -> None:
    every = [code for table in CODES.values() for code in table.values()]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("none", {"basophil": "30180-4", "band": "26508-2", "ig": "38518-7", "erythroblast": "19048-8"}),
        ("manual", {"basophil": "707-0", "band": "764-1", "erythroblast": "18309-5", "blast": "709-6"}),
        ("automated", {"basophil": "706-2", "band": "35332-6", "ig": "71695-1", "erythroblast": "58413-6"}),
        ("none", {"myelocyte": "26498-6", "promyelocyte": "26524-9", "metamyelocyte": "28541-1"}),
        ("manual", {"myelocyte": "749-2", "promyelocyte": "783-1", "metamyelocyte": "740-1"}),
        ("none", {"plasma cell": "13047-6", "reactive lymphocyte": "13046-8", "smudge cell": "34992-8"}),
    ],
)
def test_codes_are_those_of_the_type_and_the_method(method: str, expected: dict[str, str]) -> None:
    assert codes(expected, method, {}) == expected


def test_a_type_without_a_code_of_the_method_has_the_one_without_a_method() -> None:
    assert codes(["plasma cell", "blast"], "automated", {}) == {"plasma cell": "13047-6", "blast": "26446-5"}


def test_a_label_without_a_code_is_not_dropped() -> None:
    found = codes(THIRTY_TWO, "none", {})
    assert list(found) == list(THIRTY_TWO)
    assert {label for label, code in found.items() if code is None} == {
        "faggot-cell", "platelet", "giant platelet", "artefact", "x2", "constructor",
    }  # fmt: skip


def test_the_bundles_own_codes_come_first() -> None:
    own = {"x2": {"none": "30376-8", "manual": "709-6"}, "basophil": {"manual": "707-0"}}
    assert codes(["x2", "basophil"], "none", own) == {"x2": "30376-8", "basophil": "30180-4"}
    assert codes(["x2", "basophil"], "manual", own) == {"x2": "709-6", "basophil": "707-0"}
    assert codes(["x2", "basophil"], "automated", own) == {"x2": "30376-8", "basophil": "706-2"}


def test_one_code_never_stands_for_two_labels() -> None:
    stages = ["erythroblast", "nrbc", "basophil"]
    assert codes(stages, "none", {}) == {"erythroblast": None, "nrbc": None, "basophil": "30180-4"}
    assert codes(["band", "x2"], "none", {"x2": {"none": "26508-2"}}) == {"band": None, "x2": "26508-2"}


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("neutrophil", "Neutrophils/100 leukocytes in Blood"),
        ("ig", "Immature granulocytes/100 leukocytes in Blood (ig)"),
        ("plasma_cell", "Plasma cells/100 leukocytes in Blood"),
        ("nrbc", "Nucleated erythrocytes/100 leukocytes in Blood (nrbc)"),
        ("faggot-cell", "Faggot-cell/100 leukocytes in Blood"),
        ("platelet", "Platelets among the classified cells"),
        ("stain debris", "Stain debris among the classified cells"),
    ],
)
def test_the_text_names_the_type_and_the_label(label: str, text: str) -> None:
    assert name(label) == text


def test_every_label_has_a_text_of_its_own() -> None:
    assert len({name(label) for label in THIRTY_TWO}) == len(THIRTY_TWO)


def test_an_amount_is_a_percentage_a_ratio_or_a_number_of_cells() -> None:
    counted = count(FIVE, ["neutrophil"] * 3 + ["basophil", "erythroblast", "platelet", "platelet"])
    amounts = {label: amount(counted, label) for label in FIVE}
    assert amounts == {
        "neutrophil": (75.0, "%", "%"),
        "basophil": (25.0, "%", "%"),
        "ig": (0.0, "%", "%"),
        "erythroblast": (25.0, "per 100 leukocytes", "/100{WBCs}"),
        "platelet": (2, "cells", "{cells}"),
    }
    assert note(counted, "neutrophil").startswith("3 of 4 classified leukocytes; 95 % interval 30.1 to 95.4")
    assert note(counted, "erythroblast").startswith("1 beside 4 classified leukocytes; 95 % interval ")
    assert note(counted, "platelet") == "2 of 7 classified cells; no leukocytes, and in no percentage"


def test_the_shipped_labels_keep_their_texts() -> None:
    assert [name(label) for label in CLASSES] == [
        f"{label.capitalize()}s/100 leukocytes in Blood" for label in CLASSES
    ]
