"""The directory of a ZIP, read and judged before any entry is.

Entries that claim too much, or share their bytes, are `TooLarge`; everything else that no honest
archiver writes is `BadArchive`. `zipfile` only parses the directory here: up to CPython 3.11.13 it
checks neither overlap nor paths.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import PurePosixPath
from stat import S_IFDIR, S_IFMT, S_IFREG
from typing import BinaryIO, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from app.errors import BadArchive, TooLarge
from app.units import GIB, MIB

_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # flag bits: password, strong encryption, masked headers
_LOCAL_HEADER = struct.Struct("<26xHH")  # length of name, length of extra field
_DIRECTORY_ENTRY = b"PK\x01\x02"
_MEAN_ENTRY = 512  # bytes of directory that an entry may take, on average


@dataclass(frozen=True)
class ArchiveLimits:
    max_entries: int = 200_000
    max_entry_bytes: int = 16 * MIB
    max_total_bytes: int = 8 * GIB  # unpacked
    max_ratio: int = 200  # unpacked ÷ packed, of each entry


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An entry as the directory has it: its path, where its header starts, what its bytes should unpack to.

    flaw: why it cannot be read, or nothing.
    """

    name: str
    header: int
    packed: int
    size: int
    deflated: bool
    crc: int
    flaw: str = ""


@dataclass(frozen=True, kw_only=True)
class Packed(Listed):
    """start: of its packed bytes."""

    start: int


def read_directory(file: BinaryIO, limits: ArchiveLimits) -> list[Packed]:
    """The entries that are files. Raises TooLarge or BadArchive."""
    directory, end = _parse(file, limits)
    _check_sizes(directory, limits)
    _check_entries(directory)
    located = [locate(file, _listed(info), end) for info in directory]
    _check_overlap(located, end)
    return [entry for entry in located if not entry.name.endswith("/")]


def list_directory(file: BinaryIO, limits: ArchiveLimits) -> list[Listed]:
    """The entries that are files, none of them judged or looked at. Raises TooLarge or BadArchive."""
    return [_listed(info) for info in _parse(file, limits)[0] if not info.filename.endswith("/")]


def locate(file: BinaryIO, entry: Listed, end: float = inf) -> Packed:
    """end: where all entries must have begun. Raises BadArchive."""
    head = b""
    if 0 <= entry.header < end:
        file.seek(entry.header)
        head = file.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size or not head.startswith(b"PK\x03\x04"):
        raise BadArchive("an entry of the archive is not where the directory says")
    name, extra = _LOCAL_HEADER.unpack(head)
    start: int = entry.header + _LOCAL_HEADER.size + name + extra
    return Packed(start=start, **vars(entry))


class _Directory:
    """The archive as `zipfile` may see it: a directory of too many entries cannot be read."""

    def __init__(self, file: BinaryIO, max_entries: int) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file
        self._max_entries = max_entries

    def read(self, size: int = -1) -> bytes:
        # zipfile takes the whole directory in one read, then makes an object of each entry
        if size <= self._max_entries * _MEAN_ENTRY + MIB:
            data = self._file.read(size) if size >= 0 else self._file.read()  # not all files take -1
            if data.count(_DIRECTORY_ENTRY) <= self._max_entries:
                return data
        raise TooLarge(f"the archive has more than {self._max_entries} entries")


def _parse(file: BinaryIO, limits: ArchiveLimits) -> tuple[list[ZipInfo], int]:
    """The entries, and where the directory starts, which is where their bytes must end."""
    try:
        with ZipFile(cast(BinaryIO, _Directory(file, limits.max_entries))) as archive:
            return archive.infolist(), archive.start_dir
    except (BadZipFile, NotImplementedError, OverflowError, ValueError, struct.error) as error:
        raise BadArchive("the archive is not a ZIP that can be read, or is cut short") from error


def _check_sizes(directory: Sequence[ZipInfo], limits: ArchiveLimits) -> None:
    if sum(info.file_size for info in directory) > limits.max_total_bytes:
        raise TooLarge(f"the archive unpacks to more than {limits.max_total_bytes} bytes")
    for number, info in enumerate(directory, 1):
        if max(info.file_size, info.compress_size) > limits.max_entry_bytes:
            raise TooLarge(f"entry {number} of the archive has more than {limits.max_entry_bytes} bytes")
        if info.file_size > limits.max_ratio * info.compress_size:
            raise TooLarge(f"entry {number} of the archive unpacks to over {limits.max_ratio} times its size")


def _check_entries(directory: Sequence[ZipInfo]) -> None:
    # by number, since names may be a patient's
    names: set[str] = set()
    for number, info in enumerate(directory, 1):
        flaw = _flaw(info) or ("has the path of another" if info.filename in names else None)
        if flaw is not None:
            raise BadArchive(f"entry {number} of the archive {flaw}")
        names.add(info.filename)


def _flaw(info: ZipInfo) -> str | None:
    name = info.orig_filename
    if name.startswith("/") or name[1:2] == ":" or "\\" in name or "\0" in name or ".." in name.split("/"):
        return "has a path that is absolute, has .. in it or is not written with /"
    if flaw := _unreadable(info):
        return flaw
    if not name.endswith("/") and PurePosixPath(name).suffix.lower() in _ARCHIVES:
        return "is an archive itself"
    return None


def _unreadable(info: ZipInfo) -> str:
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if S_IFMT(info.external_attr >> 16) not in (0, S_IFREG, S_IFDIR):
        return "is a link or a special file"
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return "is packed by a method other than store and deflate"
    return ""


def _listed(info: ZipInfo) -> Listed:
    return Listed(
        name=info.filename,
        header=info.header_offset,
        packed=info.compress_size,
        size=info.file_size,
        deflated=info.compress_type == ZIP_DEFLATED,
        crc=info.CRC,
        flaw=_unreadable(info),
    )


def _check_overlap(entries: Sequence[Packed], end: int) -> None:
    extents = sorted((entry.header, entry.start + entry.packed) for entry in entries)
    for (_, stop), (start, _) in pairwise([*extents, (end, end)]):
        if stop > start:
            raise TooLarge("entries of the archive overlap")
