"""Request bodies → parts in memory, within limits; nothing is written to temporary files."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from starlette.requests import Request

from app.api.disposition import decode_text, parse_disposition, parse_options
from app.api.turns import LONGEST_S, Turns, timed
from app.errors import MalformedRequest, TooLarge, UnsupportedFormat, Unusable
from app.inference.fair_queue import Caller
from app.units import MIB

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

Schema = TypeVar("Schema", bound=BaseModel)

MAX_FILENAME = 255  # characters
MOST_PADDING = 64  # blanks after the first boundary
IDENTITY = (b"", b"binary", b"8bit", b"7bit")  # encodings of a part that leave its bytes as they are
MOST_FREED = 32 * MIB  # bytes that are freed in one turn of the event loop
LARGE_SLICE, SMALL_SLICE = 16_384, 2048  # bytes that are parsed in one turn; small ones after a long turn
AT_ONCE_S = LONGEST_S  # of parsing before a form waits for its turn: those with an image or two never do


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a form, or a bare body as the only part, without a file name."""

    filename: str | None
    data: bytes


@dataclass(frozen=True)
class Limit:
    """Limits on the parts of one name. count: number of parts; size: bytes of each."""

    count: int
    size: int


Form = dict[str, list[Part]]  # parts by name


@dataclass(frozen=True)
class Upload:
    """texts: the requested text parts that were sent, by name."""

    images: list[Part]
    texts: Mapping[str, str]


async def read_images(request: Request, limit: Limit, texts: Mapping[str, int] | None = None) -> Upload:
    """Return the parts named `files` of a form, or a bare image as the only part.

    texts: name → maximum bytes of further parts, each of which the form may have once.
    Raise UnsupportedFormat, MalformedRequest, Unusable or TooLarge.
    """
    kind = media_type(request)
    if kind.startswith("image/") or kind == "application/dicom":  # RFC 3240
        return Upload([Part(None, await read_body(request, limit.size))], {})
    if kind != "multipart/form-data":
        raise UnsupportedFormat(
            "send multipart/form-data with parts named files, or one image as image/* or application/dicom"
        )
    texts = texts or {}
    form = await read_form(request, {"files": limit} | {name: Limit(1, size) for name, size in texts.items()})
    if not form["files"]:
        raise Unusable("the form has no part named files")
    return Upload(form["files"], {name: decode_text(form[name][0].data) for name in texts if form[name]})


@asynccontextmanager
async def dropping(parts: list[Part]) -> AsyncIterator[None]:
    """Drop the bytes of parts afterwards, in turns: to free all of a large request at once takes 20 ms."""
    try:
        yield
    finally:
        held = 0
        for index, part in enumerate(parts):
            held += len(part.data)
            parts[index] = Part(part.filename, b"")
            if held > MOST_FREED:
                held = 0
                await asyncio.sleep(0)


def parse_texts(schema: type[Schema], texts: Mapping[str, str]) -> Schema:
    """Validate the text parts of a form. Raise RequestValidationError, with `body` before each field."""
    try:
        return schema.model_validate(texts)
    except ValidationError as error:
        faults = error.errors(include_context=False)
        raise RequestValidationError(
            [{**fault, "loc": ("body", *fault["loc"])} for fault in faults]
        ) from None


async def read_body(request: Request, size: int) -> bytes:
    """Return the body; raise TooLarge as soon as it exceeds `size` bytes."""
    body = BytesIO()
    async for chunk in request.stream():
        body.write(chunk)
        if body.tell() > size:
            raise TooLarge(f"the body is over {size} bytes")
    return body.getvalue()


async def read_form(request: Request, limits: Mapping[str, Limit]) -> Form:
    """Return the parts by name, with an empty list for each name of `limits` that was not sent.

    Raise UnsupportedFormat, MalformedRequest, TooLarge, or Unusable for a part of any other name.
    """
    if media_type(request) != "multipart/form-data":
        raise UnsupportedFormat("send multipart/form-data")
    reader = _Reader(limits)
    try:
        parser = reader.parser(request.headers["content-type"])
        await _feed(parser, request)
    except FormParserError:
        raise MalformedRequest("the body is not a multipart form") from None
    if parser.preamble and not parser.begun:
        raise MalformedRequest(
            "the body is not a multipart form: none of its lines is the boundary of the Content-Type header"
        )
    if not reader.complete:
        raise MalformedRequest("the form ends before its closing boundary")
    return reader.form


