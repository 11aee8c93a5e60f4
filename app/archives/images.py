"""Images on this machine: from files, folders, standard input, a ZIP or one folder per class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from app.archives.image_names import IMAGE_SUFFIXES
from app.archives.labelled_archive import ArchiveLimits, LabelledArchive, class_of, open_archive
from app.archives.spelling import did_you_mean
from app.errors import BadArchive, Unusable
from app.lazy_sequence import LazySequence


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image not read yet. label: index of the class, -1 if unknown; `read` raises Unusable or TooLarge."""

    name: str
    read: Callable[[], bytes]
    label: int = -1


def find_images(paths: Sequence[str], stdin: BinaryIO, most: int) -> Iterator[StoredImage]:
    """List the files given, the images in the folders given (by suffix), and standard input for `-`.

    An image of more than `most` bytes is read up to `most` + 1, so that the decoder refuses it.
    """
    for path in paths:
        if path == "-":
            yield StoredImage(path, partial(stdin.read, most + 1))
        elif Path(path).is_dir():
            images = [StoredImage(str(file), partial(_read, file, most)) for file in _image_files(Path(path))]
            yield from images or [StoredImage(path, partial(_refuse, "the folder holds no images"))]
        else:
            yield StoredImage(path, partial(_read, Path(path), most))


def archive_images(archive: LabelledArchive) -> Sequence[StoredImage]:
    """Return the images of an open archive."""

    def image(index: int) -> StoredImage:
        entry = archive.entry(index)
        return StoredImage(entry.name, partial(archive.read, index), entry.label)

    return LazySequence(len(archive), image)


@contextmanager
def open_labelled(
    path: Path, labels: Sequence[str], limits: ArchiveLimits
) -> Iterator[Sequence[StoredImage]]:
    """List the labelled images of a ZIP, or of a folder with one folder for each class at any depth.

    Raise BadArchive or TooLarge.
    """
    if path.is_dir():
        yield _labelled_folder(path, labels, limits.max_entry_bytes)
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadArchive(f"{path} cannot be read: {error.strerror}") from None
    with file, open_archive(file, labels, limits) as archive:
        yield archive_images(archive)


def _labelled_folder(folder: Path, labels: Sequence[str], most: int) -> list[StoredImage]:
    classes = {label.casefold(): index for index, label in enumerate(labels)}
    images = []
    for file in _image_files(folder):
        name = file.relative_to(folder)
        label = class_of(name, classes)
        if label is None:
            question = did_you_mean(name.parts[:-1], labels)
            detail = f"{folder} holds images outside folders named {', '.join(labels)}; {question}"
            raise BadArchive(detail.rstrip("; "))
        images.append(StoredImage(name.as_posix(), partial(_read, file, most), label))
    if not images:
        raise BadArchive(f"{folder} holds no images in folders named {', '.join(labels)}")
    return images


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _read(path: Path, most: int) -> bytes:
    # One byte more than allowed is enough for the decoder to refuse the image.
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise Unusable(f"the file cannot be read: {error.strerror}") from None


def _refuse(detail: str) -> bytes:
    raise Unusable(detail)
