"""A laboratory's own pictures: read as the service does, framed, and cut with room for augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from app.archives.file_labels import assign_groups, read_mapping
from app.archives.image_files import left_out_line
from app.archives.images import StoredImage, find_images, open_labelled
from app.archives.labelled_archive import ArchiveLimits
from app.engine.bundle import Bundle
from app.errors import LeukoError
from app.imaging.decode import decode
from app.imaging.framing import Preprocessing, frame_cell
from training.adapt import VARIATION, OwnCells, Pixels
from training.errors import DataError
from training.patches import cut_patch, room_for

MAX_BYTES = 64 * 2**20  # of a picture
MARGIN = 1.15  # detail of a patch ÷ that of the network's input

Progress = Callable[[Iterable[StoredImage], int], Iterable[StoredImage]]  # shows how far the reading is


def unchanged(images: Iterable[StoredImage], _total: int) -> Iterable[StoredImage]:
    return images


def read_labelled(
    path: Path, bundle: Bundle, groups: Path | str | None, progress: Progress = unchanged
) -> tuple[OwnCells, str]:
    """Read a ZIP or folder with one folder for each class; return also which files were left out and why.

    groups: a file or pattern that gives each picture's patient or slide; None: each picture is its own.
    Raise DataError that names every picture that cannot be read, BadArchive or BadLabels.
    """
    with open_labelled(path, bundle.labels, ArchiveLimits()) as images:
        names = [image.name for image in images.found]
        if groups is None:
            sources = names
        else:
            grouping = groups if isinstance(groups, str) else read_mapping(groups)
            sources = [source.decode() for source in assign_groups(names, grouping)]
        cells = read_cells(images.found, sources, bundle.preprocessing, progress)
    return cells, left_out_line(images.left_out)


def read_unlabelled(
    folders: Sequence[Path], bundle: Bundle, progress: Progress = unchanged
) -> tuple[Pixels, str]:
    """Read and frame the pictures of folders, uint8 [n, size, size, 3]; return also what was left out.

    Raise DataError.
    """
    images = find_images([str(folder) for folder in folders], BytesIO(), MAX_BYTES)
    framed, _ = _read(images.found, bundle.preprocessing, progress)
    return framed, left_out_line(images.left_out)


def read_cells(
    images: Sequence[StoredImage],
    groups: Sequence[str],
    preprocessing: Preprocessing,
    progress: Progress = unchanged,
) -> OwnCells:
    """Read and frame labelled pictures. groups: of each. Raise DataError."""
    framed, patches = _read(images, preprocessing, progress)
    return OwnCells(framed, patches, np.array([image.label for image in images], np.int64), groups)


def _read(
    images: Sequence[StoredImage], preprocessing: Preprocessing, progress: Progress
) -> tuple[Pixels, Pixels]:
    size, room = preprocessing.size, room_for(VARIATION)
    framed, patches, faults = [], [], []
    for image in progress(images, len(images)):
        try:
            picture = decode(image.read())
        except LeukoError as error:
            faults.append(f"{image.name}: {error.detail}")
            continue
        framed.append(frame_cell(picture, preprocessing).pixels)
        patches.append(cut_patch(picture, preprocessing, round(MARGIN * size * room), room))
    if faults:
        raise DataError("pictures that cannot be read: " + "; ".join(faults))
    if not framed:
        raise DataError("there are no pictures")
    return np.stack(framed), np.stack(patches)
