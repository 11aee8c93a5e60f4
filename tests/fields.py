"""Drawn fields of several leukocytes, and a fake classifier that frames cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, cast

from PIL import Image

from app.engine.classifier import Classifier
from app.imaging.framing import Preprocessing
from app.imaging.leukocytes import find_leukocytes
from app.imaging.nucleus import Nucleus
from app.imaging.thumbnail import Thumbnail
from app.samples.smear import DrawnCell, draw_field
from app.settings import Settings
from tests.fakes import HeldClassifier
from tests.pictures import encode

FOUR = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")


@cache
def field(
    labels: tuple[str, ...] = FOUR, seed: int = 1, **options: Any
) -> tuple[Image.Image, list[DrawnCell]]:
    return draw_field(labels, seed=seed, **options)


@cache
def field_png(labels: tuple[str, ...] = FOUR, seed: int = 1) -> bytes:
    return encode(field(labels, seed)[0], "PNG")


def find(image: Image.Image) -> list[Nucleus]:
    return find_leukocytes(image, Thumbnail.of(image))


def hits(nuclei: Sequence[Nucleus], cells: Sequence[DrawnCell]) -> list[int]:
    """Return how many nuclei have their centre in each cell; −1 at the end for each that is in none."""
    inside = [
        [(nucleus.x - cell.x) ** 2 + (nucleus.y - cell.y) ** 2 < cell.radius**2 for cell in cells]
        for nucleus in nuclei
    ]
    return [*(sum(column) for column in zip(*inside, strict=True)), *(-1 for row in inside if not any(row))]


class FieldClassifier(HeldClassifier):
    """A fake that frames cells as the shipped bundle does."""

    def __init__(self) -> None:
        super().__init__()
        self.bundle = replace(self.bundle, preprocessing=Preprocessing(size=64))


def load_fields(_: Settings) -> Classifier:
    return cast(Classifier, FieldClassifier())
