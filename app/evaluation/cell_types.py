"""What the labels of a bundle mean: which are leukocytes, and how a differential count reports the others.

A label may spell a type in several ways ("band", "band-cell", "neutrophil band"). One that is none of these
is a leukocyte of its own, unless a word in it names another kind of cell ("giant platelet").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    LEUKOCYTE = "leukocyte"  # a percentage of the leukocytes
    PER_100 = "per 100 leukocytes"  # not in the percentages: counted beside 100 leukocytes, by convention
    COUNTED = "counted"  # no leukocyte: only counted


@dataclass(frozen=True)
class CellType:
    """key: the label that names it in full. plural: its name in LOINC."""

    key: str
    plural: str
    role: Role = Role.LEUKOCYTE


# Further spellings, separated by commas; the order and number of words, blanks, - and _ make no difference.
SPELLINGS = {
    CellType("neutrophil", "Neutrophils"): "neut, neu, neutrophil granulocyte",
    CellType("segmented neutrophil", "Segmented neutrophils"): "segmented, seg, seg neutrophil",
    CellType("band", "Band form neutrophils"): "band neutrophil, banded neutrophil, stab, stab neutrophil",
    CellType("immature granulocyte", "Immature granulocytes"): "ig",
    CellType("metamyelocyte", "Metamyelocytes"): "",
    CellType("myelocyte", "Myelocytes"): "",
    CellType("promyelocyte", "Promyelocytes"): "progranulocyte",
    CellType("blast", "Blasts"): "",
    CellType("myeloblast", "Myeloblasts"): "",
    CellType("lymphoblast", "Lymphoblasts"): "",
    CellType("monoblast", "Monoblasts"): "",
    CellType("lymphocyte", "Lymphocytes"): "lymph, lym, typical lymphocyte",
    CellType("variant lymphocyte", "Variant lymphocytes"): "reactive lymphocyte, atypical lymphocyte",
    CellType("abnormal lymphocyte", "Abnormal lymphocytes"): "",
    CellType("large granular lymphocyte", "Large granular lymphocytes"): "lgl",
    CellType("prolymphocyte", "Prolymphocytes"): "",
    CellType("plasma cell", "Plasma cells"): "plasmocyte, plasmacyte",
    CellType("hairy cell", "Hairy cells"): "",
    CellType("sezary cell", "Sezary cells"): "",
    CellType("lymphoma cell", "Lymphoma cells"): "",
    CellType("monocyte", "Monocytes"): "mono, mon",
    CellType("promonocyte", "Promonocytes"): "",
    CellType("eosinophil", "Eosinophils"): "eos, eo, eosinophil granulocyte",
    CellType("basophil", "Basophils"): "baso, bas, basophil granulocyte",
    CellType("nucleated erythrocyte", "Nucleated erythrocytes", Role.PER_100): (
        "erythroblast, normoblast, nrbc, nucleated rbc, nucleated red cell, nucleated red blood cell"
    ),
    CellType("smudge cell", "Smudge cells", Role.PER_100): "basket cell, gumprecht shadow",
    CellType("platelet", "Platelets", Role.COUNTED): "thrombocyte, plt",
    CellType("erythrocyte", "Erythrocytes", Role.COUNTED): "rbc, red cell, red blood cell",
}
_FILLERS = {"cell", "form"}
# Kinds of labels that are no leukocytes, by a word in them.
_PER_100_WORDS = {
    "nrbc", "erythroblast", "normoblast", "proerythroblast", "pronormoblast", "megaloblast",
    "smudge", "smudged",
}  # fmt: skip
_COUNTED_WORDS = {
    "platelet", "thrombocyte", "megakaryocyte", "erythrocyte", "rbc", "reticulocyte",
    "artefact", "artifact", "debris", "dirt", "stain", "background", "empty",
}  # fmt: skip
# What a reader expects in a differential count; a model may know them by one of several types.
_EXPECTED = {
    "neutrophils": {"neutrophil", "segmented neutrophil"},
    "lymphocytes": {"lymphocyte"},
    "monocytes": {"monocyte"},
    "eosinophils": {"eosinophil"},
    "basophils": {"basophil"},
    "bands": {"band"},
    "immature granulocytes": {"immature granulocyte", "metamyelocyte", "myelocyte", "promyelocyte"},
    "blasts": {"blast", "myeloblast", "lymphoblast", "monoblast"},
    "nucleated erythrocytes": {"nucleated erythrocyte"},
}


def _words(label: str) -> frozenset[str]:
    words = [word.removesuffix("s") for word in re.split(r"[ _-]+", label.lower()) if word]
    return frozenset(words) - _FILLERS or frozenset(words)


_TYPES = {
    _words(spelling): cell_type
    for cell_type, spellings in SPELLINGS.items()
    for spelling in (cell_type.key, *filter(None, spellings.split(", ")))
}


def find_type(label: str) -> CellType | None:
    """Return the type that a label means; None for one that is in no list."""
    return _TYPES.get(_words(label))


def role_of(label: str) -> Role:
    """Return how a differential count reports the cells of a label."""
    known, words = find_type(label), _words(label)
    if known is not None:
        return known.role
    if words & _PER_100_WORDS:
        return Role.PER_100
    return Role.COUNTED if words & _COUNTED_WORDS else Role.LEUKOCYTE


def lacking(labels: Iterable[str]) -> list[str]:
    """Return the cells that a reader expects in a differential count and a model with these labels misses."""
    known = {cell_type.key for cell_type in map(find_type, labels) if cell_type is not None}
    return [name for name, types in _EXPECTED.items() if not types & known]
