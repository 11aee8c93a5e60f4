"""Atomic writing of files: complete or absent, even if the process is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it replaces `path` only if the block ends without an exception."""
    draft = path.with_name(f"{path.name}.new")
    yield draft
    draft.replace(path)
