"""A laboratory's own pictures: read as the service does, framed, and cut with room for augmentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np

from app.archives.file_labels import assign_groups, read_mapping
from app.archives.image_files import left_out_line
from app.archives.images import StoredImage, find_images, open_labelled
from app.archives.labelled_archive import ArchiveLimits, named_folders
from app.engine.bundle import Bundle
from app.errors import LeukoError
from app.evaluation.copies import refuse_two_classes
from app.evaluation.review_thresholds import Flags
from app.imaging.decode import decode
from app.imaging.framing import Preprocessing, frame_cell
from app.imaging.quality import QualityLimits
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
    Raise DataError that names every picture that cannot be read, BadArchive, or BadLabels if one picture is
    in two classes.
    """
    with open_labelled(path, bundle.labels, ArchiveLimits()) as images:
        names = [image.name for image in images.found]
        if groups is None:
            sources = names
        else:
            grouping = groups if isinstance(groups, str) else read_mapping(groups)
            sources = [source.decode() for source in assign_groups(names, grouping)]
        cells = read_cells(images.found, sources, bundle.preprocessing, progress, bundle.quality_limits)
        refuse_two_classes(images.found, cells.hashes)
    return cells, left_out_line(images.left_out)


def read_replay(
    paths: Sequence[Path], bundle: Bundle, progress: Progress = unchanged
) -> tuple[OwnCells, list[str]]:
    """Read labelled cells of other laboratories; return also what was left out, a line for each archive.

    Folders of classes that the bundle does not have are left out. Raise as `read_labelled` does.
    """
    found, lines = [], []
    for path in paths:
        outside: Counter[str] = Counter()
        with open_labelled(path, bundle.labels, ArchiveLimits(), outside) as images:
            names = [image.name for image in images.found]
            found.append(read_cells(images.found, names, bundle.preprocessing, progress))
        strange = outside and f"folders of no class of the bundle were left out: {named_folders(outside)}"
        lines += [f"{path}: {line}" for line in (left_out_line(images.left_out), strange) if line]
    return together(found), lines


def together(cells: Sequence[OwnCells]) -> OwnCells:
    """Return the cells of several archives as one set."""
    return OwnCells(
        np.concatenate([each.framed for each in cells]),
        np.concatenate([each.patches for each in cells]),
        np.concatenate([each.labels for each in cells]),
        [group for each in cells for group in each.groups],
    )


def read_unlabelled(
    folders: Sequence[Path], bundle: Bundle, progress: Progress = unchanged
) -> tuple[Pixels, str]:
    """Read and frame the pictures of folders, uint8 [n, size, size, 3]; return also what was left out.

    Raise DataError.
    """
    images = find_images([str(folder) for folder in folders], BytesIO(), MAX_BYTES)
    return _read(images.found, bundle.preprocessing, progress).framed, left_out_line(images.left_out)


def read_cells(
    images: Sequence[StoredImage],
    groups: Sequence[str],
    preprocessing: Preprocessing,
    progress: Progress = unchanged,
    limits: QualityLimits | None = None,
) -> OwnCells:
    """Read and frame labelled pictures. groups: of each. limits: of their quality. Raise DataError."""
    read = _read(images, preprocessing, progress, limits)
    labels = np.array([image.label for image in images], np.int64)
    return OwnCells(read.framed, read.patches, labels, groups, read.poor, read.hashes)


@dataclass(frozen=True)
class _Pictures:
    """As in `OwnCells`."""

    framed: Pixels
    patches: Pixels
    poor: Flags
    hashes: Sequence[str]


def _read(
    images: Sequence[StoredImage],
    preprocessing: Preprocessing,
    progress: Progress,
    limits: QualityLimits | None = None,
) -> _Pictures:
    size, room = preprocessing.size, room_for(VARIATION)
    framed, patches, poor, hashes, faults = [], [], [], [], []
    for image in progress(images, len(images)):
        try:
            content = image.read()
            picture = decode(content)
        except LeukoError as error:
            faults.append(f"{image.name}: {error.detail}")
            continue
        cell = frame_cell(picture, preprocessing)
        framed.append(cell.pixels)
        poor.append(limits is not None and bool(limits.reasons(cell.quality)))
        hashes.append(sha256(content).hexdigest())
        patches.append(cut_patch(picture, preprocessing, round(MARGIN * size * room), room))
    if faults:
        raise DataError("pictures that cannot be read: " + "; ".join(faults))
    if not framed:
        raise DataError("there are no pictures")
    return _Pictures(np.stack(framed), np.stack(patches), np.array(poor), hashes)
