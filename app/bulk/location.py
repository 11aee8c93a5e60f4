"""A file or folder on this machine, or where an address such as s3:// says."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any, BinaryIO, Self, cast
from uuid import uuid4

from pyarrow import ArrowInvalid, BufferOutputStream, Table, fs, parquet

from app.errors import Unusable

Stamp = tuple[int, int]  # bytes of a file and when it changed, in ns; -1 where that is not known
UNKNOWN: Stamp = (-1, -1)


@dataclass(frozen=True)
class Location(ABC):
    path: str

    @staticmethod
    def of(address: str) -> Location:
        """Raises Unusable for an address of no known kind, or of a library that is not installed."""
        if "://" not in address:
            return Local(str(Path(address).absolute()))
        try:
            filesystem, path = fs.FileSystem.from_uri(address)
        except ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise Unusable(shown(f"{address} cannot be used: {error}")) from None
            filesystem, path = _by_fsspec(address)
        return Local(path) if isinstance(filesystem, fs.LocalFileSystem) else Remote(path, filesystem)

    def __truediv__(self, name: str) -> Self:
        return replace(self, path=f"{self.path.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def exists(self) -> bool:
        return self.is_folder is not None

    @property
    @abstractmethod
    def is_folder(self) -> bool | None:
        """None where there is nothing."""

    @property
    @abstractmethod
    def stamp(self) -> Stamp:
        """Of a file."""

    @abstractmethod
    def files(self) -> dict[str, Stamp]:
        """All files below by relative name, in order; none where there is no such folder."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """To be read from any place. Raises OSError."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Raises OSError."""

    @abstractmethod
    def delete(self) -> None:
        """Raises OSError."""

    def read(self, most: int = -1) -> bytes:
        with self.open() as file:
            return file.read() if most < 0 else file.read(most)

    def write_table(self, table: Table) -> None:
        buffer = BufferOutputStream()
        parquet.write_table(table, buffer, compression="zstd")
        self.write(buffer.getvalue().to_pybytes())

    def holds(self, other: Location) -> bool:
        """Whether the other is this one, or below it."""
        below = f"{other.path}/".startswith(f"{self.path.rstrip('/')}/")
        return below and replace(self, path=other.path) == other


@dataclass(frozen=True)
class Local(Location):
    """Not by pyarrow, which knows no names outside UTF-8."""

    @property
    def is_folder(self) -> bool | None:
        return Path(self.path).is_dir() if Path(self.path).exists() else None

    @property
    def stamp(self) -> Stamp:
        return _stamp(self.path) or UNKNOWN

    def files(self) -> dict[str, Stamp]:
        """Links to folders are followed, but no folder is listed twice; links to nothing are listed."""
        found: dict[str, Stamp] = {}
        seen = set()
        for folder, folders, names in os.walk(self.path, onerror=self._complain, followlinks=True):
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.sort()
            inner = os.path.relpath(folder, self.path)
            for name in names:
                if (stamp := _stamp(f"{folder}/{name}")) is not None:
                    found[name if inner == "." else f"{inner}/{name}"] = stamp
        return dict(sorted(found.items()))

    def open(self) -> BinaryIO:
        return Path(self.path).open("rb")

    def write(self, data: bytes) -> None:
        """Whole or not at all, also where the power fails."""
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"_{uuid4().hex}.draft")  # readers of Parquet folders pass over it
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def delete(self) -> None:
        Path(self.path).unlink()

    def _complain(self, error: OSError) -> None:
        if error.filename != self.path or self.exists:
            raise error


@dataclass(frozen=True)
class Remote(Location):
    filesystem: Any  # pyarrow's

    @property
    def is_folder(self) -> bool | None:
        found = self.filesystem.get_file_info(self.path).type
        return None if found == fs.FileType.NotFound else bool(found == fs.FileType.Directory)

    @property
    def stamp(self) -> Stamp:
        return _stamp_of(self.filesystem.get_file_info(self.path))

    def files(self) -> dict[str, Stamp]:
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=True)
        root = len(self.path.rstrip("/")) + 1
        found = [one for one in self.filesystem.get_file_info(selector) if one.type == fs.FileType.File]
        return {one.path[root:]: _stamp_of(one) for one in sorted(found, key=lambda one: str(one.path))}

    def open(self) -> BinaryIO:
        return cast(BinaryIO, self.filesystem.open_input_file(self.path))

    def write(self, data: bytes) -> None:
        # Whole in an object store; elsewhere what is cut short is no Parquet file, and is written again.
        with self.filesystem.open_output_stream(self.path) as file:
            file.write(data)

    def delete(self) -> None:
        self.filesystem.delete_file(self.path)


def shown(text: str) -> str:
    """Without the credentials that its addresses may hold."""
    return re.sub(r"://[^/@\s]*@", "://", text)


def _stamp(path: str) -> Stamp | None:
    """None where it is a pipe, a socket or the like."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return UNKNOWN  # it may be an image: that it cannot be read shall be said in its row
    return (status.st_size, status.st_mtime_ns) if S_ISREG(status.st_mode) else None


def _stamp_of(found: fs.FileInfo) -> Stamp:
    size, time = found.size, found.mtime_ns
    return UNKNOWN[0] if size is None else size, UNKNOWN[1] if time is None else time


def _by_fsspec(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        found, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise Unusable(shown(f"{address} cannot be used: {error}")) from None
    return fs.PyFileSystem(fs.FSSpecHandler(found)), path
