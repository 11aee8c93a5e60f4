"""ZIP files made for the tests, honest and hostile."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

LABELS = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
DIRECTORY, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
SIZES = {DIRECTORY: 20, LOCAL: 18}  # offset of the packed size in each kind of header


def pack(files: Mapping[str, bytes], method: int = ZIP_DEFLATED) -> bytes:
    """path → content; a path with a slash at its end is a folder."""
    file = io.BytesIO()
    with ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def pack_one(info: ZipInfo, content: bytes = b"picture") -> bytes:
    """One entry with whatever attributes `info` has."""
    file = io.BytesIO()
    with ZipFile(file, "w", ZIP_STORED) as archive:
        archive.writestr(info, content)
    return file.getvalue()


def patch(archive: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """The first header of that kind with other bytes at `offset`."""
    place = archive.index(signature) + offset
    return archive[:place] + value + archive[place + len(value) :]


def rename(archive: bytes, old: bytes, new: bytes) -> bytes:
    """Another path of the same length, in both headers; `zipfile` itself would mend or refuse it."""
    assert len(old) == len(new)
    return archive.replace(old, new)


def declare(archive: bytes, size: int) -> bytes:
    """The first entry said to unpack to `size` bytes."""
    for signature, offset in SIZES.items():
        archive = patch(archive, signature, offset + 4, struct.pack("<L", size))
    return archive
