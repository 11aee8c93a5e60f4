"""Image files by name, from a ZIP or from the folder that it was unpacked into."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from app.archives.image_names import IMAGE_SUFFIXES, is_hidden
from training.errors import DataError


@dataclass
class ImageArchive:
    """The image files of a ZIP or folder. Opened lazily, once per process, so that it can be pickled to
    data-loading workers."""

    path: Path
    _opened: tuple[int, zipfile.ZipFile] | None = field(default=None, repr=False, compare=False)

    def names(self) -> list[str]:
        """Return the sorted paths of the images inside, with forward slashes; hidden files are skipped."""
        if self.path.is_dir():
            names = [p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()]
        else:
            names = [info.filename for info in self._zip().infolist() if not info.is_dir()]
        paths = ((name, PurePosixPath(name)) for name in names)
        return sorted(
            name for name, path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path)
        )

    def read(self, name: str) -> bytes:
        """Return the file's content; raise DataError if it cannot be read."""
        try:
            return (self.path / name).read_bytes() if self.path.is_dir() else self._zip().read(name)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{self.path}: cannot read {name} ({error}); unpack or download it again"
            ) from error

    def _zip(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = (os.getpid(), zipfile.ZipFile(self.path))
            except FileNotFoundError as error:
                raise DataError(f"{self.path} does not exist; see `leuko-train data --help`") from error
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{self.path} is not a readable ZIP ({error}); download it again") from error
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_opened": None}
