"""File names: which are images, and which are hidden or written by an operating system."""

from __future__ import annotations

from pathlib import PurePosixPath

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".dcm"})
_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


def is_hidden(path: PurePosixPath) -> bool:
    """Return whether part of the path is hidden (`.name`) or written by an operating system (`Thumbs.db`)."""
    return any((part.startswith(".") and part != "..") or part.casefold() in _LITTER for part in path.parts)
