"""JSON responses of any size, rendered in slices."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

from pydantic import BaseModel

SLICE = 500  # items of a list that are rendered without letting other threads run


def render(document: BaseModel) -> bytes:
    """Return what `model_dump_json` does, which would hold the interpreter lock until it is done."""
    response = BytesIO()  # unlike `join`, it does not hold everything twice
    response.writelines(_pieces(document))
    return response.getvalue()


def _pieces(document: BaseModel) -> Iterator[bytes]:
    separator = b"{"
    for name in type(document).model_fields:
        value = getattr(document, name)
        if isinstance(value, list) and len(value) > SLICE:
            yield separator + f'"{name}":'.encode()
            yield from _items(document, name, value)
        else:
            yield separator + document.model_dump_json(include={name})[1:-1].encode()
        separator = b","
    yield b"}"


def _items(document: BaseModel, name: str, items: list[object]) -> Iterator[bytes]:
    separator, around = b"[", len(f'{{"{name}":[')
    for start in range(0, len(items), SLICE):
        part = document.model_copy(update={name: items[start : start + SLICE]})
        yield separator + part.model_dump_json(include={name})[around:-2].encode()
        separator = b","
    yield b"]"
