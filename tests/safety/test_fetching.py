"""Scenario 54: where the server of a bundle can lead the service, and what is said of the address."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.certificates import Certificate
from tests.running import REAL, serving

SECRET = "geheim"
PIN = "#sha256=" + "0" * 64


class Redirecting(BaseHTTPRequestHandler):
    """Redirect to `target`, and note the paths that were asked for."""

    target: str
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(302)
        self.send_header("Location", self.target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server:
    def __init__(self, certificate: Certificate | None) -> None:
        self.handler: type[Redirecting] = type("This", (Redirecting,), {"target": "", "asked": []})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.path, certificate.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def named(certificate: Certificate) -> Iterator[Server]:
    """The server that the operator named, with TLS."""
    server = Server(certificate)
    yield server
    server.close()


@pytest.fixture
def plain() -> Iterator[Server]:
    """A server without TLS, which must not be asked."""
    server = Server(None)
    yield server
    server.close()


def start(server: Server, certificate: Certificate, cache: Path, query: str = "") -> str:
    """Start a service whose bundle is at the server; return its log. It cannot start."""
    address = f"https://localhost:{server.port}/bundle{query}{PIN}"
    environ = {
        "SSL_CERT_FILE": str(certificate.path),
        "LEUKO_BUNDLE": address,
        "LEUKO_CACHE": str(cache),
        "LEUKO_LOG_LEVEL": "debug",
    }
    with serving(REAL, environ=environ) as process:
        log = process.communicate()[1]
        assert process.returncode == 1
        return log


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_54_a_redirect_to_another_scheme_is_not_followed(
    named: Server, plain: Server, certificate: Certificate, tmp_path: Path, scheme: str
) -> None:
    named.handler.target = f"{scheme}://localhost:{plain.port}/config.json?token={SECRET}"
    log = start(named, certificate, tmp_path)
    assert plain.handler.asked == []
    assert "cannot be fetched" in log
    assert SECRET not in log


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "[::ffff:169.254.169.254]", "[fe80::1]", "10.0.0.1", "[fd00::1]", "192.168.0.1"],
)
def test_54_a_redirect_to_an_address_in_another_zone_is_not_followed(
    named: Server, certificate: Certificate, tmp_path: Path, host: str
) -> None:
    named.handler.target = f"https://{host}/latest/meta-data?token={SECRET}"
    log = start(named, certificate, tmp_path)
    assert "redirected to a private address, see LEUKO_BUNDLE_REDIRECTS" in log
    assert SECRET not in log


def test_54_a_redirect_within_the_network_of_the_named_server_is_followed(
    named: Server, certificate: Certificate, tmp_path: Path
) -> None:
    other = Server(certificate)
    other.handler.target = f"http://localhost/{SECRET}"
    named.handler.target = f"https://localhost:{other.port}/config.json"
    try:
        log = start(named, certificate, tmp_path)
    finally:
        other.close()
    assert other.handler.asked == ["/config.json"]
    assert "redirected to an address that is not plain https" in log


def test_54_a_secret_in_the_address_is_in_no_log_line(
    named: Server, certificate: Certificate, tmp_path: Path
) -> None:
    named.handler.target = f"https://me:{SECRET}@localhost:{named.port}/config.json?token={SECRET}"
    log = start(named, certificate, tmp_path, f"?token={SECRET}")
    assert "cannot be fetched" in log
    assert SECRET not in log