async def _feed(parser: MultipartParser, request: Request) -> None:
    """Parse a form, a long one in turns: headers take 50 times as long as an image's bytes."""
    turns: Turns = request.app.state.turns
    caller = Caller.of(request.state.context)
    size, spent = SMALL_SLICE, 0.0
    async for chunk in request.stream():
        start = 0
        while start < len(chunk):
            parse = partial(parser.write, chunk[start : start + size])
            seconds = timed(parse) if spent < AT_ONCE_S else await turns.do(caller, parse)
            spent += seconds
            start += size
            size = SMALL_SLICE if seconds > LONGEST_S else LARGE_SLICE


def media_type(request: Request) -> str:
    """Return the media type of the body in lower case, without parameters, "" if it has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


class _Parser(MultipartParser):
    """python_multipart's parser, which refuses text before the first boundary.

    The preamble (RFC 2046, section 5.1.1) is dropped, and so are blanks after that boundary. preamble: there
    was one; begun: the first boundary was found.
    """

    def __init__(self, boundary: bytes, callbacks: MultipartCallbacks) -> None:
        super().__init__(boundary, callbacks)
        self.preamble = self.begun = False
        self._delimiter = b"--" + boundary
        self._held = b"\n"  # the last bytes of the preamble, in which the boundary may begin

    def write(self, data: bytes) -> int:
        if self.begun or (self._held == b"\n" and data.startswith(self._delimiter + b"\r\n")):
            self.begun = True
            return super().write(data)
        text = self._held + data
        first = re.search(rb"\n%b(--|[ \t]{0,%d}\r\n)" % (re.escape(self._delimiter), MOST_PADDING), text)
        if first is None:
            self.preamble = True
            self._held = text[-len(self._delimiter) - MOST_PADDING - 2 :]
            return len(data)
        self.begun = True
        super().write(self._delimiter + first[1].lstrip(b" \t") + text[first.end() :])
        return len(data)


class _Reader:
    """Collect the parts of a form in the callbacks of python_multipart's parser."""

    def __init__(self, limits: Mapping[str, Limit]) -> None:
        self.form: Form = {name: [] for name in limits}
        self.complete = False
        self._limits = limits
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._name = ""
        self._filename: str | None = None
        self._data = BytesIO()

    def parser(self, content_type: str) -> _Parser:
        boundary = parse_options(content_type.encode("latin-1")).get(b"boundary")
        if not boundary:
            raise MalformedRequest("the Content-Type header has no boundary")
        return _Parser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._open,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def _begin(self) -> None:
        self._disposition = b""
        self._data = BytesIO()

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        name = self._header.lower()
        if name == b"content-disposition":
            self._disposition = self._value
        elif name == b"content-transfer-encoding" and self._value.strip().lower() not in IDENTITY:
            raise MalformedRequest(
                "a part of the form has a Content-Transfer-Encoding; send its bytes as they are (RFC 7578)"
            )
        self._header = self._value = b""

    def _open(self) -> None:
        disposition = parse_disposition(self._disposition)
        if disposition.name is None:
            raise MalformedRequest("a part of the form has no name")
        self._name, self._filename = disposition.name, disposition.filename
        if len(self._filename or "") > MAX_FILENAME:
            raise MalformedRequest(f"a file name of the form has over {MAX_FILENAME} characters")
        if self._name not in self._limits:
            raise Unusable(f"only parts named {', '.join(self._limits)} are accepted")
        count = self._limits[self._name].count
        if len(self.form[self._name]) >= count:
            raise TooLarge(f"more than {count} parts named {self._name}")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        size = self._limits[self._name].size
        if self._data.tell() + end - start > size:
            raise TooLarge(f"a part named {self._name} is over {size} bytes")
        self._data.write(memoryview(data)[start:end])

    def _end(self) -> None:
        self.form[self._name].append(Part(self._filename, self._data.getvalue()))

    def _finish(self) -> None:
        self.complete = True
