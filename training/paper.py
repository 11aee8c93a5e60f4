"""Table 2 of Tarigan, Prasetyo and Susanti (2025) as printed, for comparison in the model card."""

from __future__ import annotations

from collections.abc import Sequence

TITLE = "Deep Learning-Based Blood Cell Image Classification Using ResNet18 Architecture"
AUTHORS = ("Tarigan", "Prasetyo", "Susanti")
JOURNAL = "Indonesian Journal of Data and Science"
YEAR, MONTH, DAY = 2025, "July", 31
LICENCE = "CC BY-NC 4.0"

PAPER_RECIPE = "paper-recipe.json"  # in a bundle: scores of the paper's recipe, written by `report --paper`

SUPPORT = {"eosinophil": 623, "lymphocyte": 620, "monocyte": 620, "neutrophil": 624}
N = sum(SUPPORT.values())


def has_classes(labels: Sequence[str]) -> bool:
    """Return whether these are the paper's classes, so that scores can stand beside the paper's."""
    return set(labels) == set(SUPPORT)


# precision, recall, F1
PER_CLASS = {
    "eosinophil": (0.7731, 0.8475, 0.8086),
    "lymphocyte": (0.9102, 0.9968, 0.9515),
    "monocyte": (0.9598, 0.8081, 0.8774),
    "neutrophil": (0.8524, 0.8237, 0.8378),
}
MACRO = (0.8738, 0.8690, 0.8688)
WEIGHTED = (0.8737, 0.8689, 0.8687)
ACCURACY = 0.8689
MSE = 0.7125
RMSE = 0.8441

# From the Method and Results sections; where they contradict each other, what their numbers support.
METHOD = {
    "training images": "Kaggle's TRAIN folder",
    "input": "the whole image, 224 × 224",
    "initial weights": "ImageNet",
    "epochs, at most": "10 (Results; the Method says 50)",
    "images per step": "32",
    "learning rate": "0.0001, Adam",
    "epoch selected on": "TEST, the images that it reports",
    "probabilities": "softmax of the logits",
    "interval": "none",
}
