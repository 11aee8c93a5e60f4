"""The form of `/evaluate` → stored images with their classes, and their sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO

from app.api.uploads import Form, Part
from app.archives.file_labels import assign_groups, parse_mapping
from app.archives.images import StoredImage
from app.archives.labelled_archive import ArchiveLimits, open_archive
from app.errors import BadLabels, Unusable


@dataclass(frozen=True)
class LabelledSet:
    images: list[StoredImage]
    groups: list[str] | None  # the source (photo or patient) of each image, if known


def read_labelled(form: Form, labels: Sequence[str], limits: ArchiveLimits) -> LabelledSet:
    """Return the labelled images of a form. Raise Unusable, BadArchive, BadLabels or TooLarge.

    labels: the names of the classes. Blocks, for seconds if the archive is large or the pattern slow.
    """
    archive, files = form["archive"], form["files"]
    if bool(archive) == bool(files):
        raise Unusable("send either one part archive, or parts files and one part labels")
    if archive and form["labels"]:
        raise Unusable("labels belong to files; in an archive the folders name the classes")
    images = _in_archive(archive[0], labels, limits) if archive else _in_form(files, form["labels"], labels)
    return LabelledSet(images, _groups([image.name for image in images], form))


def class_indices(field: str, values: Sequence[str | int], labels: Sequence[str]) -> list[int]:
    """Return class indices: of names, in any case; indices are returned unchecked.

    field: the name of the values in the error. Raise BadLabels for an unknown name.
    """
    index_of = {label.casefold(): index for index, label in enumerate(labels)}
    indices = [index_of.get(value.casefold(), -1) if isinstance(value, str) else value for value in values]
    for position, value in enumerate(values):
        if isinstance(value, str) and indices[position] < 0:
            raise BadLabels(f"{field}[{position}] is none of {', '.join(labels)}")
    return indices


def _in_archive(part: Part, labels: Sequence[str], limits: ArchiveLimits) -> list[StoredImage]:
    archive = open_archive(BytesIO(part.data), labels, limits)
    return [StoredImage(entry.name, partial(archive.read, entry), entry.label) for entry in archive.entries]


def _in_form(files: Sequence[Part], parts: Sequence[Part], labels: Sequence[str]) -> list[StoredImage]:
    if not parts:
        raise BadLabels("the part labels is missing: a JSON object or two-column CSV, file name to class")
    classes = parse_mapping(parts[0].data)
    names = [file.filename or "" for file in files]
    if len(set(names)) < len(names):
        raise BadLabels("two parts named files have the same file name, so their labels are ambiguous")
    if missing := sum(name not in classes for name in names):
        raise BadLabels(f"{missing} of {len(names)} files have no label")
    indices = class_indices("labels", [classes[name] for name in names], labels)
    return [
        StoredImage(name, partial(bytes, file.data), index)
        for name, file, index in zip(names, files, indices, strict=True)
    ]


def _groups(names: Sequence[str], form: Form) -> list[str] | None:
    mapping, pattern = form["groups"], form["group_pattern"]
    if mapping and pattern:
        raise Unusable("send groups or group_pattern, not both")
    if mapping:
        return assign_groups(names, parse_mapping(mapping[0].data))
    if not pattern:
        return None
    try:
        return assign_groups(names, pattern[0].data.decode())
    except UnicodeDecodeError:
        raise BadLabels("the group pattern is not UTF-8 text") from None
