"""A ZIP of images with one folder per class; its content is never written to disk.

The class of an image is the nearest parent folder named after one (`spelling.find_class`). Files that are no
images by the rule of `image_files` are left out and counted. An image outside every class folder is an error,
and so is an archive inside the archive, wherever it is.
"""

from __future__ import annotations

import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import PurePath, PurePosixPath
from types import TracebackType
from typing import BinaryIO

from app.archives.image_files import Kind, LeftOut, kind_by_content, kind_by_name, leave_out, left_out_line
from app.archives.spelling import MOST_COMPARED, did_you_mean, find_class
from app.archives.zip_directory import LINK, Listed, Packed, locate, read_directory
from app.archives.zip_directory import ArchiveLimits as ArchiveLimits
from app.errors import BadArchive, TooLarge, UndecodableImage
from app.image_signatures import HEAD
from app.printable import few

DEFAULT_LIMITS = ArchiveLimits()
_HEAD_PACKED = 1024  # compressed bytes that hold the first HEAD bytes
_FIELDS = [field.name for field in fields(Packed)]


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """An image: `name` is its path inside the archive, `label` the index of its class."""

    name: str
    label: int


class PackedFile:
    """Read entries of an open archive; `read` may be called from several threads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def close(self) -> None:
        self._file.close()

    def read(self, entry: Packed) -> bytes:
        """Return the unpacked bytes.

        Raise UndecodableImage if they are corrupt, TooLarge if the entry exceeds its declared size.
        """
        with self._lock:
            self._file.seek(entry.start)
            packed = self._file.read(entry.packed)
        data = _inflate(packed, entry.size) if entry.deflated else packed
        if len(data) > entry.size:
            raise TooLarge("an archive entry unpacks to more bytes than it declares")
        if len(data) < entry.size or zlib.crc32(data) != entry.crc:
            raise UndecodableImage("the archive entry is corrupt")
        return data

    def kind(self, entry: Listed) -> Kind:
        """Return what an entry is. One whose start cannot be read counts as an image: it gets an error."""
        kind = kind_by_name(PurePosixPath(entry.name))
        if kind is not None or entry.flaw:
            return kind or (Kind.SPECIAL if entry.flaw == LINK else Kind.IMAGE)
        try:
            head = self._head(entry)
        except (BadArchive, UndecodableImage):
            return Kind.IMAGE
        return kind_by_content(head)

    def _head(self, entry: Listed) -> bytes:
        with self._lock:
            located = entry if isinstance(entry, Packed) else locate(self._file, entry)
            self._file.seek(located.start)
            packed = self._file.read(min(entry.packed, _HEAD_PACKED))
        return (_inflate(packed, HEAD) if entry.deflated else packed)[:HEAD]


class LabelledArchive:
    """The images of an archive; `read` may be called from several threads. On exit, the file is closed.

    left_out: how many other files it holds.
    """

    def __init__(
        self, file: PackedFile, images: Iterable[tuple[ArchiveEntry, Packed]], left_out: LeftOut
    ) -> None:
        self._packed = file
        self.left_out = left_out
        # Plain tuples of plain values: the garbage collector does not follow these, and its pass over 200,000
        # objects of a class would hold the interpreter lock for a tenth of a second.
        self._rows = [(entry.label, *astuple(packed)) for entry, packed in images]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def entries(self) -> list[ArchiveEntry]:
        return [self.entry(index) for index in range(len(self))]

    def entry(self, index: int) -> ArchiveEntry:
        label, name, *_ = self._rows[index]
        return ArchiveEntry(name, label)

    def read(self, index: int) -> bytes:
        """Return the bytes of an image. Raise UndecodableImage or TooLarge, as `PackedFile.read` does."""
        _, *values = self._rows[index]
        return self._packed.read(Packed(**dict(zip(_FIELDS, values, strict=True))))

    def __enter__(self) -> LabelledArchive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._packed.close()


def open_archive(
    file: BinaryIO,
    labels: Sequence[str],
    limits: ArchiveLimits = DEFAULT_LIMITS,
    outside: Counter[str] | None = None,
    *,
    local: bool = False,
) -> LabelledArchive:
    """Read the directory of a ZIP. Raise TooLarge or BadArchive, leaving the file open.

    outside: counts the images of each folder of no class, which are left out; None: they are an error.
    local: the error may name these folders. A service's may not: a folder may be named after a patient.
    """
    classes = {label.casefold(): index for index, label in enumerate(labels)}
    opened, images, left_out = PackedFile(file), list[tuple[ArchiveEntry, Packed]](), LeftOut()
    found: Counter[str] = Counter() if outside is None else outside
    folders: set[str] = set()  # some of those that these are in
    for packed in read_directory(file, limits):
        kind = opened.kind(packed)
        if kind is not Kind.IMAGE:
            leave_out(left_out, kind, PurePosixPath(packed.name))
            continue
        label = class_of(PurePosixPath(packed.name), classes)
        if label is None:
            found[folder_of(PurePosixPath(packed.name))] += 1
            if len(folders) < MOST_COMPARED:
                folders.update(PurePosixPath(packed.name).parts[:-1])
        else:
            images.append((ArchiveEntry(packed.name, label), packed))
    if not images or (found and outside is None):
        advice = _advice(found, left_out, labels, local=local)
        raise BadArchive(f"{advice}; {did_you_mean(folders, labels)}".rstrip("; "))
    return LabelledArchive(opened, images, left_out)


def class_of(path: PurePath, classes: Mapping[str, int]) -> int | None:
    """Return the class of the nearest parent folder named after one; the keys of `classes` are casefolded."""
    found = (find_class(folder, classes) for folder in reversed(path.parts[:-1]))
    return next((label for label in found if label is not None), None)


def folder_of(path: PurePath) -> str:
    """Return the name of the folder that an image lies in, for a message."""
    return path.parent.name or "no folder"


def named_folders(outside: Mapping[str, int]) -> str:
    """Return the folders of no class, with how many images each has."""
    most = sorted(outside.items(), key=lambda item: -item[1])
    return few([f"{name} ({count})" for name, count in most], ", ")


def _advice(outside: Mapping[str, int], left_out: LeftOut, labels: Sequence[str], *, local: bool) -> str:
    needed = f"it needs one folder for each class, named {', '.join(labels)}, at any depth"
    if outside:
        count = f"{sum(outside.values())} images of the archive are outside its class folders"
        return f"{count}, in {named_folders(outside)}; {needed}" if local else f"{count}; {needed}"
    line = left_out_line(left_out)
    return f"the archive has no images in class folders; {needed}{line and f'; {line}'}"


def _inflate(packed: bytes, size: int) -> bytes:
    """Return at most one byte more than `size`."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
    except zlib.error as error:
        raise UndecodableImage("the archive entry is corrupt") from error
