"""Long texts are cut out of JSON, and base64 is decoded in slices."""

from __future__ import annotations

import base64
import json

import pytest

from app.api import oip
from app.api.long_texts import LONG, OTHER_VALUES, SLICE, cut_out, decode_base64
from app.errors import MalformedRequest, TooLarge

TEXTS = ["a" * LONG, "b" * (LONG + 1), "", "c" * (2 * SLICE), 'with \\ and "', "d" * LONG + '"\\']


def test_what_is_cut_out_belongs_where_its_name_is() -> None:
    body = json.dumps({"data": TEXTS, "more": TEXTS[3]}).encode()
    document, texts = cut_out(body + b"tail", len(body), 8)
    assert len(texts) == 4
    parsed = json.loads(document)
    restored = [bytes(texts[text]).decode() if text in texts else text for text in parsed["data"]]
    assert restored[:5] == TEXTS[:5]
    assert json.loads(f'"{restored[5]}"') == TEXTS[5]
    assert bytes(texts[parsed["more"]]).decode() == TEXTS[3]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"a":"b', MalformedRequest),
        (b'"' + b"\\" * 100 + b'"', MalformedRequest),
        (b'"",' * (OTHER_VALUES + 10), TooLarge),
        (b"1," * (OTHER_VALUES + 10), TooLarge),
        (b" " * 2**20, TooLarge),
        (b'"' + b"1" * 2**20 + b'":' + b"2" * 2**20, TooLarge),
    ],
)
def test_a_body_that_is_no_request_is_refused_before_it_is_parsed(body: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        cut_out(body, len(body), 4)


@pytest.mark.parametrize("size", [0, 1, 2, 3, SLICE, SLICE // 4 * 3, SLICE + 1, 3 * SLICE - 1])
def test_base64_is_decoded_across_slices(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    text = base64.b64encode(data[:size])
    assert decode_base64(text) == data[:size]
    assert decode_base64(text.replace(b"/", b"\\/")) == data[:size]


@pytest.mark.parametrize(
    "text", [b"YQ", b"YQ=", b"Y Q=", b"YQ==YQ==", b"YQ\\n==", b"Y" * (SLICE - 2) + b"==YQ=="]
)
def test_other_texts_are_no_base64(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"padding|base64"):
        decode_base64(text)


def test_a_long_text_can_be_used_once() -> None:
    """Its name could be sent as well, to have one text decoded thousands of times."""
    image = base64.b64encode(bytes(3 * LONG)).decode()
    name = f"{0:.<{LONG + 1}}"
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "data": [image, name]}
    with pytest.raises(MalformedRequest, match="is not base64"):
        oip.parse(json.dumps({"inputs": [tensor]}).encode(), None, most_images=4, most_bytes=10**6)


def test_an_id_that_is_too_long_is_refused_although_it_is_cut_out() -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["YQ=="]}
    body = json.dumps({"id": "x" * (LONG + 1), "inputs": [tensor]}).encode()
    with pytest.raises(MalformedRequest, match="id"):
        oip.parse(body, None, most_images=4, most_bytes=100)
