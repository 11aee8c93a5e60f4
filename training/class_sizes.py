"""How many labelled cells of each class a laboratory needs: known before a picture is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from app.archives.images import open_labelled
from app.archives.labelled_archive import ArchiveLimits
from training.errors import DataError

LEAST = 5  # cells of each class


def check_folders(path: Path, names: Sequence[str]) -> None:
    """Raise DataError if a ZIP or folder has fewer than `LEAST` pictures of a class, without reading any.

    Raise BadArchive or TooLarge.
    """
    with open_labelled(path, names, ArchiveLimits()) as images:
        check_labels((image.label for image in images.found), names)


def check_labels(labels: Iterable[int], names: Sequence[str]) -> None:
    """Raise DataError if a class has fewer than `LEAST` cells. labels: class indices, -1 if unknown."""
    found = [*labels]
    if few := [f"{name}: {n}" for i, name in enumerate(names) if (n := found.count(i)) < LEAST]:
        raise DataError(
            f"at least {LEAST} cells of each class are needed; {', '.join(few)}. Label more cells,"
            " or use --unlabelled alone"
        )
