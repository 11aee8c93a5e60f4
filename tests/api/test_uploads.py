from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Message

from app.api import uploads
from app.api.turns import Turns
from app.api.uploads import (
    MOST_FREED,
    Form,
    Limit,
    Part,
    Upload,
    dropping,
    read_body,
    read_form,
    read_images,
)
from app.errors import LeukoError, MalformedRequest, TooLarge, UnsupportedFormat, Unusable
from app.observability.request_context import RequestContext

LIMITS = {"files": Limit(2, 100), "labels": Limit(1, 10)}
FORM = b"multipart/form-data; boundary=line"


def part(disposition: str, data: bytes) -> bytes:
    return b"--line\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + data + b"\r\n"


BODY = (
    part('name="files"; filename="ä.png"', b"\x89PNG\r\n--lin")
    + part('name="labels"', b"a,b")
    + part('name="files"; filename=""', b"")
    + b"--line--\r\n"
)


def request(chunks: Iterable[bytes], content_type: bytes = FORM) -> Request:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    remaining = iter([*messages, {"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return next(remaining)

    app = Starlette()
    app.state.turns = Turns()
    scope = {
        "type": "http",
        "app": app,
        "state": {"context": RequestContext("id", 0.0)},
        "headers": [(b"content-type", content_type)],
    }
    return Request(scope, receive)


def read(*chunks: bytes, content_type: bytes = FORM) -> Form:
    return asyncio.run(read_form(request(chunks, content_type), LIMITS))


def test_parts_are_returned_by_name_complete_and_in_order() -> None:
    assert read(BODY) == {
        "files": [Part("ä.png", b"\x89PNG\r\n--lin"), Part("", b"")],
        "labels": [Part(None, b"a,b")],
    }


def test_it_does_not_matter_where_the_network_cuts_a_body() -> None:
    whole = read(BODY)
    for at in range(len(BODY)):
        assert read(BODY[:at], BODY[at:]) == whole
    assert read(*(bytes([byte]) for byte in BODY)) == whole


def test_a_body_cut_short_anywhere_is_malformed() -> None:
    for at in range(len(BODY) - len(b"--\r\n")):
        with pytest.raises(MalformedRequest):
            read(BODY[:at])


@given(st.binary(max_size=300))
def test_no_body_breaks_the_reader(data: bytes) -> None:
    for body in (data, b"--line\r\n" + data, part('name="files"', data) + data):
        with pytest.raises(LeukoError):
            read(body)


@pytest.mark.parametrize(
    ("body", "kind", "complaint"),
    [
        (part('name="files"', b"x" * 101), TooLarge, "a part named files is over 100 bytes"),
        (part('name="labels"', b"x" * 11), TooLarge, "a part named labels is over 10 bytes"),
        (part('name="files"', b"x") * 3, TooLarge, "more than 2 parts named files"),
        (part('name="file"', b"x"), Unusable, "only parts named files, labels are accepted"),
        (part('filename="a.png"', b"x"), MalformedRequest, "a part of the form has no name"),
        (part(f'name="files"; filename="{"é" * 256}"', b"x"), MalformedRequest, "has over 255 characters"),
        (b"--line\r\n\r\nx\r\n--line--", MalformedRequest, "a part of the form has no name"),
        (b"--line\r\n" + b"A" * 10_000, MalformedRequest, "not a multipart form"),
        (b"--line\r\n" + b"A: b\r\n" * 1000, MalformedRequest, "not a multipart form"),
        (b"--other\r\n", MalformedRequest, "none of its lines is the boundary"),
        (b"x--line\r\n" + part('name="files"', b"x")[8:], MalformedRequest, "none of its lines"),
        (b"", MalformedRequest, "ends before"),
        (part("name=\"files\"; filename*=utf-8''%FF", b"x"), MalformedRequest, r"filename\* of a part"),
    ],
)
def test_a_form_over_a_limit_or_with_invalid_parts_is_refused(
    body: bytes, kind: type[LeukoError], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        read(body)


def test_a_part_over_its_limit_is_refused_before_the_body_ends() -> None:
    endless = request(iter([part('name="files"', b"x" * 101)]))
    with pytest.raises(TooLarge):
        asyncio.run(read_form(endless, LIMITS))


@pytest.mark.parametrize("value", [b"multipart/form-data", b"multipart/form-data; boundary="])
def test_a_form_without_a_boundary_is_malformed(value: bytes) -> None:
    with pytest.raises(MalformedRequest, match="boundary"):
        read(BODY, content_type=value)


def test_an_overlong_boundary_is_malformed() -> None:
    with pytest.raises(MalformedRequest):
        read(BODY, content_type=FORM + b"e" * 300)


def test_another_media_type_is_not_read_as_a_form() -> None:
    with pytest.raises(UnsupportedFormat):
        read(BODY, content_type=b"application/json")


def test_file_names_that_are_not_utf_8_are_read_as_latin_1() -> None:
    body = b'--line\r\nContent-Disposition: form-data; name="files"; filename="\xe4.png"\r\n\r\nx\r\n--line--'
    assert read(body)["files"] == [Part("ä.png", b"x")]


PREAMBLES = [
    b"This is a multi-part message in MIME format.\r\n",
    b"\r\n",
    b"\n",
    b"- a list\r\n-- of --line\r\n--lines\r\n--line-\r\n --line\r\n",
    b"x" * 1000 + b"\r\n",
]


@pytest.mark.parametrize("preamble", PREAMBLES)
@pytest.mark.parametrize("epilogue", [b"", b"\r\n", b"\r\nThe end\r\n" + BODY])
def test_text_before_and_after_the_parts_is_dropped(preamble: bytes, epilogue: bytes) -> None:
    body = preamble + BODY.removesuffix(b"\r\n") + epilogue
    whole = read(BODY)
    assert read(body) == whole
    assert read(*(bytes([byte]) for byte in body)) == whole
    for at in range(len(preamble) + 20):
        assert read(body[:at], body[at:]) == whole


@pytest.mark.parametrize("encoding", ["binary", "8bit", "7BIT", "base64", "Quoted-Printable"])
def test_a_part_in_another_encoding_is_refused_in_words(encoding: str) -> None:
    body = part(f'name="files"\r\nContent-Transfer-Encoding: {encoding}', b"eA==") + b"--line--"
    if encoding in ("base64", "Quoted-Printable"):
        with pytest.raises(MalformedRequest, match="has a Content-Transfer-Encoding; send its bytes"):
            read(body)
    else:
        assert read(body)["files"] == [Part(None, b"eA==")]


def test_blanks_may_follow_every_boundary() -> None:
    assert read(BODY.replace(b"--line\r\n", b"--line \t\r\n").replace(b"--lin \t", b"--lin")) == read(BODY)
    assert read(b"text\r\n--line--")["files"] == []


def test_a_form_of_one_image_waits_for_no_turn_and_a_long_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(parse: Callable[[], object]) -> float:
        parse()
        return uploads.AT_ONCE_S / 3  # on a busy machine any slice may take longer

    monkeypatch.setattr(uploads, "timed", timed)
    image = part('name="files"; filename="cell.jpg"', bytes(10_000)) + b"--line--\r\n"
    many = part('name="files"', b"") * 2_000 + b"--line--\r\n"
    limits = {"files": Limit(2_000, 20_000)}

    async def form(body: bytes, seconds: float) -> Form:
        sent = request([body])
        sent.app.state.turns._taken = True  # by somebody who never gives it back
        async with asyncio.timeout(seconds):
            return await read_form(sent, limits)

    assert len(asyncio.run(form(image, 10))["files"]) == 1
    with pytest.raises(TimeoutError):
        asyncio.run(form(many, 0.2))


def test_a_bare_image_is_returned_as_the_only_part() -> None:
    image = asyncio.run(read_images(request([b"abc", b"def"], b"Image/PNG; x=y"), Limit(2, 6)))
    assert image == Upload([Part(None, b"abcdef")], {})


def test_a_bare_image_over_the_limit_is_refused_while_it_arrives() -> None:
    with pytest.raises(TooLarge):
        asyncio.run(read_body(request([b"abcd", b"efgh"]), 6))


@pytest.mark.parametrize("value", [b"", b"text/plain", b"application/octet-stream", b"imagery/png"])
def test_other_bodies_are_not_images(value: bytes) -> None:
    with pytest.raises(UnsupportedFormat):
        asyncio.run(read_images(request([b"abc"], value), Limit(2, 6)))


def test_a_form_without_images_is_unusable() -> None:
    with pytest.raises(Unusable, match="no part named files"):
        asyncio.run(read_images(request([b"--line--\r\n"]), Limit(2, 6)))


def test_nothing_is_written_to_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was opened")

    for name in ("SpooledTemporaryFile", "TemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    data = b"x" * 5 * 2**20
    limits = {"files": Limit(1, len(data))}
    body = part('name="files"; filename="a.png"', data) + b"--line--"
    form = asyncio.run(read_form(request([body]), limits))
    assert form["files"][0].data == data


def test_the_bytes_of_parts_are_dropped_afterwards_also_after_an_error() -> None:
    parts = [Part("a.png", bytes(MOST_FREED + 1)), Part(None, b"b")]

    async def use() -> None:
        async with dropping(parts):
            assert parts[1].data == b"b"
            raise TooLarge("too many cells")

    with pytest.raises(TooLarge):
        asyncio.run(use())
    assert parts == [Part("a.png", b""), Part(None, b"")]
