"""Damages valid files as storage, networks and attackers do."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]

EDGE = 64  # bytes at either end, where headers and directories are
SPAN = 256  # most bytes that one mutation copies or removes
# Lengths, offsets and sizes at the limits of integer types.
EXTREMES = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
PNG = b"\x89PNG\r\n\x1a\n"


def mutate(random: Random, corpus: Sequence[bytes], most: int = 4) -> bytes:
    """Return an input from the corpus after one to `most` mutations."""
    data = random.choice(corpus)
    for _ in range(min(random.randint(1, most), random.randint(1, most))):
        data = random.choice(MUTATIONS)(random, data, corpus)
    return mend(data) if data.startswith(PNG) and random.random() < 0.7 else data


def cut(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: _place(random, data)]


def flip(random: Random, data: bytes, __: Sequence[bytes]) -> bytes:
    broken = bytearray(data)
    for _ in range(random.randint(1, 4) if data else 0):
        broken[_place(random, data)] ^= 1 << random.randrange(8)
    return bytes(broken)


def edit_number(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Overwrite a random place with an extreme number, as if it were a length, offset or size."""
    packing = random.choice(("<H", ">H", "<L", ">L", "B"))
    width = struct.calcsize(packing)
    number = struct.pack(packing, random.choice(EXTREMES) % 256**width)
    return _replaced(data, _place(random, data), number)


def splice(random: Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """Join the start of one file and the end of another."""
    other = random.choice(corpus)
    return data[: _place(random, data)] + other[_place(random, other) :]


def graft(random: Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    return _replaced(data, _place(random, data), _span(random, random.choice(corpus)))


def repeat(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(random, data)
    return data[:place] + _span(random, data) * random.randint(1, 20) + data[place:]


def drop(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(random, data)
    return data[:place] + data[place + random.randint(1, SPAN) :]


def blank(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    filler = random.choice((b"\0", b"\xff")) * random.randint(1, SPAN)
    return _replaced(data, _place(random, data), filler)


MUTATIONS: tuple[Mutation, ...] = (cut, flip, edit_number, edit_number, splice, graft, repeat, drop, blank)


def mend(data: bytes) -> bytes:
    """Correct the checksums of a PNG, so that errors inside its chunks are reached."""
    mended, place = [data[:8]], 8
    while place + 8 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4])
        body = data[place + 4 : end]
        mended += [data[place : place + 4], body, struct.pack(">L", zlib.crc32(body))]
        place = end + 4
    return b"".join(mended)


def _place(random: Random, data: bytes) -> int:
    """Return a random offset, half of the time near an end; 0 for no data."""
    size = len(data)
    near = random.randrange(min(EDGE, size) or 1)
    return random.choice(
        (random.randrange(size or 1), random.randrange(size or 1), near, max(0, size - 1 - near))
    )


def _span(random: Random, data: bytes) -> bytes:
    place = _place(random, data)
    return data[place : place + random.randint(1, SPAN)]


def _replaced(data: bytes, place: int, value: bytes) -> bytes:
    return data[:place] + value + data[place + len(value) :]
