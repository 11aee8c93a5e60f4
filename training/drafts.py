"""Writing of files and folders that are complete or absent, even if the process is killed."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.printable import complain

PROGRAM = "leuko-train"
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2(2)

Exchange = Callable[[Path, Path], bool]


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it replaces `path` only if the block ends without an exception."""
    draft = path.with_name(f"{path.name}.new")
    yield draft
    draft.replace(path)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step; return False, having done nothing, where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it, as musl before 1.2.6
        return False
    return bool(renameat2(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0)


@contextmanager
def draft_of_folder(path: Path, exchange: Exchange = exchange) -> Iterator[Path]:
    """Yield a temporary folder, not yet made; it replaces `path` only if the block ends without an exception.

    The replacement is one step. Where the system cannot exchange two folders, it is two; if the process is
    killed between them, the old folder is left as `.NAME.old`, from which `recover_folder` restores it.
    """
    path = path.resolve()  # a link stays
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as place:
        draft, old = Path(place) / path.name, old_of(path)
        yield draft
        if not path.exists():
            draft.rename(path)
        elif not exchange(draft, path):
            path.rename(old)
            try:
                draft.rename(path)
            except BaseException:
                old.rename(path)
                raise
            shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Undo what a process that was killed while it replaced the folder left, and say so."""
    path = path.resolve()
    old = old_of(path)
    if not old.is_dir():
        return
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        complain(f"removed {old}: a command that replaced {path} was killed before its end", PROGRAM)
    else:
        old.rename(path)
        complain(f"restored {path} from {old}: a command was killed while it replaced it", PROGRAM)


def old_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
