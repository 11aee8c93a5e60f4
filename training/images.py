"""Image files by name, from a ZIP or from the folder that it was unpacked into."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from sys import maxsize

from app.archives.image_files import Kind, leave_out
from app.archives.labelled_archive import PackedFile
from app.archives.walk import Files, list_images, why
from app.archives.zip_directory import ArchiveLimits, Packed, read_directory
from app.errors import RequestError
from app.units import GIB
from training.errors import DataError

# Of size only: the archive is the user's own.
LIMITS = ArchiveLimits(max_entries=10_000_000, max_entry_bytes=GIB, max_total_bytes=maxsize)


@dataclass
class ImageArchive:
    """The image files of a ZIP or folder. Opened lazily, once per process, so that it can be pickled to
    data-loading workers."""

    path: Path
    _opened: tuple[int, PackedFile, dict[str, Packed]] | None = field(default=None, repr=False, compare=False)

    def names(self) -> list[str]:
        """Return the sorted paths of the images inside, with forward slashes."""
        return [*self.files().stamps]

    def files(self) -> Files:
        """Return the images inside, what was left out, and what cannot be read. Raise DataError."""
        try:
            return list_images(self.path) if self._is_folder else self._list_zip()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {why(error)}") from error

    def read(self, name: str) -> bytes:
        """Return the file's content; raise DataError if it cannot be read."""
        try:
            if self._is_folder:
                return (self.path / name).read_bytes()
            file, entries = self._zip()
            return file.read(entries[name])
        except KeyError:
            reason = "it is not there"
        except OSError as error:
            reason = why(error)
        except RequestError as error:
            reason = error.detail
        raise DataError(f"{self.path}: {name} cannot be read ({reason})")

    @property
    def _is_folder(self) -> bool:
        return os.path.isdir(self.path)  # noqa: PTH112  # is_dir() can raise

    def _list_zip(self) -> Files:
        file, entries = self._zip()
        files = Files()
        for name, entry in sorted(entries.items()):
            kind = file.kind(entry)
            if kind is Kind.IMAGE:
                files.stamps[name] = (entry.size, -1)
            else:
                leave_out(files.left_out, kind, PurePosixPath(name))
        return files

    def _zip(self) -> tuple[PackedFile, dict[str, Packed]]:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                file = self.path.open("rb")
            except FileNotFoundError as error:
                raise DataError(f"{self.path} does not exist; see `leuko-train data --help`") from error
            except OSError as error:
                raise DataError(f"{self.path} cannot be read: {why(error)}") from error
            try:
                entries = {entry.name: entry for entry in read_directory(file, LIMITS)}
            except (OSError, RequestError) as error:
                file.close()
                reason = why(error) if isinstance(error, OSError) else error.detail
                raise DataError(
                    f"{self.path} is not a readable ZIP: {reason}; unpack it, or download it again"
                ) from error
            self._opened = (os.getpid(), PackedFile(file), entries)
        return self._opened[1:]

    def __del__(self) -> None:
        if self._opened is not None:
            self._opened[1].close()

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_opened": None}
