from __future__ import annotations

import io
import socket
from http.client import HTTPMessage
from pathlib import Path
from urllib.request import Request

import pytest

from app.errors import BundleError
from app.registry.fetch import locate
from app.registry.https import PRIVATE, _Guard, _Redirects, without_secrets, without_values, zone
from app.settings import Settings


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", "public"),
        ("2606:2800:220:1::1", "public"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("224.0.0.1", "private"),
        ("fd00::1", "private"),
        ("fec0::1", "private"),
        ("127.0.0.1", "loopback"),
        ("127.9.9.9", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::", "loopback"),
        ("::1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.0.0.1", "private"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::127.0.0.1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("2002:7f00:1::", "loopback"),
        ("2002:a9fe:a9fe::", "link-local"),
        ("2001:0:102:304::80ff:fffe", "loopback"),
    ],
)
def test_an_address_belongs_to_one_zone_in_whatever_form(address: str, expected: str) -> None:
    assert zone(address) == expected


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1"])
def test_a_redirect_from_a_public_server_does_not_connect_to_a_private_address(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for anywhere in (False, True):
            guard = _Guard(anywhere)
            guard.redirected = True
            if not anywhere:
                with pytest.raises(PermissionError, match=PRIVATE):
                    guard.connect((host, port), 5)
            else:
                guard.connect((host, port), 5).close()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("http://example.org/a", "not plain https"),
        ("ftp://example.org/a", "not plain https"),
        ("file:///a", "not plain https"),
        ("https://me:geheim@example.org/a", "not plain https"),
        ("https://10.0.0.1/a", PRIVATE),
    ],
)
def test_a_redirect_is_refused_before_anything_is_asked(target: str, said: str) -> None:
    redirects, asked = _Redirects(_Guard(anywhere=False)), Request("https://example.org/a")
    with pytest.raises(PermissionError, match=said):
        redirects.redirect_request(asked, io.BytesIO(), 302, "Found", HTTPMessage(), target)


def test_a_name_is_checked_when_it_is_connected_to_after_a_redirect() -> None:
    guard = _Guard(anywhere=False)
    asked = Request("https://example.org/a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = f"https://localhost:{server.getsockname()[1]}/a"
        _Redirects(guard).redirect_request(asked, io.BytesIO(), 302, "Found", HTTPMessage(), target)
        with pytest.raises(PermissionError, match=PRIVATE):
            guard.connect(("localhost", server.getsockname()[1]), 5)


def test_a_redirect_within_the_zone_of_the_named_server_connects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        guard = _Guard(anywhere=False)
        for guard.redirected in (False, True):
            guard.connect(("localhost", server.getsockname()[1]), 5).close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://a:8443/b@c#sha256=00 is late", "https://a:8443/b@c#sha256=00 is late"),
        ("https://me:geheim@a/b", "https://a/b"),
        ("https://geheim@a/b", "https://a/b"),
        ("https://me:ge/heim@a/b", "https://a/b"),
        ("'https://a/b?token=geheim' is late", "'https://a/b?…' is late"),
        ("https://a/b#token=geheim", "https://a/b#…"),
        ("hf://lab/wbc@v2", "hf://lab/wbc@v2"),
        ("hf://me:geheim@lab/wbc", "hf://lab/wbc"),
        ("Illegal header value b'Bearer hf_geheim'", "Illegal header value b'Bearer …'"),
        ("Illegal header value b'Bearer geheim'", "Illegal header value b'Bearer …'"),
        ("the token hf_geheim is invalid", "the token … is invalid"),
    ],
)
def test_a_text_is_shown_without_secrets(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    ("address", "text", "shown"),
    [
        ("https://geheim@a/b", "geheim?", "…?"),
        ("https://me:geheim@a/b", "geheim?", "…?"),
        ("https://a/b?geheim", "geheim?", "…?"),
        ("https://a/b?v=2&w=3#c", "v=2&w=3 c", "… c"),
        ("https://a/b?token=ge=heim", "ge=heim or heim", "… or …"),
        ("https://a/b?v=2;token=geheim", "Geheim?", "…?"),
        ("https://a/b?token=geheim%2F1+2", "geheim/1+2 or geheim/1 2", "… or …"),
        ("https://a/b?v=2", "HTTP Error 422", "HTTP Error 422"),
    ],
)
def test_what_a_server_repeats_of_an_address_is_not_shown(address: str, text: str, shown: str) -> None:
    assert without_values(text, address) == shown


@pytest.mark.parametrize("user", ["geheim", "me:geheim"])
def test_an_address_with_a_user_is_refused_in_words(tmp_path: Path, user: str) -> None:
    address = f"https://{user}@localhost/b#sha256=" + "0" * 64
    with pytest.raises(BundleError, match="user names and passwords in it are not supported"):
        locate(Settings(bundle=address, cache=str(tmp_path)))


@pytest.mark.parametrize(
    "address",
    [
        "https://me:geheim@localhost/b",
        "https://geheim@localhost/b",
        "https://me:ge/heim@localhost/b",
        "https://me:geheim@localhost/b c",
        "https://me:geheim\u2100@localhost/b",
        "https://me:geheim@[::1/b",
        "https://127.0.0.1:1/b?token=geheim",
        "https://127.0.0.1:1/b?token=geheim x",
        "http://me:geheim@localhost/b",
        "hf://me:geheim@lab/wbc",
        "ftp://me:geheim@localhost/b",
    ],
)
@pytest.mark.parametrize("pin", ["", "#sha256=" + "0" * 64, "#token=geheim"])
def test_no_error_repeats_a_secret(tmp_path: Path, address: str, pin: str) -> None:
    with pytest.raises(BundleError) as raised:
        locate(Settings(bundle=address + pin, cache=str(tmp_path)))
    assert "heim" not in raised.value.detail
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
