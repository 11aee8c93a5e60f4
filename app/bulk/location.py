"""A file or folder, on this machine or at a URL such as s3://."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self, cast
from uuid import uuid4

from pyarrow import ArrowInvalid, BufferOutputStream, Table, fs, parquet

from app.archives.image_files import Kind, is_system
from app.archives.walk import Files, Stamp, walk
from app.errors import Unusable

UNKNOWN: Stamp = (-1, -1)
DRAFT = re.compile(r"_[0-9a-f]{32}\.draft")  # a file that `Local.write` had begun


@dataclass(frozen=True)
class Location(ABC):
    """path: within its file system. Methods that access the file raise OSError."""

    path: str

    @staticmethod
    def of(address: str) -> Location:
        """Parse a path or URL. Raise Unusable if its scheme is unknown or needs a library not installed."""
        if "://" not in address:
            return Local(str(Path(address).absolute()))
        try:
            filesystem, path = fs.FileSystem.from_uri(address)
        except ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise Unusable(without_credentials(f"{address} cannot be used: {error}")) from None
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
        """None if nothing exists at this path."""

    @property
    @abstractmethod
    def stamp(self) -> Stamp:
        """The stamp of a file."""

    @abstractmethod
    def files(self) -> Files:
        """Return the files below, as `walk` does; none if there is no such folder."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open for reading with seek."""

    @abstractmethod
    def write(self, data: bytes) -> None: ...

    @abstractmethod
    def delete(self) -> None: ...

    def read(self, max_bytes: int = -1) -> bytes:
        with self.open() as file:
            return file.read() if max_bytes < 0 else file.read(max_bytes)

    def write_table(self, table: Table) -> None:
        buffer = BufferOutputStream()
        parquet.write_table(table, buffer, compression="zstd")
        self.write(buffer.getvalue().to_pybytes())

    def holds(self, other: Location) -> bool:
        """Return whether the other is the same or below this one."""
        below = f"{other.path}/".startswith(f"{self.path.rstrip('/')}/")
        return below and replace(self, path=other.path) == other


@dataclass(frozen=True)
class Local(Location):
    """On this machine; without pyarrow, which cannot handle names outside UTF-8."""

    @property
    def is_folder(self) -> bool | None:
        return Path(self.path).is_dir() if Path(self.path).exists() else None

    @property
    def stamp(self) -> Stamp:
        status = os.stat(self.path)  # noqa: PTH116
        return status.st_size, status.st_mtime_ns

    def files(self) -> Files:
        return walk(self.path) if self.exists else Files()

    def open(self) -> BinaryIO:
        return Path(self.path).open("rb")

    def write(self, data: bytes) -> None:
        """Write the whole file or nothing, even if the power fails."""
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"_{uuid4().hex}.draft")  # readers of Parquet folders ignore it
        try:
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:  # on a full disk, what was written would keep it full
            draft.unlink(missing_ok=True)
            raise

    def delete(self) -> None:
        Path(self.path).unlink()


@dataclass(frozen=True)
class Remote(Location):
    """In a file system of pyarrow or fsspec."""

    filesystem: Any  # pyarrow.fs.FileSystem

    @property
    def is_folder(self) -> bool | None:
        kind = self.filesystem.get_file_info(self.path).type
        return None if kind == fs.FileType.NotFound else bool(kind == fs.FileType.Directory)

    @property
    def stamp(self) -> Stamp:
        return _stamp_of(self.filesystem.get_file_info(self.path))

    def files(self) -> Files:
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=True)
        root = len(self.path.rstrip("/")) + 1
        files = [info for info in self.filesystem.get_file_info(selector) if info.type == fs.FileType.File]
        files.sort(key=lambda info: str(info.path))
        found = Files()
        for info in files:
            name = info.path[root:]
            if is_system(PurePosixPath(name)):
                found.left_out[Kind.SYSTEM] += 1
            else:
                found.stamps[name] = _stamp_of(info)
        return found

    def open(self) -> BinaryIO:
        return cast(BinaryIO, self.filesystem.open_input_file(self.path))

    def write(self, data: bytes) -> None:
        # Atomic in an object store; elsewhere a truncated file is not valid Parquet, and is written again.
        with self.filesystem.open_output_stream(self.path) as file:
            file.write(data)

    def delete(self) -> None:
        self.filesystem.delete_file(self.path)


def without_credentials(text: str) -> str:
    """Remove user names and passwords from the URLs in a text."""
    return re.sub(r"://[^/@\s]*@", "://", text)


def _stamp_of(info: fs.FileInfo) -> Stamp:
    size, time = info.size, info.mtime_ns
    return UNKNOWN[0] if size is None else size, UNKNOWN[1] if time is None else time


def _by_fsspec(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise Unusable(without_credentials(f"{address} cannot be used: {error}")) from None
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
