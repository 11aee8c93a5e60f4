"""Pictures by name, from a zip or from the folder it was unpacked into."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from app.archives.image_names import IMAGE_SUFFIXES, is_hidden
from training.errors import DataError


@dataclass
class Pictures:
    """Opened lazily and once in each process, so that it travels to data-loading workers."""

    path: Path
    _opened: tuple[int, zipfile.ZipFile] | None = field(default=None, repr=False, compare=False)

    def names(self) -> list[str]:
        """Every picture's path inside, sorted, with forward slashes; hidden ones are passed over."""
        if self.path.is_dir():
            found = [p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()]
        else:
            found = [info.filename for info in self._zip().infolist() if not info.is_dir()]
        paths = ((name, PurePosixPath(name)) for name in found)
        return sorted(n for n, path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path))

    def read(self, name: str) -> bytes:
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
                raise DataError(f"{self.path} is not a readable zip ({error}); download it again") from error
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_opened": None}
