"""A file or folder on this machine, or where an address such as s3:// says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pyarrow import ArrowInvalid, BufferOutputStream, Table, fs, parquet

from app.errors import Unusable


@dataclass(frozen=True)
class Location:
    """filesystem: pyarrow's; path: within it."""

    filesystem: Any
    path: str

    @classmethod
    def of(cls, address: str) -> Location:
        """Raises Unusable for an address of no known kind, or of a library that is not installed."""
        if "://" not in address:
            return cls(fs.LocalFileSystem(), Path(address).absolute().as_posix())
        try:
            return cls(*fs.FileSystem.from_uri(address))
        except ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise Unusable(f"{address} cannot be used: {error}") from None
        return cls(*_by_fsspec(address))

    def __truediv__(self, name: str) -> Location:
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def is_folder(self) -> bool:
        """Raises Unusable where there is nothing."""
        if not self.exists:
            raise Unusable(f"{self.path} does not exist")
        return bool(self.filesystem.get_file_info(self.path).type == fs.FileType.Directory)

    @property
    def exists(self) -> bool:
        return bool(self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound)

    def files(self) -> list[str]:
        """Names of all files below, relative, in order; none where there is no such folder."""
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=True)
        root = len(self.path.rstrip("/")) + 1
        found = self.filesystem.get_file_info(selector)
        return sorted(one.path[root:] for one in found if one.type == fs.FileType.File)

    def open(self) -> BinaryIO:
        """To be read from any place. Raises OSError."""
        return cast(BinaryIO, self.filesystem.open_input_file(self.path))

    def read(self, most: int = -1) -> bytes:
        with self.open() as file:
            return file.read() if most < 0 else file.read(most)

    def write(self, data: bytes) -> None:
        """Whole or not at all."""
        if not isinstance(self.filesystem, fs.LocalFileSystem):  # there a file is there once it is closed
            with self.filesystem.open_output_stream(self.path) as file:
                file.write(data)
            return
        draft = Path(f"{self.path}.draft")
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        draft.replace(self.path)

    def write_table(self, table: Table) -> None:
        buffer = BufferOutputStream()
        parquet.write_table(table, buffer, compression="zstd")
        self.write(buffer.getvalue().to_pybytes())


def _by_fsspec(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        found, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise Unusable(f"{address} cannot be used: {error}") from None
    return fs.PyFileSystem(fs.FSSpecHandler(found)), path
