"""A writer of TIFFs with any tags, in both byte orders, for the tests."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Tags = Mapping[int, Sequence[int | float] | bytes | None]

FLOATS = frozenset({340, 341})  # SMinSampleValue, SMaxSampleValue: written as DOUBLE
COMPRESSIONS = (1, 5, 8, 32773)  # none, LZW, deflate, PackBits


def write(pages: Sequence[tuple[Tags, Sequence[bytes]]], order: str = "<") -> bytes:
    """Return a TIFF; each page is its tags and its strips, or its tiles if it has the tag 322."""
    body, ends = b"", []
    for tags, parts in pages:
        offsets = [8 + len(body) + sum(map(len, parts[:number])) for number in range(len(parts))]
        where = (324, 325) if 322 in tags else (273, 279)
        body += b"".join(parts)
        every = {where[0]: offsets, where[1]: [len(part) for part in parts]} | dict(tags)
        entries = b""
        for tag, values in sorted(every.items()):
            if values is None:
                continue
            kind, packed = _pack(tag, values, order)
            if len(packed) > 4:
                body += bytes(len(body) % 2)
                packed, body = struct.pack(f"{order}L", 8 + len(body)), body + packed
            entries += struct.pack(f"{order}HHL", tag, kind, len(values)) + packed.ljust(4, b"\0")
        body += bytes(len(body) % 2)
        start = 8 + len(body)
        body += struct.pack(f"{order}H", len(entries) // 12) + entries + bytes(4)
        ends.append((start, len(body) - 4))
    data = bytearray(body)
    for (_, end), (start, _) in pairwise(ends):
        data[end : end + 4] = struct.pack(f"{order}L", start)
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return mark + struct.pack(f"{order}L", ends[0][0]) + bytes(data)


def page(
    samples: NDArray[np.generic],
    photometric: int,
    *,
    bits: int = 0,
    order: str = "<",
    planar: bool = False,
    compression: int = 1,
    tile: int = 0,
    rows: int = 10,
    tags: Tags | None = None,
) -> tuple[Tags, list[bytes]]:
    """Return the tags and the parts of samples [height, width, channels], of their own type.

    bits: a sample, packed, if not those of the type; tile: side in pixels, 0 for strips of `rows`.
    """
    height, width, channels = samples.shape
    bits = bits or samples.dtype.itemsize * 8
    planes = [samples[..., n : n + 1] for n in range(channels)] if planar else [samples]
    parts = [
        _compress(_octets(part, bits, order), compression)
        for plane in planes
        for part in _cut(plane, tile, rows)
    ]
    every: dict[int, Sequence[int | float] | bytes | None] = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [compression],
        262: [photometric],
        277: [channels],
        284: [2 if planar else 1],
        339: [{"u": 1, "i": 2, "f": 3}[samples.dtype.kind]] * channels,
    }
    every |= {322: [tile], 323: [tile]} if tile else {278: [rows]}
    return every | dict(tags or {}), parts


def _pack(tag: int, values: Sequence[int | float] | bytes, order: str) -> tuple[int, bytes]:
    """Return the number of the type, and the bytes."""
    if isinstance(values, bytes):
        return (2 if tag == 270 else 1), values
    if tag in FLOATS:
        return 12, struct.pack(f"{order}{len(values)}d", *values)
    return 4, struct.pack(f"{order}{len(values)}L", *(int(value) for value in values))


def _cut(plane: NDArray[np.generic], tile: int, rows: int) -> list[NDArray[np.generic]]:
    height, width, _ = plane.shape
    if not tile:
        return [plane[top : top + rows] for top in range(0, height, rows)]
    padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
    return [
        padded[top : top + tile, left : left + tile]
        for top in range(0, height, tile)
        for left in range(0, width, tile)
    ]


def _octets(part: NDArray[np.generic], bits: int, order: str) -> bytes:
    if bits == part.dtype.itemsize * 8:
        return part.astype(f"{order}{part.dtype.kind}{part.dtype.itemsize}").tobytes()
    rows = part.reshape(len(part), -1).astype(">u2")
    flat = np.unpackbits(rows.view(np.uint8).reshape(len(rows), -1, 2), axis=2)[:, :, 16 - bits :]
    return np.packbits(flat.reshape(len(rows), -1), axis=1).tobytes()


def _compress(data: bytes, compression: int) -> bytes:
    """Compress, or for LZW and PackBits only encode: without repetition, which is valid."""
    if compression == 8:
        return zlib.compress(data)
    if compression == 32773:
        return b"".join(bytes([len(run) - 1]) + run for run in _runs(data, 128))
    if compression == 5:  # a clear code before the codes would need ten bits
        codes = [code for run in _runs(data, 200) for code in (256, *run)] + [257]
        bits = "".join(f"{code:09b}" for code in codes)
        return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))
    return data


def _runs(data: bytes, length: int) -> list[bytes]:
    return [data[start : start + length] for start in range(0, len(data), length)]
