"""Reads a tar file as a stream, in bounded memory whatever its headers claim.

`tarfile` holds in memory what a header says: extended headers of any size, maps of sparse files, every entry
so far. Source of the formats: POSIX.1-2017, pax, "pax Interchange Format".
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from typing import IO, Any, BinaryIO, Self, cast

from app.errors import BadArchive
from app.units import MIB

HEADER = MIB  # most bytes of one extended header: a name, perhaps with access lists
CHAIN = 8  # most extended headers before one entry; tar programs write up to three
XZ_BYTES = 256 * MIB  # most memory of a decompressor; `xz -9` needs 65 MiB
ENDS = 1000  # reads at the end of the file: tarfile would skip an entry of 2^60 bytes block by block
SIZE = slice(124, 136)  # of a header
OCTAL = re.compile(rb"[0-7]*")
BASE_256 = (0o200, 0o377)  # first bytes of a size in GNU tar's binary form
NUMBER = re.compile(rb"[0-9]{1,19}")
PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
EXTENDED = (*PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
# What tarfile and the decompressors raise on malformed input, some of which they do not validate.
BROKEN = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    lzma.LZMAError,
    ValueError,
    LookupError,
    MemoryError,
)


@contextmanager
def open_tar(file: BufferedReader) -> Iterator[Iterator[Entry]]:
    """Open a tar file, compressed or not; it may be several that were joined. Raise OSError or BROKEN."""
    stream = _Ending(_unpacked(file))
    with _Tar.open(fileobj=cast(BinaryIO, stream), mode="r|", ignore_zeros=True) as archive:
        yield _entries(archive)


class Entry:
    """An entry that is not a folder; `read` its content before the next one is taken from the iterator."""

    def __init__(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self.name = member.name
        self._archive, self._member = archive, member
        self._content: IO[bytes] | None = None

    @property
    def is_special(self) -> bool:
        """Return whether the entry is a link, pipe or device."""
        return not self._member.isfile()

    def read(self, most: int) -> bytes:
        """Return up to `most` bytes that were not read yet.

        Raise BadArchive if the entry is no file, EOFError if the archive ends within it.
        """
        if self._member.isfile() and not self._member.size:
            return b""
        if self._content is None and not self.is_special:
            self._content = self._archive.extractfile(self._member)
        if self._content is None:
            raise BadArchive("the entry is a link or a special file")
        try:
            return self._content.read(most)
        except tarfile.ReadError:
            raise EOFError("it is truncated") from None


def _entries(archive: tarfile.TarFile) -> Iterator[Entry]:
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # else all of them stay in memory
        if not member.isdir():
            if not member.name:  # it may be an image: it must not be left out like a text file
                raise tarfile.ReadError("an entry has no name")
            yield Entry(archive, member)


class _Header(tarfile.TarInfo):
    """A header that raises ReadError where `tarfile` would hold what the header claims, or see the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Raise HeaderError for a size that is no octal number: tarfile's int() takes signs and 1_000 too."""
        size = buf[SIZE].partition(b"\0")[0].strip(b" ")
        if not OCTAL.fullmatch(size) and buf[SIZE][0] not in BASE_256:
            raise tarfile.HeaderError("a header has a size that is not a number")
        return super().frombuf(buf, encoding, errors)

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Raise ReadError for a broken or missing header, which tarfile itself takes for the end."""
        assert isinstance(archive, _Tar)
        try:
            header = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.ended = True
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if archive.ended:
                raise
            raise tarfile.ReadError("it is truncated") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
        archive.ended = False  # another tar file may follow the end of one
        archive.chained = 0
        return header

    def _proc_member(self, archive: _Tar) -> tarfile.TarInfo:
        """Check the header before `tarfile` acts on it, which documents this method for subclasses."""
        if self.size < 0:
            raise tarfile.ReadError(f"a header claims {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("it holds a sparse file")
        if self.type in EXTENDED:
            archive.chained += 1
            if self.size > HEADER or archive.chained > CHAIN:
                raise tarfile.ReadError(f"an extended header has more than {HEADER} bytes or {CHAIN} parts")
            if self.type in PAX:
                return self._proc_records(archive)
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]

    def _proc_records(self, archive: _Tar) -> tarfile.TarInfo:
        """Apply the path and size of a pax header to the entry that follows; ignore headers for all entries.

        tarfile's own parser takes time and memory that grow with the square of a malformed header.
        """
        assert archive.fileobj is not None
        records = _records(archive.fileobj.read(self._block(self.size))[: self.size])  # type: ignore[attr-defined]
        entry = self.fromtarfile(archive)
        if self.type == tarfile.XGLTYPE:
            return entry
        if any(key.startswith(b"GNU.sparse.") for key in records):
            raise tarfile.ReadError("it holds a sparse file")
        if b"path" in records:
            entry.name = records[b"path"].decode("utf-8", "surrogateescape").rstrip("/")
        if b"size" in records:
            if not NUMBER.fullmatch(records[b"size"]):  # int() takes signs, spaces and 1_000 too
                raise tarfile.ReadError("an extended header has a size that is not a number")
            entry.size = int(records[b"size"])
            if entry.isreg():
                archive.offset = entry.offset_data + entry._block(entry.size)  # type: ignore[attr-defined]
        return entry


def _records(data: bytes) -> dict[bytes, bytes]:
    """Parse the records of a pax header, "LENGTH KEY=VALUE" and a line end each. Raise ReadError."""
    records, start = {}, 0
    while start < len(data) and data[start]:
        length = data[start : start + 8].partition(b" ")[0]
        end = start + int(length) if length.isdigit() else 0
        key, equals, value = data[start + len(length) + 1 : end].partition(b"=")
        if not (equals and value.endswith(b"\n")) or end > len(data):
            raise tarfile.ReadError("an extended header is broken")
        records[key] = value[:-1]
        start = end
    return records


class _Tar(tarfile.TarFile):
    """A stream of tar files. ended: the end marker of one was read; chained: extended headers in a row."""

    tarinfo = _Header
    ended = False
    chained = 0


class _Ending:
    """A file that raises EOFError if it is read on and on beyond its end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ends = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._ends += not data
        if self._ends > ENDS:
            raise EOFError("it is truncated")
        return data


class _Xz(io.RawIOBase):
    """Joined xz streams, unpacked in XZ_BYTES; `lzma.open` takes no limit, and a header can ask for 4 GiB."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._unpacker = lzma.LZMADecompressor(memlimit=XZ_BYTES)
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._unpacker.eof:
                # Between streams there may be zeros (The .xz File Format, section 2.2).
                self._input = (self._unpacker.unused_data or self._input).lstrip(b"\0") or self._file.read(
                    MIB
                )
                if not self._input:
                    return 0
                if not self._input.strip(b"\0"):
                    continue
                self._unpacker = lzma.LZMADecompressor(memlimit=XZ_BYTES)
            elif self._unpacker.needs_input and not self._input:
                self._input = self._file.read(MIB)
                if not self._input:
                    raise EOFError("the compressed file ended before the end-of-stream marker was reached")
            data = self._unpacker.decompress(self._input, len(buffer))
            self._input = b""
            if data:
                buffer[: len(data)] = data
                return len(data)


COMPRESSED: Mapping[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lambda file: BufferedReader(_Xz(file)),
}


def _unpacked(file: BufferedReader) -> BinaryIO:
    """Decompress with gzip, bz2 or lzma directly: tarfile reads only the first of several joined streams."""
    head = file.peek(6)
    for magic, opener in COMPRESSED.items():
        if head.startswith(magic):
            return cast(BinaryIO, opener(file))
    return file
