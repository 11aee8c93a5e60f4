"""A new folder that is there whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` to write into; at the end it becomes `path`. Raise OSError.

    After an error it is gone.
    """
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists already", str(path))
        draft.mkdir(parents=True)
        yield draft
        draft.rename(path)
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(draft)
