"""ZIP files made for the tests, valid and hostile."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

LABELS = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
DIRECTORY, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
SIZES = {DIRECTORY: 20, LOCAL: 18}  # offset of the compressed size in each kind of header


def pack(files: Mapping[str, bytes], method: int = ZIP_DEFLATED) -> bytes:
    """Return a ZIP of path → content; a path that ends with a slash is a folder."""
    file = io.BytesIO()
    with ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def pack_one(info: ZipInfo, content: bytes = b"picture") -> bytes:
    """Return a ZIP of one entry with the attributes of `info`."""
    file = io.BytesIO()
    with ZipFile(file, "w", ZIP_STORED) as archive:
        archive.writestr(info, content)
    return file.getvalue()


def patch(archive: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """Overwrite the bytes at `offset` in the first header with that signature."""
    place = archive.index(signature) + offset
    return archive[:place] + value + archive[place + len(value) :]


def rename(archive: bytes, old: bytes, new: bytes) -> bytes:
    """Replace a path by one of the same length in both headers; `zipfile` would correct or refuse it."""
    assert len(old) == len(new)
    return archive.replace(old, new)


def declare(archive: bytes, size: int) -> bytes:
    """Set the declared uncompressed size of the first entry."""
    for signature, offset in SIZES.items():
        archive = patch(archive, signature, offset + 4, struct.pack("<L", size))
    return archive
