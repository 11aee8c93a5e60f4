"""The files below a folder of this machine, and which of them are images."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EACCES
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISREG

from app.archives.image_files import Kind, LeftOut, is_system, kind_by_content, kind_by_name, leave_out
from app.image_signatures import HEAD

Stamp = tuple[int, int]  # size of a file in bytes and time of its last change in ns; -1 if unknown
AT_ONCE = 16  # files whose first bytes are read concurrently: network disks have a high latency


@dataclass
class Files:
    """Files by path below a folder, with forward slashes, sorted.

    unread: why a file or folder cannot be read; closed: which of them are folders.
    """

    stamps: dict[str, Stamp] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=Counter)
    unread: dict[str, str] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)


def list_images(folder: Path) -> Files:
    """Return the images below a folder, as `walk` does. Raise OSError if the folder itself cannot be read."""

    def head(name: str) -> bytes:
        with (folder / name).open("rb") as file:
            return file.read(HEAD)

    return keep_images(walk(folder), head)


def keep_images(files: Files, head: Callable[[str], bytes]) -> Files:
    """Return the images among files.

    head: returns the first `HEAD` bytes of a file; called if its name does not tell what it is. A file is
    `unread` if that raises OSError.
    """
    images = Files({}, Counter(files.left_out), dict(files.unread), files.closed)
    kinds: dict[str, Kind | str | None] = {name: kind_by_name(PurePosixPath(name)) for name in files.stamps}

    def look(name: str) -> Kind | str:
        try:
            return kind_by_content(head(name))
        except OSError as error:
            return why(error)

    unclear = [name for name, kind in kinds.items() if kind is None]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        kinds.update(zip(unclear, pool.map(look, unclear), strict=True))
    for name, kind in kinds.items():
        if kind is Kind.IMAGE:
            images.stamps[name] = files.stamps[name]
        elif isinstance(kind, Kind):
            leave_out(images.left_out, kind, PurePosixPath(name))
        elif kind is not None:
            images.unread[name] = kind
    return images


def walk(folder: Path | str) -> Files:
    """Return all files below a folder but those of systems. Raise OSError if the folder cannot be read.

    Links are followed. No folder is listed twice, nor one that holds this folder.
    """
    found = _Walk(os.fspath(folder))
    found.run()
    found.files.stamps = dict(sorted(found.files.stamps.items()))
    return found.files


def why(error: OSError) -> str:
    """Return what an error of the operating system says, without the path."""
    return error.strerror or str(error)


class _Walk:
    def __init__(self, root: str) -> None:
        self.files = Files()
        self._root = root
        self._seen = _above(root)
        self._folders = deque([""])
        # Linked folders come last, so that their files keep the names that they have without the link.
        self._linked: deque[str] = deque()

    def run(self) -> None:
        while self._folders or self._linked:
            inner = self._folders.popleft() if self._folders else self._linked.popleft()
            try:
                self._list(inner)
            except OSError as error:
                if not inner:
                    raise
                self.files.unread[inner] = why(error)
                self.files.closed.add(inner)

    def _list(self, inner: str) -> None:
        place = self._place(inner)
        key = _key(place)
        if key in self._seen:
            self.files.left_out[Kind.REPEATED] += 1
            return
        with os.scandir(place) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        self._seen.add(key)
        for entry in found:
            self._add(entry, f"{inner}/{entry.name}" if inner else entry.name)

    def _add(self, entry: os.DirEntry[str], name: str) -> None:
        place = self._place(name)
        if is_system(PurePosixPath(entry.name)):
            self.files.left_out[Kind.SYSTEM] += _count(place)
            return
        try:
            status = os.stat(place)  # noqa: PTH116
        except OSError as error:
            self.files.unread[name] = why(error)
            return
        if S_ISDIR(status.st_mode):
            (self._linked if entry.is_symlink() else self._folders).append(name)
        elif not S_ISREG(status.st_mode):
            self.files.left_out[Kind.SPECIAL] += 1
        elif not os.access(place, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            self.files.unread[name] = os.strerror(EACCES)
        else:
            self.files.stamps[name] = (status.st_size, status.st_mtime_ns)

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def _count(place: str) -> int:
    """Return the number of files in a folder, or 1 for a file or a link; 1 for each folder that is closed."""
    if not os.path.isdir(place) or os.path.islink(place):  # noqa: PTH112, PTH114
        return 1
    closed: list[OSError] = []
    return sum(len(files) for _, _, files in os.walk(place, onerror=closed.append)) + len(closed)


def _above(root: str) -> set[tuple[int, int]]:
    """Return the keys of the folders that hold the root."""
    keys = set()
    for folder in Path(root).resolve().parents:
        with suppress(OSError):  # where it is not allowed to look, no link of this user leads either
            keys.add(_key(str(folder)))
    return keys


def _key(place: str) -> tuple[int, int]:
    status = os.stat(place)  # noqa: PTH116
    return status.st_dev, status.st_ino
