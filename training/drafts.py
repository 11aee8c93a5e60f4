"""Writing of files and folders that are complete or absent, even if the process is killed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it replaces `path` only if the block ends without an exception."""
    draft = path.with_name(f"{path.name}.new")
    yield draft
    draft.replace(path)


@contextmanager
def draft_of_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder, not yet made; it replaces `path` only if the block ends without an exception.

    If the process is killed between the two renames, the old folder is left beside it as `.NAME.old`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        draft, old = Path(place) / path.name, path.with_name(f".{path.name}.old")
        yield draft
        if path.exists():
            path.rename(old)
        draft.rename(path)
        shutil.rmtree(old, ignore_errors=True)
