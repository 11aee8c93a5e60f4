"""Images drawn for the tests, valid and invalid, and the path to the real ones."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Return an image whose corners differ, so that a test detects a turned or shifted copy."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x / 2], axis=-1).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def levels_apart(first: Image.Image | NDArray[np.uint8], second: Image.Image) -> int:
    """Return the greatest difference between two values at the same position."""
    return int(np.abs(np.asarray(first, np.int16) - np.asarray(second, np.int16)).max())


def colour(image: Image.Image) -> tuple[int, ...]:
    """Return the only colour of an RGB image."""
    assert image.mode == "RGB"
    ((_, value),) = image.getcolors(1) or []
    assert isinstance(value, tuple)
    return value


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return an 8-bit RGB PNG that declares this size, whatever its data, with additional chunks."""
    header = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    packed = (
        struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))
        for name, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(tags: dict[int, int], body: bytes, order: str = "<") -> bytes:
    """Return a TIFF in which each tag is one LONG and `body` starts at byte 8. order: as in `struct`."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    entries = b"".join(struct.pack(f"{order}HHLL", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head, count = struct.pack(f"{order}L", 8 + len(body)), struct.pack(f"{order}H", len(tags))
    return mark + head + body + count + entries + bytes(4)


def grey_tags(side: int, bits: int) -> dict[int, int]:
    """Return the tags of an uncompressed grey square in one strip."""
    return {
        256: side,
        257: side,
        258: bits,
        259: 1,  # not compressed
        262: 1,  # 0 is black
        273: 8,  # where the strip starts
        277: 1,  # channel
        278: side,  # rows in the strip
        279: side * side * bits // 8,
    }


def case(name: str) -> Path:
    """Return a file that a user's problem is about; skip the test if it is missing."""
    return real(f"../cases/files/{name}")


def real(name: str) -> Path:
    """Return a file or folder of the data that is not in the repository; skip the test if it is missing."""
    path = Path(os.environ.get("LEUKO_DATA", Path(__file__).parents[1] / "../shared/data")) / name
    if not path.exists():
        pytest.skip(f"LEUKO_DATA is absent: {name} is missing")
    return path
