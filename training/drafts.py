"""Files that are whole or not there, however a run is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Where to write it; only what was written to the end takes the place of `path`."""
    draft = path.with_name(f"{path.name}.new")
    yield draft
    draft.replace(path)
