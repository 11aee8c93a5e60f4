"""The labels of a laboratory's own models, in tests: five, and as many as a bundle may have."""

from __future__ import annotations

FIVE = ("neutrophil", "basophil", "ig", "erythroblast", "platelet")
THIRTY_TWO = (
    "basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil", "segmented neutrophil", "band",
    "metamyelocyte", "myelocyte", "promyelocyte", "immature granulocyte", "blast", "myeloblast",
    "lymphoblast", "monoblast", "promonocyte", "prolymphocyte", "reactive lymphocyte",
    "abnormal_lymphocyte", "large granular lymphocyte", "plasma cell", "hairy cell", "sezary cell",
    "lymphoma cell", "faggot-cell", "nrbc", "smudge cell", "platelet", "giant platelet", "artefact",
    "x2", "constructor",
)  # fmt: skip
