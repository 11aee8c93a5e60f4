"""The form of `/evaluate` → stored images with their classes, and their sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO

from app.api.uploads import Form, Part
from app.archives.file_labels import Texts, class_indices, parse_mapping
from app.archives.image_files import LeftOut
from app.archives.images import StoredImage, archive_images
from app.archives.labelled_archive import ArchiveLimits, open_archive
from app.archives.spelling import path_key
from app.errors import BadLabels, Unusable


@dataclass(frozen=True)
class LabelledSet:
    """grouping: file name → source (photo or patient), a pattern that captures it, or None if unknown.

    left_out: files of an archive that are no images.
    """

    images: Sequence[StoredImage]
    grouping: Texts | str | None
    left_out: LeftOut = field(default_factory=LeftOut)


def read_labelled(form: Form, labels: Sequence[str], limits: ArchiveLimits) -> LabelledSet:
    """Return the labelled images of a form. Raise Unusable, BadArchive, BadLabels or TooLarge.

    labels: the names of the classes. Blocks, for seconds if the archive or the labels are large.
    """
    left_out = {name for name, parts in form.items() if all(map(_is_empty, parts))}
    if {"archive", "files"} <= left_out:  # then an image of no bytes was sent
        left_out -= {"archive", "files"}
    form = {name: [] if name in left_out else parts for name, parts in form.items()}
    archive, files = form["archive"], form["files"]
    if bool(archive) == bool(files):
        raise Unusable("send either one part archive, or parts files and one part labels")
    if archive and form["labels"]:
        raise Unusable("labels belong to files; in an archive the folders name the classes")
    grouping = _grouping(form, limits.max_entries)
    if archive:
        opened = open_archive(BytesIO(archive[0].data), labels, limits)
        return LabelledSet(archive_images(opened), grouping, opened.left_out)
    return LabelledSet(_in_form(files, form["labels"], labels, limits.max_entries), grouping)


def _is_empty(part: Part) -> bool:
    """Return whether it is a field that a browser's user left empty; an empty file has a name."""
    return not part.data and not part.filename


def _in_form(
    files: Sequence[Part], parts: Sequence[Part], labels: Sequence[str], most: int
) -> list[StoredImage]:
    if not parts:
        raise BadLabels(
            "the part labels is missing: a JSON object or a table (CSV) of two columns, file name and class"
        )
    classes = parse_mapping(parts[0].data, most)
    names = [file.filename or "" for file in files]
    if len({path_key(name) for name in names}) < len(names):
        raise BadLabels("two parts named files have the same file name, so their labels are ambiguous")
    if missing := sum(name not in classes for name in names):
        raise BadLabels(f"{missing} of {len(names)} files have no label")
    indices = class_indices("labels", [classes[name] for name in names], labels)
    return [
        StoredImage(name, partial(bytes, file.data), index)
        for name, file, index in zip(names, files, indices, strict=True)
    ]


def _grouping(form: Form, most: int) -> Texts | str | None:
    mapping, pattern = form["groups"], form["group_pattern"]
    if mapping and pattern:
        raise Unusable("send groups or group_pattern, not both")
    if mapping:
        return parse_mapping(mapping[0].data, most)
    if not pattern:
        return None
    try:
        return pattern[0].data.decode()
    except UnicodeDecodeError:
        raise BadLabels("the group pattern is not UTF-8 text") from None
