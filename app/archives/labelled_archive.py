"""A ZIP of pictures, one folder per class; nothing of it is ever written to disk.

A picture's class is the nearest folder above it that is named after a class, in any case; every
file there counts as a picture. Other files beside the class folders (a `labels.csv`, a readme) are
passed over, and so is what operating systems leave behind; a picture outside every class folder is
an error, and so is an archive within the archive, wherever it lies.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from types import TracebackType
from typing import BinaryIO

from app.archives.zip_directory import ArchiveLimits as ArchiveLimits
from app.archives.zip_directory import Packed, read_directory
from app.errors import BadArchive, TooLarge, UndecodableImage

DEFAULT_LIMITS = ArchiveLimits()

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".dcm"})
_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class ArchiveEntry:
    """A picture; `name` is its path inside the archive, `label` the index of its class."""

    name: str
    label: int


class PackedFile:
    """Entries of an archive; `read` may be called from several threads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def read(self, entry: Packed) -> bytes:
        """Raises UndecodableImage where the bytes are corrupt, TooLarge where they lie."""
        with self._lock:
            self._file.seek(entry.start)
            packed = self._file.read(entry.packed)
        data = _inflate(packed, entry.size) if entry.deflated else packed
        if len(data) > entry.size:
            raise TooLarge("an archive entry unpacks to more bytes than it declares")
        if len(data) < entry.size or zlib.crc32(data) != entry.crc:
            raise UndecodableImage("the archive entry is corrupt")
        return data


class LabelledArchive:
    """The pictures of an archive; `read` may be called from several threads. Closes its file."""

    def __init__(self, file: BinaryIO, pictures: Iterable[tuple[ArchiveEntry, Packed]]) -> None:
        self._file = file
        self._entries = PackedFile(file)
        self._packed = dict(pictures)
        self.entries = list(self._packed)

    def read(self, entry: ArchiveEntry) -> bytes:
        """The picture's bytes. Raises UndecodableImage where they are corrupt, TooLarge where they lie."""
        return self._entries.read(self._packed[entry])

    def __enter__(self) -> LabelledArchive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def open_archive(
    file: BinaryIO, labels: Sequence[str], limits: ArchiveLimits = DEFAULT_LIMITS
) -> LabelledArchive:
    """Raises TooLarge or BadArchive; the file then stays open."""
    classes = {label.casefold(): index for index, label in enumerate(labels)}
    pictures, strays = [], 0
    for packed in read_directory(file, limits):
        path = PurePosixPath(packed.name)
        if is_hidden(path):
            continue
        label = class_of(path, classes)
        if label is not None:
            pictures.append((ArchiveEntry(packed.name, label), packed))
        elif path.suffix.lower() in PICTURES:
            strays += 1
    if strays or not pictures:
        raise BadArchive(_advice(strays, labels))
    return LabelledArchive(file, pictures)


def is_hidden(path: PurePosixPath) -> bool:
    return any((part.startswith(".") and part != "..") or part.casefold() in _LITTER for part in path.parts)


def class_of(path: PurePath, classes: Mapping[str, int]) -> int | None:
    """The nearest folder that is named after a class; `classes` has casefolded names."""
    folders = (part.casefold() for part in reversed(path.parts[:-1]))
    return next((classes[folder] for folder in folders if folder in classes), None)


def _advice(strays: int, labels: Sequence[str]) -> str:
    needed = f"it needs one folder for each class, named {', '.join(labels)}, at any depth"
    if strays:
        return f"{strays} pictures of the archive lie outside its class folders; {needed}"
    return f"the archive has no pictures in class folders; {needed}"


def _inflate(packed: bytes, size: int) -> bytes:
    """At most one byte more than `size`."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
    except zlib.error as error:
        raise UndecodableImage("the archive entry is corrupt") from error
