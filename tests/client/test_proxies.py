"""Proxies of the environment: this machine is asked directly, and a proxy that fails is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

import leuko_client
from app.cli.main import main
from leuko_client import Client, Retries
from leuko_client.proxies import is_loopback, proxy_of, shown
from tests.client.test_client import KINDS
from tests.fake_classifier import png
from tests.fakes import GREYS
from tests.running import Running

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
DEAD = "http://hidden:secret@127.0.0.1:9"
SHOWN = "through the proxy http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextmanager
def proxy(status: int, body: bytes) -> Iterator[str]:
    """A proxy that answers every request itself."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_CONNECT = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("name", [*VARIABLES[:3], "http_proxy", "all_proxy"])
@pytest.mark.parametrize("address", [DEAD, "socks5://127.0.0.1:9", "garbage://x", "://"])
def test_a_service_on_this_machine_is_asked_directly(
    name: str, address: str, service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, address)
    for host in ("127.0.0.1", "localhost"):
        with Client(f"http://{host}:{service.port}") as client:
            assert client.ready()
    (tmp_path / "cell.png").write_bytes(png(GREYS[0]))
    assert main(["predict", "--url", service.address, str(tmp_path / "cell.png")]) == 0


@KINDS
@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_that_does_not_answer_is_named(kind: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, DEAD)
    with kind("http://leuko.example", retries=Retries(1)) as client:
        with pytest.raises(leuko_client.TransportError, match=f"http://leuko.example {SHOWN}: ") as caught:
            client.model()
        assert not client.ready()
    assert "secret" not in str(caught.value)


@KINDS
@pytest.mark.parametrize(("status", "scheme"), [(407, "http"), (502, "http"), (200, "http"), (407, "https")])
def test_a_proxy_that_answers_instead_is_named(
    kind: Any, status: int, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(status, b"<html>") as address:
        monkeypatch.setenv(f"{scheme}_proxy", address)
        with (
            kind(f"{scheme}://leuko.example", retries=Retries(1)) as client,
            pytest.raises(leuko_client.LeukoError, match=f"through the proxy {address}"),
        ):
            client.model()


@pytest.mark.parametrize(
    "address", ["ftp://hidden:secret@proxy.example", "http://", "http://hidden:se/cret@x:y"]
)
def test_a_proxy_that_cannot_be_used_is_refused_in_a_line(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALL_PROXY", address)
    with pytest.raises(ValueError, match="of the environment cannot be used"):
        Client("http://leuko.example")
    (tmp_path / "cell.png").write_bytes(png(GREYS[0]))
    assert main(["predict", "--url", "http://leuko.example", str(tmp_path / "cell.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "hidden" not in said
    assert "cret" not in said


def test_a_failing_proxy_is_one_line_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cell.png").write_bytes(png(GREYS[0]))
    with proxy(502, b"") as address:
        monkeypatch.setenv("HTTP_PROXY", address)
        assert main(["predict", "--url", "http://leuko.example", str(tmp_path / "cell.png")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("leuko: status 502 without a problem document")
    assert f"through the proxy {address}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "excluded", "expected"),
    [
        ("http://leuko.example", "", "http://plain:1"),
        ("https://leuko.example", "", "http://any:2"),
        ("http://leuko.example", "*", None),
        ("http://leuko.example", "leuko.example", None),
        ("http://leuko.example:8000", "leuko.example:8000", None),
        ("http://leuko.example:8000", "leuko.example:80", "http://plain:1"),
        ("http://a.leuko.example", "other, .leuko.example", None),
        ("http://10.1.2.3", "10.0.0.0/8", None),
        ("http://11.1.2.3", "10.0.0.0/8", "http://plain:1"),
        ("http://[fd00::1]:8000", "fd00::/8", None),
        ("http://[fd01::1]", "fd00::/16", "http://plain:1"),
        ("http://[::1]:8000", "", None),
        ("http://127.8.8.8", "", None),
    ],
)
def test_the_environment_says_which_proxy_leads_to_a_host(
    url: str, excluded: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "plain:1")
    monkeypatch.setenv("ALL_PROXY", "http://any:2")
    monkeypatch.setenv("NO_PROXY", excluded)
    found = proxy_of(httpx.URL(url))
    assert (None if found is None else shown(found)) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(
            (host, True)
            for host in ("localhost", "LOCALHOST.", "leuko.localhost", "127.0.0.2", "::1", "[::1]")
        ),
        *((host, True) for host in ("::ffff:127.0.0.1", "0.0.0.0", "::")),
        *((host, False) for host in ("localhost.example", "10.0.0.1", "::ffff:10.0.0.1", "127.example", "")),
    ],
)
def test_this_machine_has_many_names(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
