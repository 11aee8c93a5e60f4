"""What labels mean, and what of them a percentage is."""

from __future__ import annotations

import pytest

from app.engine.bundle import CLASSES
from app.evaluation.cell_types import Role, find_type, lacking, role_of
from tests.own_labels import FIVE


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("neutrophil", "neutrophil"),
        ("neutrophils", "neutrophil"),
        ("band", "band"),
        ("band-cell", "band"),
        ("band form", "band"),
        ("neutrophil_band", "band"),
        ("band_neutrophils", "band"),
        ("segmented neutrophil", "segmented neutrophil"),
        ("neutrophil segmented", "segmented neutrophil"),
        ("ig", "immature granulocyte"),
        ("immature_granulocytes", "immature granulocyte"),
        ("atypical lymphocyte", "variant lymphocyte"),
        ("reactive-lymphocyte", "variant lymphocyte"),
        ("plasma cell", "plasma cell"),
        ("eos", "eosinophil"),
        ("nrbc", "nucleated erythrocyte"),
        ("erythroblast", "nucleated erythrocyte"),
        ("nucleated red blood cells", "nucleated erythrocyte"),
        ("smudge cell", "smudge cell"),
        ("thrombocyte", "platelet"),
        ("faggot cell", None),
        ("cell", None),
        ("band of neutrophils", None),
    ],
)
def test_a_type_is_found_however_it_is_spelled(label: str, key: str | None) -> None:
    found = find_type(label)
    assert (found and found.key) == key


@pytest.mark.parametrize(
    ("label", "role"),
    [
        *(
            (label, Role.LEUKOCYTE)
            for label in (*CLASSES, "blast", "ig", "plasma cell", "faggot cell", "other")
        ),
        *((label, Role.PER_100) for label in ("nrbc", "erythroblast", "proerythroblast", "smudged cell")),
        ("basophilic erythroblast", Role.PER_100),
        *((label, Role.COUNTED) for label in ("platelet", "giant_platelet", "platelet clump", "artefact")),
        ("stain debris", Role.COUNTED),
        ("erythrocyte", Role.COUNTED),
        ("red blood cell", Role.COUNTED),
    ],
)
def test_what_is_no_leukocyte_is_in_no_percentage(label: str, role: Role) -> None:
    assert role_of(label) is role


def test_what_a_model_lacks_is_said_of_its_labels() -> None:
    assert lacking(CLASSES) == [
        "basophils", "bands", "immature granulocytes", "blasts", "nucleated erythrocytes",
    ]  # fmt: skip
    assert lacking(FIVE) == ["lymphocytes", "monocytes", "eosinophils", "bands", "blasts"]
    assert lacking(["segmented neutrophil", "myelocyte", "myeloblast"]) == [
        "lymphocytes", "monocytes", "eosinophils", "basophils", "bands", "nucleated erythrocytes",
    ]  # fmt: skip
