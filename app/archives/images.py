"""Images on this machine: from files, folders, standard input, a ZIP or one folder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from app.archives.image_files import LeftOut, left_out_line
from app.archives.labelled_archive import (
    ArchiveLimits,
    LabelledArchive,
    class_of,
    folder_of,
    named_folders,
    open_archive,
)
from app.archives.spelling import MOST_COMPARED, did_you_mean
from app.archives.walk import Files, list_images, why
from app.errors import BadArchive, RequestError, Unreadable, Unusable
from app.lazy_sequence import LazySequence


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image not read yet. label: index of the class, -1 if unknown; `read` raises Unusable or TooLarge."""

    name: str
    read: Callable[[], bytes]
    label: int = -1


@dataclass(frozen=True, slots=True)
class Images:
    """Images, and how many files beside them were left out.

    unread: names of files and folders that cannot be read; each is among the images too, and fails.
    """

    found: Sequence[StoredImage]
    left_out: LeftOut
    unread: Collection[str] = ()


def find_images(paths: Sequence[str], stdin: BinaryIO, most: int) -> Images:
    """List the files given, the images in the folders given, and standard input for `-`.

    An image of more than `most` bytes is read up to `most` + 1, so that the decoder refuses it.
    """
    found: list[StoredImage] = []
    left_out: LeftOut = Counter()
    for path in paths:
        if path == "-":
            found.append(StoredImage(path, partial(stdin.read, most + 1)))
        elif os.path.isdir(path):  # noqa: PTH112  # False where is_dir() raises
            images = _in_folder(Path(path), most)
            found += images.found
            left_out += images.left_out
        else:
            found.append(StoredImage(path, partial(_read, Path(path), most)))
    return Images(found, left_out)


def _in_folder(folder: Path, most: int) -> Images:
    try:
        files = list_images(folder)
    except OSError as error:
        refuse = partial(_refuse, Unreadable, _unread(why(error)))
        return Images([StoredImage(str(folder), refuse)], Counter())
    images = [
        StoredImage(str(folder / name), _reader(folder, name, files, most))
        for name in sorted([*files.stamps, *files.unread])
    ]
    empty = StoredImage(str(folder), partial(_refuse, Unusable, "the folder holds no images"))
    return Images(images or [empty], files.left_out)


def archive_images(archive: LabelledArchive) -> Sequence[StoredImage]:
    """Return the images of an open archive."""

    def image(index: int) -> StoredImage:
        entry = archive.entry(index)
        return StoredImage(entry.name, partial(archive.read, index), entry.label)

    return LazySequence(len(archive), image)


@contextmanager
def open_labelled(
    path: Path, labels: Sequence[str], limits: ArchiveLimits, outside: Counter[str] | None = None
) -> Iterator[Images]:
    """List the labelled images of a ZIP, or of a folder with one folder for each class at any depth.

    The label of what cannot be read may be -1. outside: as in `open_archive`. Raise BadArchive or TooLarge.
    """
    if os.path.isdir(path):  # noqa: PTH112
        yield _labelled_folder(path, labels, limits.max_entry_bytes, outside)
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadArchive(f"{path} cannot be read: {why(error)}") from None
    with file, open_archive(file, labels, limits, outside, local=True) as archive:
        yield Images(archive_images(archive), archive.left_out)


def _labelled_folder(folder: Path, labels: Sequence[str], most: int, outside: Counter[str] | None) -> Images:
    classes = {label.casefold(): index for index, label in enumerate(labels)}
    try:
        files = list_images(folder)
    except OSError as error:
        raise BadArchive(f"{folder} cannot be read: {why(error)}") from None
    images = []
    found: Counter[str] = Counter() if outside is None else outside
    strange: set[str] = set()  # some of the folders of no class
    for name in sorted([*files.stamps, *files.unread]):
        label = class_of(PurePosixPath(name), classes)
        if label is None and name in files.stamps:
            found[folder_of(PurePosixPath(name))] += 1
            strange.update(PurePosixPath(name).parts[:-1] if len(strange) < MOST_COMPARED else ())
            continue
        images.append(StoredImage(name, _reader(folder, name, files, most), -1 if label is None else label))
    if found and (outside is None or not images):
        question = did_you_mean(strange, labels)
        detail = f"{folder} holds images outside folders named {', '.join(labels)}, in {named_folders(found)}"
        raise BadArchive(f"{detail}; {question}".rstrip("; "))
    if not images:
        line = left_out_line(files.left_out)
        raise BadArchive(
            f"{folder} holds no images in folders named {', '.join(labels)}{line and f'; {line}'}"
        )
    return Images(images, files.left_out, files.unread)


def _reader(folder: Path, name: str, files: Files, most: int) -> Callable[[], bytes]:
    if name in files.unread:
        return partial(_refuse, Unreadable, _unread(files.unread[name]))
    return partial(_read, folder / name, most)


def _read(path: Path, most: int) -> bytes:
    # One byte more than allowed is enough for the decoder to refuse the image.
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise Unreadable(_unread(why(error))) from None


def _unread(reason: str) -> str:
    return f"cannot be read: {reason}"


def _refuse(error: type[RequestError], detail: str) -> bytes:
    raise error(detail)
