"""Which files are images. One rule for folders, ZIPs and tar files, in all commands and the service.

Hidden files and what operating systems, file servers and programs leave behind are no images. Else the suffix
decides if it is an image's or an archive's, and if not, how the file begins. So a text file called `a.jpg` is
an image, which fails with an error, and a JPEG called `IM0001` or `a.dat` is an image too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath

from app.image_signatures import begins_as_image

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".tif", ".tiff"}
    | {".bmp", ".dib", ".gif", ".dcm", ".dicom"}
    # Leuko does not read these; as images, they get an error each.
    | {".jp2", ".j2k", ".jpx", ".jpf", ".jxl", ".heic", ".heif", ".avif", ".svs", ".ndpi", ".scn", ".mrxs"}
    | {".czi", ".nd2", ".lif", ".lsm", ".oib", ".oif", ".vsi"}
)
ARCHIVE_SUFFIXES = frozenset(
    {".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".tb2", ".xz", ".txz", ".lzma", ".tlz", ".lz"}
    | {".lz4", ".zst", ".tzst", ".z", ".taz", ".7z", ".rar"}
)
# Folders and files, casefolded: macOS; Windows; Synology and QNAP; NetApp; Linux.
_SYSTEM = frozenset(
    {"__macosx", "icon\r", "network trash folder", "temporary items"}
    | {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler", "recycled"}
    | {"system volume information", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "@syno"}
    | {"#recycle", "#snapshot", "~snapshot", "lost+found"}
)
# The table that the page puts beside the folders of a labelled ZIP.
_TABLE = "cells.csv"
_LOCK = "~$"  # prefix of the files by which Office locks others


class Kind(StrEnum):
    """What a file is, in words. All but images are left out."""

    IMAGE = "an image"
    SYSTEM = "hidden or left by a system"
    ARCHIVE = "an archive"
    OTHER = "not an image"
    REPEATED = "a link to a folder that is read anyway"
    SPECIAL = "a link, pipe or device"


LeftOut = Counter[Kind]


def leave_out(left_out: LeftOut, kind: Kind, path: PurePosixPath) -> None:
    """Count a file that is no image, unless it is the table that Leuko itself puts beside images."""
    if kind is not Kind.OTHER or path.name != _TABLE:
        left_out[kind] += 1


def is_system(path: PurePosixPath) -> bool:
    """Return whether part of the path is hidden (`.name`) or made by a system (`Thumbs.db`, `@eaDir`)."""
    return any(
        (part.startswith(".") and part != "..") or part.startswith(_LOCK) or part.casefold() in _SYSTEM
        for part in path.parts
    )


def kind_by_name(path: PurePosixPath) -> Kind | None:
    """Return what a file is, None if its name does not tell; then `kind_by_content` decides."""
    if is_system(path):
        return Kind.SYSTEM
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return Kind.IMAGE
    return Kind.ARCHIVE if suffix in ARCHIVE_SUFFIXES else None


def kind_by_content(head: bytes) -> Kind:
    """Return what a file is that begins with these `HEAD` bytes."""
    return Kind.IMAGE if begins_as_image(head) else Kind.OTHER


def left_out_line(left_out: Mapping[Kind, int]) -> str:
    """Return how many files were left out and why, in one line; empty if there are none."""
    total = sum(left_out.values())
    if not total:
        return ""
    why = ", ".join(f"{kind} ({left_out[kind]})" for kind in Kind if left_out.get(kind))
    return f"{total} {'file was' if total == 1 else 'files were'} left out: {why}"
