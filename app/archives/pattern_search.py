"""File names → sources by a regular expression. Runs as a process: a pattern can backtrack for ever."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import BinaryIO

from app.archives.spelling import composed
from app.child_process import Child, ChildTimeout, ChildTooLarge
from app.errors import BadLabels

MAX_PATTERN = 256  # characters
LIMIT_S = 10.0
_LIMIT_MIB = 256
_WIDTH = 4  # bytes of the length before each text
_NOTHING = 2**32 - 1  # the length that stands for no match

FOUND, REFUSED = b"\0", b"\1"  # first byte of the output: sources follow, or why the pattern is refused


def pattern_child(limit_s: float = LIMIT_S) -> Child:
    return Child(f"{__name__}:work", limit_s=limit_s, limit_mib=_LIMIT_MIB)


def search(names: Sequence[str], pattern: str, child: Child) -> list[bytes | None]:
    """Return what the pattern's first group captures in each name, in UTF-8, None if it does not match.

    Names and pattern are composed, so that an ü matches however it is written.
    child: made by `pattern_child`, so that it can be closed. Raise BadLabels, ChildEnded if it was closed.
    """
    if len(pattern) > MAX_PATTERN:
        raise BadLabels(f"the group pattern has over {MAX_PATTERN} characters")
    try:
        output = child.run(_pack(map(composed, [pattern, *names])))
    except ChildTimeout:
        raise BadLabels("the group pattern took too long: make it simpler") from None
    except ChildTooLarge:
        raise BadLabels("the group pattern needs too much memory: make it simpler") from None
    if output.startswith(REFUSED):
        raise BadLabels(output[1:].decode())
    return [*_unpack(BytesIO(output[1:]))]


def work(stdin: BinaryIO) -> bytes:
    """Search in the process: read the pattern and the names, return what `search` unpacks."""
    texts = (decode(text or b"") for text in _unpack(stdin))
    try:
        compiled = re.compile(next(texts))
    except (re.error, RecursionError, OverflowError) as error:
        return REFUSED + f"the group pattern is not a regular expression: {error}".encode()
    if not compiled.groups:
        return REFUSED + b"the group pattern has no group (\xe2\x80\xa6) to capture the source"
    matches = (compiled.search(name) for name in texts)
    return FOUND + b"".join(_pack(match and match[1] for match in matches))


def encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON can escape half of a pair


def decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


def _pack(texts: Iterable[str | None]) -> Iterator[bytes]:
    for text in texts:
        if text is None:
            yield _NOTHING.to_bytes(_WIDTH, "little")
        else:
            data = encode(text)
            yield len(data).to_bytes(_WIDTH, "little") + data


def _unpack(file: BinaryIO) -> Iterator[bytes | None]:
    while head := file.read(_WIDTH):
        size = int.from_bytes(head, "little")
        yield None if size == _NOTHING else file.read(size)
