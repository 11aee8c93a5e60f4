"""File names of forms, as clients send them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.disposition import MAX_OPTIONS, parse_disposition
from app.errors import MalformedRequest


def filename(parameters: str | bytes) -> str | None:
    raw = parameters if isinstance(parameters, bytes) else parameters.encode()
    return parse_disposition(b'form-data; name="files"; ' + raw).filename


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        # WHATWG: browsers, OkHttp, urllib3 2, httpx
        ('filename="a%22b.png"', 'a"b.png'),
        ('filename="a%0D%0Ab.png"', "a\r\nb.png"),
        ('filename="100%20.png"', "100%20.png"),
        ('filename="50%.png"', "50%.png"),
        ('filename="%C3%A4.png"', "%C3%A4.png"),
        ('filename="Zelle \u00e4.png"', "Zelle \u00e4.png"),
        # curl
        (r'filename="a\"b\\c.png"', r'a"b\c.png'),
        # .NET
        ("filename=cell.png; filename*=utf-8''cell.png", "cell.png"),
        ('filename="=?utf-8?B?w6QucG5n?="; filename*=utf-8%C3%A4.png', "\u00e4.png"),
        ('filename="=?utf-8?B?w6QucG5n?="', "\u00e4.png"),
        # urllib3 1
        ("filename*=utf-8''%C3%A4%22%3B.png", '\u00e4";.png'),
        # RFC 8187
        ("filename*=UTF-8'en'%e2%82%ac%20rates.png; filename=rates.png", "\u20ac rates.png"),
        ("filename=rates.png; FILENAME* = iso-8859-1''%A3.png", "\u00a3.png"),
        ("filename=plain.png; filename*=utf-8''%FF.png", "plain.png"),
        ("filename=plain.png; filename*=utf-8''%G0.png", "plain.png"),
        ("filename=plain.png; filename*=unicode_escape''a.png", "plain.png"),
        ("filename=plain.png; filename*=a.png", "plain.png"),
        ("filename=\"a; filename*=utf-8''b\"", "a; filename*=utf-8''b"),
        # RFC 2231: Python's email, JavaMail
        ("filename*0*=utf-8''%C3%A4; filename*1=\"%20b\"; filename*2*=%C3%B6.png", "\u00e4%20b\u00f6.png"),
        ('filename*1="b.png"; filename*0="a"', "ab.png"),
        ('filename=c.png; filename*0="a"; filename*2="b.png"', "c.png"),
        # RFC 2047
        ('filename="=?ISO-8859-1?Q?Bl=E4tt_1.png?="', "Bl\u00e4tt 1.png"),
        ('filename="=?utf-8?Q?Bl=C3=A4tt?= 1.png"', "Bl\u00e4tt 1.png"),
        ('filename="=?utf-8?B?w6Qg?= =?utf-8?q?w=C3=B6.png?="', "\u00e4 w\u00f6.png"),
        ('filename="=?utf-8?B?YcM=?= =?utf-8?B?pC5wbmc=?="', "a\u00e4.png"),
        ('filename="=?utf-8*de?B?w6QucG5n?="', "\u00e4.png"),
        ('filename="=?gb2312?B?z7iw+y5wbmc=?="', "\u7ec6\u80de.png"),
        ('filename="=?shift_jis?B?jdeWRS5wbmc=?="', "\u7d30\u80de.png"),
        ('filename="=?x-unknown?B?w6QucG5n?="', "=?x-unknown?B?w6QucG5n?="),
        ('filename="=?utf-8?B?w6QucG5?n?="', "=?utf-8?B?w6QucG5?n?="),
        ('filename="=?utf-8?B?/w==?="', "=?utf-8?B?/w==?="),
        ('filename=""', ""),
        ("x=y", None),
    ],
)
def test_a_file_name_is_what_its_sender_means(parameters: str, name: str | None) -> None:
    assert filename(parameters) == name


def test_the_name_of_a_field_is_read_like_a_file_name() -> None:
    assert parse_disposition(b"form-data; name=files").name == "files"
    assert parse_disposition(b"form-data; name*=utf-8''files").name == "files"
    assert parse_disposition(b"form-data").name is None


@pytest.mark.parametrize(
    "parameters", ["filename*=utf-8''%FF", "filename*=a.png", "filename*=idna''a", "filename*1=a.png"]
)
def test_a_file_name_that_only_has_an_unreadable_form_is_malformed(parameters: str) -> None:
    with pytest.raises(MalformedRequest, match=r"filename\* of a part of the form cannot be read"):
        filename(parameters)


def test_a_long_header_is_malformed() -> None:
    with pytest.raises(MalformedRequest, match="may have 2048 bytes"):
        filename("filename=" + "x" * MAX_OPTIONS)


@given(st.binary(max_size=60))
def test_any_header_is_read_or_malformed(data: bytes) -> None:
    for before in (b"", b"filename*=", b"filename*0*=", b'filename="=?utf-8?B?'):
        with suppress(MalformedRequest):
            filename(before + data)
