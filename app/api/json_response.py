"""JSON responses of any size, rendered in slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from io import BytesIO

from pydantic import BaseModel

SLICE = 500  # items of a list that are rendered without letting other threads run


def render(
    document: BaseModel,
    before: bytes = b"",
    after: bytes = b"",
    escape: Callable[[bytes], bytes] = bytes,
) -> bytes:
    """Return what `model_dump_json` does, which would hold the interpreter lock until it is done.

    A field may hold a sequence that makes its items when they are asked for. before, after: put around it.
    escape: applied to each slice.
    """
    rendered = BytesIO(before)  # unlike a list of pieces, not beside their sum
    rendered.seek(len(before))
    for piece in _pieces(document):
        rendered.write(escape(piece))
    rendered.write(after)
    return rendered.getvalue()


def _pieces(document: BaseModel) -> Iterator[bytes]:
    separator = b"{"
    for name in type(document).model_fields:
        value = getattr(document, name)
        if isinstance(value, Sequence) and not isinstance(value, str):
            yield separator + f'"{name}":'.encode()
            yield from _items(document, name, value)
        else:
            yield separator + document.model_dump_json(include={name})[1:-1].encode()
        separator = b","
    yield b"}"


def _items(document: BaseModel, name: str, items: Sequence[object]) -> Iterator[bytes]:
    separator, around = b"[", len(f'{{"{name}":[')
    for start in range(0, max(1, len(items)), SLICE):
        part = document.model_copy(update={name: items[start : start + SLICE]})
        yield separator + part.model_dump_json(include={name})[around:-2].encode()
        separator = b","
    yield b"]"
