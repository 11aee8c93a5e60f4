"""The central directory of a ZIP, read and checked before any entry is unpacked.

Entries that declare too many bytes or overlap raise `TooLarge`; everything else that an ordinary
archiver does not write raises `BadArchive`. `zipfile` is used only to parse the directory: up to CPython
3.11.13 it checks neither overlap nor paths.

A name is in UTF-8 if its flag says so, if an extra field repeats it in UTF-8, or if its bytes are valid
UTF-8, as macOS writes them without the flag; else it is in code page 437 (APPNOTE 6.3.10, appendix D).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import inf
from pathlib import PurePosixPath
from stat import S_IFDIR, S_IFMT, S_IFREG
from typing import BinaryIO, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from app.archives.image_files import ARCHIVE_SUFFIXES
from app.errors import BadArchive, TooLarge
from app.units import GIB, MIB

_ENCRYPTED = 0x1 | 0x40 | 0x2000  # flag bits: encryption, strong encryption, masked headers
LINK = "is a link or a special file"
_UTF8 = 0x800  # flag bit: the name is in UTF-8
_UNICODE_PATH = 0x7075  # extra field: the name in UTF-8, beside the CRC-32 of the bytes of the other
_LOCAL_HEADER = struct.Struct("<26xHH")  # length of name, length of extra field
_DIRECTORY_ENTRY = b"PK\x01\x02"
_MEAN_ENTRY = 256  # bytes of directory per entry allowed on average
_MAX_PATH = 1024  # bytes; one character outside the BMP makes Python keep four bytes for each character


@dataclass(frozen=True)
class ArchiveLimits:
    max_entries: int = 200_000
    max_entry_bytes: int = 16 * MIB
    max_total_bytes: int = 8 * GIB  # unpacked
    max_ratio: int = 200  # unpacked ÷ packed, of each entry and of the archive
    # Bytes unpacked from which the ratio counts: a uniform bitmap packs as well as a bomb.
    ratio_floor: int = 1_000_000  # of an entry
    total_floor: int = 16 * MIB  # of the archive


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """An entry as the directory describes it; its local header has not been read.

    header: offset of the local header; packed, size: bytes compressed and unpacked; crc: CRC-32 of the
    unpacked bytes; flaw: why the entry cannot be read, or an empty string.
    """

    name: str
    header: int
    packed: int
    size: int
    deflated: bool
    crc: int
    flaw: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed(Listed):
    """An entry whose local header was read. start: offset of its compressed bytes."""

    start: int


def read_directory(file: BinaryIO, limits: ArchiveLimits) -> list[Packed]:
    """Return the entries that are files, all of them checked. Raise TooLarge or BadArchive."""
    directory, end = _parse(file, limits)
    _check_sizes(directory, limits)
    _check_entries(directory)
    located = [locate(file, _listed(info), end) for info in directory]
    _check_overlap(located, end)
    return [entry for entry in located if not entry.name.endswith("/")]


def list_directory(file: BinaryIO, limits: ArchiveLimits) -> list[Listed]:
    """Return the entries that are files, not checked. Raise TooLarge or BadArchive for the directory."""
    return [entry for entry in map(_listed, _parse(file, limits)[0]) if not entry.name.endswith("/")]


def locate(file: BinaryIO, entry: Listed, end: float = inf) -> Packed:
    """Read the local header of an entry. end: offset before which it must start. Raise BadArchive."""
    head = b""
    if 0 <= entry.header < end:
        file.seek(entry.header)
        head = file.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size or not head.startswith(b"PK\x03\x04"):
        raise BadArchive("an entry of the archive does not start where the central directory says")
    name_length, extra_length = _LOCAL_HEADER.unpack(head)
    start: int = entry.header + _LOCAL_HEADER.size + name_length + extra_length
    return Packed(start=start, **{field.name: getattr(entry, field.name) for field in fields(entry)})


class _Directory:
    """The file as `zipfile` sees it: reading a directory of too many entries raises TooLarge."""

    def __init__(self, file: BinaryIO, max_entries: int) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file
        self._max_entries = max_entries

    def read(self, size: int = -1) -> bytes:
        # zipfile reads the whole directory in one call, then creates an object for each entry.
        if size <= self._max_entries * _MEAN_ENTRY + MIB:
            data = self._file.read(size) if size >= 0 else self._file.read()  # not all files accept -1
            if data.count(_DIRECTORY_ENTRY) <= self._max_entries:
                return data
        raise TooLarge(f"the archive has more than {self._max_entries} entries, or too many bytes of paths")


def _parse(file: BinaryIO, limits: ArchiveLimits) -> tuple[list[ZipInfo], int]:
    """Return the entries and the offset of the directory, where the bytes of the entries must end."""
    try:
        with ZipFile(cast(BinaryIO, _Directory(file, limits.max_entries))) as archive:
            return archive.infolist(), archive.start_dir
    except (BadZipFile, NotImplementedError, OverflowError, ValueError, struct.error) as error:
        raise BadArchive("the archive is not a readable ZIP file, or is truncated") from error


def _check_sizes(directory: Sequence[ZipInfo], limits: ArchiveLimits) -> None:
    unpacked = sum(info.file_size for info in directory)
    packed = sum(info.compress_size for info in directory)
    if unpacked > limits.max_total_bytes:
        raise TooLarge(f"the archive unpacks to more than {limits.max_total_bytes} bytes")
    for number, info in enumerate(directory, 1):
        if max(info.file_size, info.compress_size) > limits.max_entry_bytes:
            raise TooLarge(f"entry {number} of the archive has more than {limits.max_entry_bytes} bytes")
        counts = info.file_size >= limits.ratio_floor or not info.compress_size
        if counts and info.file_size > limits.max_ratio * info.compress_size:
            raise TooLarge(f"entry {number} of the archive unpacks to over {limits.max_ratio} times its size")
    if unpacked >= limits.total_floor and unpacked > limits.max_ratio * packed:
        raise TooLarge(f"the archive unpacks to over {limits.max_ratio} times its size")


def _check_entries(directory: Sequence[ZipInfo]) -> None:
    # Errors give numbers, since names may be a patient's.
    names: set[str] = set()
    for number, info in enumerate(directory, 1):
        name = _name(info)
        flaw = _flaw(name, info) or ("has the same path as another entry" if name in names else None)
        if flaw is not None:
            raise BadArchive(f"entry {number} of the archive {flaw}")
        names.add(name)


def _flaw(name: str, info: ZipInfo) -> str | None:
    if len(name) > _MAX_PATH or len(name.encode("utf-8", "surrogatepass")) > _MAX_PATH:
        return f"has a path of over {_MAX_PATH} bytes"
    if name.startswith("/") or name[1:2] == ":" or "\\" in name or "\0" in name or ".." in name.split("/"):
        return "has a path that is absolute, contains .. or does not use / as its separator"
    if flaw := _unreadable(info):
        return flaw
    if not name.endswith("/") and PurePosixPath(name).suffix.lower() in ARCHIVE_SUFFIXES:
        return "is an archive itself"
    return None


def _unreadable(info: ZipInfo) -> str:
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if S_IFMT(info.external_attr >> 16) not in (0, S_IFREG, S_IFDIR):
        return LINK
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return "is compressed by a method other than store and deflate"
    return ""


def _name(info: ZipInfo) -> str:
    """Return the path as the archiver meant it, unchecked."""
    name = info.orig_filename
    if info.flag_bits & _UTF8 or (name.isascii() and not info.extra):
        return name
    stored = name.encode("cp437")  # what zipfile decoded it from
    for field, content in _extra_fields(info.extra):
        crc = int.from_bytes(content[1:5], "little")
        if field == _UNICODE_PATH and content[:1] == b"\1" and crc == zlib.crc32(stored):
            stored = content[5:] or stored
            break
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return name


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield id and content of each extra field (APPNOTE 6.3.10, 4.5)."""
    while len(extra) >= 4:
        field, size = struct.unpack_from("<HH", extra)
        yield field, extra[4 : 4 + size]
        extra = extra[4 + size :]


def _listed(info: ZipInfo) -> Listed:
    return Listed(
        name=_name(info).partition("\0")[0],
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
