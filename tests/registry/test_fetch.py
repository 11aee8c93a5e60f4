"""Fetching bundles: from a real https server with a self-signed certificate, and from a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread, Timer

import pytest

from app.engine.bundle import FILES
from app.errors import BundleError
from app.registry.fetch import BOUNDS, SHIPPED, locate
from app.registry.https import Bounds
from app.settings import Settings
from app.units import MIB
from tests.certificates import Certificate

REVISION = "c0ffee" + "0" * 34


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a folder of files with correct hashes; their content is arbitrary."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(name.encode())
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in FILES}
    (folder / "config.json").write_text(json.dumps({"files": hashes}))
    (folder / "README.md").write_text("a model card, not needed at run time")
    return folder


def settings(bundle: str, tmp_path: Path) -> Settings:
    return Settings(bundle=bundle, cache=str(tmp_path / "cache"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def tls(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Return the TLS context of a server whose certificate this process trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.path, certificate.key)
    return context


@pytest.fixture
def https(bundle: Path, tls: ssl.SSLContext) -> Iterator[str]:
    """Serve the bundle; return its address."""
    with serving(type("Quiet", (Quiet,), {"root": bundle}), tls) as port:
        yield f"https://localhost:{port}"


class Quiet(SimpleHTTPRequestHandler):
    root: Path

    def translate_path(self, path: str) -> str:
        return str(self.root / path.lstrip("/"))

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert locate(settings("models/mine", tmp_path)) == Path("models/mine")


@pytest.mark.parametrize(
    "address",
    [
        "http://a/b#sha256=" + "0" * 64,
        "https://a/b",
        "https://a/b#sha256=12",
        "s3://a/b",
        "hf://name",
        "hf://a/b@",
    ],
)
def test_an_address_that_pins_nothing_or_is_of_no_known_kind_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(BundleError, match="sha256"):
        locate(settings(address, tmp_path))


def test_a_pinned_bundle_is_fetched_once_and_whole(https: str, bundle: Path, tmp_path: Path) -> None:
    pin = sha256(bundle / "config.json")
    asked = settings(f"{https}/#sha256={pin}", tmp_path)
    folder = locate(asked)
    assert folder == tmp_path / "cache" / pin
    assert {path.name for path in folder.iterdir()} == {"config.json", *FILES}
    for name in FILES:
        assert (folder / name).read_bytes() == (bundle / name).read_bytes()
    shutil.rmtree(bundle)
    assert locate(asked) == folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [pin]


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense"])
def test_a_bundle_on_this_machine_is_fetched_directly(
    name: str, proxy: str, https: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, proxy)
    pinned = f"{https}#sha256={sha256(bundle / 'config.json')}"
    assert (locate(settings(pinned, tmp_path)) / "config.json").is_file()


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("http://hidden:secret@127.0.0.1:9", "through the proxy http://127.0.0.1:9: .*refused"),
        ("127.0.0.1:9", "through the proxy http://127.0.0.1:9: .*refused"),
        ("socks5://hidden:secret@127.0.0.1:9", "the proxy socks5://127.0.0.1:9 cannot be used: only"),
        ("https://127.0.0.1:9/", "the proxy https://127.0.0.1:9 cannot be used: only"),
    ],
)
def test_a_proxy_that_fails_is_named(
    name: str, proxy: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, proxy)
    with pytest.raises(BundleError, match=said) as caught:
        locate(settings(f"https://leuko.example/m#sha256={'0' * 64}", tmp_path))
    assert "secret" not in caught.value.detail
    assert "hidden" not in caught.value.detail


def test_a_proxy_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_error(407)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Refusing) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        with pytest.raises(BundleError, match=rf"through the proxy http://127.0.0.1:{port}: .*407"):
            locate(settings(f"https://leuko.example/m#sha256={'0' * 64}", tmp_path))


@pytest.mark.parametrize("name", ["config.json", FILES[0]])
def test_what_the_pin_does_not_stand_for_is_refused_and_not_kept(
    https: str, bundle: Path, tmp_path: Path, name: str
) -> None:
    asked = settings(f"{https}#sha256={sha256(bundle / 'config.json')}", tmp_path)
    (bundle / name).write_bytes(b"{}")
    with pytest.raises(BundleError, match=f"{name} has sha256"):
        locate(asked)
    assert not [*(tmp_path / "cache").iterdir()]


def test_a_bundle_changed_in_the_cache_is_noticed(https: str, bundle: Path, tmp_path: Path) -> None:
    asked = settings(f"{https}#sha256={sha256(bundle / 'config.json')}", tmp_path)
    (locate(asked) / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="was changed"):
        locate(asked)


def test_a_name_that_leads_out_of_the_bundle_is_refused(https: str, bundle: Path, tmp_path: Path) -> None:
    (bundle / "config.json").write_text(json.dumps({"files": {"../../key.pem": "0" * 64}}))
    with pytest.raises(BundleError, match="outside the bundle"):
        locate(settings(f"{https}#sha256={sha256(bundle / 'config.json')}", tmp_path))


def test_a_file_that_is_not_there_is_named(https: str, bundle: Path, tmp_path: Path) -> None:
    (bundle / FILES[1]).unlink()
    with pytest.raises(BundleError, match="cannot be fetched: HTTP Error 404"):
        locate(settings(f"{https}#sha256={sha256(bundle / 'config.json')}", tmp_path))


def test_a_server_that_nobody_vouches_for_is_refused(
    https: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(BundleError, match="CERTIFICATE_VERIFY_FAILED"):
        locate(settings(f"{https}#sha256={sha256(bundle / 'config.json')}", tmp_path))


@pytest.mark.parametrize(
    "address",
    ["https://a:b/c", "https://a b/c", "https://a/b c", "https://a/bü", "https://[::1", "https://a:99999/b"],
)
def test_an_address_that_cannot_be_one_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(BundleError, match="cannot be fetched"):
        locate(settings(f"{address}#sha256=" + "0" * 64, tmp_path))
    assert not [*tmp_path.glob("cache/*")]


RESET = b"a reset"


class Said(BaseHTTPRequestHandler):
    """Send the bytes `said` to any request and close; for RESET, reset the connection."""

    said: bytes

    def do_GET(self) -> None:
        self.close_connection = True
        if self.said == RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        else:
            self.wfile.write(self.said)

    def log_message(self, format: str, *args: object) -> None:
        pass


def saying(said: bytes, tls: ssl.SSLContext | None = None) -> AbstractContextManager[int]:
    return serving(type("ThisSaid", (Said,), {"said": said}), tls)


def answering(body: bytes, head: bytes = b"") -> bytes:
    head += b"Connection: close\r\nContent-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "closed connection"),
        (b"\x15\x03 garbled\r\n\r\n", "garbled"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "ended 6 bytes too early"),
        (CHUNKED + b"9\r\nabc", "IncompleteRead"),
        (CHUNKED + b"garbled\r\n", "IncompleteRead"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://[::1\r\n\r\n", "Invalid IPv6"),
    ],
)
def test_an_answer_that_breaks_off_or_is_none_is_refused(
    tls: ssl.SSLContext, tmp_path: Path, said: bytes, reason: str
) -> None:
    with saying(said, tls) as port, pytest.raises(BundleError, match=reason):
        locate(settings(f"https://localhost:{port}#sha256=" + "0" * 64, tmp_path))
    assert not [*tmp_path.glob("cache/*")]


def test_a_file_that_is_announced_to_be_too_large_is_not_read(tls: ssl.SSLContext, tmp_path: Path) -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 1073741825\r\n\r\n"
    with saying(said, tls) as port, pytest.raises(BundleError, match="is over 1073741824 bytes"):
        locate(settings(f"https://localhost:{port}#sha256=" + "0" * 64, tmp_path))


def test_a_file_that_turns_out_to_be_too_large_is_refused(tls: ssl.SSLContext, tmp_path: Path) -> None:
    said = CHUNKED + b"4\r\nabcd\r\n4\r\nefgh\r\n0\r\n\r\n"
    with saying(said, tls) as port:
        asked = settings(f"https://localhost:{port}#sha256=" + "0" * 64, tmp_path)
        with pytest.raises(BundleError, match="is over 7 bytes"):
            locate(asked, Bounds(most_bytes=7))
        with pytest.raises(BundleError, match="has sha256"):
            locate(asked, Bounds(most_bytes=8))


class Dripping(BaseHTTPRequestHandler):
    """Send `head`, and then a byte every 20 ms, for longer than the test runs."""

    head: bytes
    left: Event

    def do_GET(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.write(self.head)
            while not self.left.wait(0.02):
                self.wfile.write(b"1")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Header: ",
        b"HTTP/1.1 100 Continue\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 500000\r\n\r\n",
        CHUNKED,
        CHUNKED + b"4\r\nabcd\r\n4; extension=",
        CHUNKED + b"0\r\nX-Trailer: ",
    ],
)
def test_a_server_that_drips_is_not_waited_for(tls: ssl.SSLContext, tmp_path: Path, head: bytes) -> None:
    left = Event()
    giving_up = Timer(20, left.set)  # else it would drip until the line is too long
    giving_up.start()
    with serving(type("ThisDripping", (Dripping,), {"head": head, "left": left}), tls) as port:
        asked = settings(f"https://localhost:{port}#sha256=" + "0" * 64, tmp_path)
        with pytest.raises(BundleError, match=r"takes too long to download|infinite loop"):
            locate(asked, Bounds(seconds=0.5))
        assert not left.is_set()
        left.set()
    giving_up.cancel()
    assert BOUNDS.seconds < 3600


def test_a_handshake_that_drips_is_not_waited_for(tmp_path: Path) -> None:
    left = Event()

    def drip(server: socket.socket) -> None:
        connection = server.accept()[0]
        with connection, suppress(OSError):
            connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB follows
            while not left.wait(0.02):
                connection.sendall(b"\0")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=drip, args=(server,))
        thread.start()
        giving_up = Timer(20, left.set)
        giving_up.start()
        asked = settings(f"https://localhost:{server.getsockname()[1]}#sha256=" + "0" * 64, tmp_path)
        with pytest.raises(BundleError, match="takes too long to download"):
            locate(asked, Bounds(seconds=0.5))
        assert not left.is_set()
        left.set()
        giving_up.cancel()
        thread.join()


class Redirecting(BaseHTTPRequestHandler):
    """Redirect to an address that is refused, with a body that is far longer than what sockets hold."""

    sent: list[int]

    def do_GET(self) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 268435456\r\n\r\n")
        with suppress(OSError):
            for _ in range(256):
                self.wfile.write(bytes(MIB))
                self.sent.append(MIB)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_the_body_of_a_redirect_is_not_read(tls: ssl.SSLContext, tmp_path: Path) -> None:
    sent: list[int] = []
    server = serving(type("ThisRedirecting", (Redirecting,), {"sent": sent}), tls)
    with server as port, pytest.raises(BundleError, match="infinite loop"):
        locate(settings(f"https://localhost:{port}#sha256=" + "0" * 64, tmp_path))
    assert sum(sent) < 128 * MIB


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 403 geheim/1+2 is wrong\r\n\r\n",
        b"HTTP/1.1 404 geheim%2F1%2b2 is wrong\r\n\r\n",
        b"geheim/1+2 is wrong\r\n\r\n",
        b"GEHEIM%2F1%2B2 is wrong\r\n\r\n",
        b"HTTP/9.geheim/1+2 200 OK\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://localhost:x/geheim/1+2\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://localhost:1/ /geheim/1+2\r\n\r\n",
    ],
)
def test_a_secret_that_the_server_repeats_is_not_shown(
    tls: ssl.SSLContext, tmp_path: Path, said: bytes
) -> None:
    with saying(said, tls) as port, pytest.raises(BundleError, match="cannot be fetched") as raised:
        locate(settings(f"https://localhost:{port}?token=geheim%2F1%2B2&v=2#sha256=" + "0" * 64, tmp_path))
    assert "geheim" not in raised.value.detail.lower()


def test_what_was_begun_by_processes_that_were_killed_is_removed_in_time(
    https: str, bundle: Path, tmp_path: Path
) -> None:
    pin, cache = sha256(bundle / "config.json"), tmp_path / "cache"
    for name, hours in (("fetching-old", 25), ("fetching-young", 23), ("other", 25)):
        (cache / name / "bundle").mkdir(parents=True)
        begun = time.time() - hours * 3600
        os.utime(cache / name, (begun, begun))
    locate(settings(f"{https}#sha256={pin}", tmp_path))
    assert {path.name for path in cache.iterdir()} == {"fetching-young", "other", pin}


class Hub(BaseHTTPRequestHandler):
    """The part of https://huggingface.co/docs/hub/api that huggingface_hub uses."""

    root: Path

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in ("/api/models/lab/wbc/revision/v2", f"/api/models/lab/wbc/revision/{REVISION}"):
            self._json({"id": "lab/wbc", "sha": REVISION, "siblings": self._siblings()})
        elif path == f"/api/models/lab/wbc/tree/{REVISION}":
            sizes = self._sizes()
            self._json(
                [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes]
            )
        elif path.startswith(f"/lab/wbc/resolve/{REVISION}/"):
            self._file(self.root / path.rpartition("/")[2])
        else:
            self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _siblings(self) -> list[dict[str, str]]:
        return [{"rfilename": name} for name, _ in self._sizes()]

    def _sizes(self) -> list[tuple[str, int]]:
        return [(path.name, path.stat().st_size) for path in sorted(self.root.iterdir())]

    def _json(self, document: object) -> None:
        self._answer(json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _file(self, path: Path) -> None:
        self._answer(path.read_bytes(), {"ETag": f'"{sha256(path)}"', "X-Repo-Commit": REVISION})

    def _answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


LOCATE = """
import sys
from app.registry.fetch import locate
from app.settings import Settings
for _ in range(int(sys.argv[3])):
    print(locate(Settings(bundle=sys.argv[1], cache=sys.argv[2])))
"""


Ask = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Locate a bundle in a separate process: the Hub's library reads HF_ENDPOINT when it is imported."""
    pytest.importorskip("huggingface_hub")

    def run(
        endpoint: str, bundle: str = "hf://lab/wbc@v2", times: int = 1
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LOCATE, bundle, str(tmp_path / "cache"), str(times)]
        environ = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "PATH": ""}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    return run


def test_a_bundle_comes_from_the_hub_by_its_library(ask: Ask, bundle: Path) -> None:
    with serving(type("ThisHub", (Hub,), {"root": bundle})) as port:
        done = ask(f"http://127.0.0.1:{port}")
        assert (done.returncode, done.stderr) == (0, "")
        folder = Path(done.stdout.strip())
        assert {path.name for path in folder.iterdir()} == {"config.json", *FILES}
        assert (folder / FILES[0]).read_bytes() == (bundle / FILES[0]).read_bytes()
        other = ask(f"http://127.0.0.1:{port}", "hf://lab/none@v2")
        assert "BundleError: hf://lab/none cannot be fetched" in other.stderr
    unplugged = ask(f"http://127.0.0.1:{port}")
    assert unplugged.stdout == done.stdout


NO_HUB = [
    RESET,
    b"",
    b"\x15\x03 garbled\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{",
    answering(b"not packed", b"Content-Encoding: gzip\r\n"),
    answering(b"<html>please log in</html>"),
    answering(b"{}"),
    answering(b'{"id": "lab/wbc"}'),
    answering(b"[]"),
    answering(b"[" * 100_000),
]


class Turns(Said):
    """Send each of `turns` once."""

    turns: list[bytes]

    def do_GET(self) -> None:
        self.said = self.turns.pop(0)
        super().do_GET()


def test_where_the_hub_resets_or_garbles_what_was_fetched_before_is_used(ask: Ask, bundle: Path) -> None:
    with serving(type("ThisHub", (Hub,), {"root": bundle})) as port:
        fetched = ask(f"http://127.0.0.1:{port}").stdout
    turns = [*NO_HUB]
    with serving(type("TheseTurns", (Turns,), {"turns": turns})) as port:
        done = ask(f"http://127.0.0.1:{port}", times=len(NO_HUB))
    assert (done.stdout, turns) == (fetched * len(NO_HUB), []), done.stderr
    assert "ReadError" in done.stderr  # from the reset
    warning = "hf://lab/wbc: no usable response from the Hub, using the cached copy: "
    assert [line.startswith(warning) for line in done.stderr.splitlines()] == [True] * len(NO_HUB)


def test_where_the_hub_garbles_and_nothing_was_fetched_the_start_is_refused(ask: Ask) -> None:
    with saying(NO_HUB[2]) as port:
        done = ask(f"http://127.0.0.1:{port}")
    assert "app.errors.BundleError: hf://lab/wbc cannot be fetched: RemoteProtocolError" in done.stderr


@pytest.mark.parametrize("endpoint", ["http://[::1", "nonsense"])
def test_an_address_of_the_hub_that_cannot_be_one_is_refused(ask: Ask, endpoint: str) -> None:
    assert "app.errors.BundleError: hf://lab/wbc cannot be fetched" in ask(endpoint).stderr


def test_where_there_is_no_home_another_folder_is_asked_for() -> None:
    asked = Settings(bundle="https://a/b#sha256=" + "0" * 64, cache="~nobody-of-this-name/leuko")
    with pytest.raises(BundleError, match="there is no home folder"):
        locate(asked)
    assert locate(Settings(bundle="models/mine", cache=asked.cache)) == Path("models/mine")


def test_the_shipped_bundle_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (locate(Settings()) / "config.json").is_file()


def test_a_bundle_of_that_name_in_the_working_folder_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(SHIPPED).mkdir(parents=True)
    assert locate(Settings()) == Path(SHIPPED)


def test_an_installed_wheel_has_the_bundle_in_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.registry.fetch.PACKAGE", tmp_path / "site-packages/app")
    with pytest.raises(BundleError, match="this installation has no bundle: set LEUKO_BUNDLE"):
        locate(Settings())
    shipped = tmp_path / "site-packages/app/shipped/wbc-resnet18"
    shipped.mkdir(parents=True)
    (shipped / "config.json").touch()
    assert locate(Settings()) == shipped


def test_another_missing_folder_is_named_as_it_was_given(tmp_path: Path) -> None:
    assert locate(Settings(bundle=str(tmp_path / "none"))) == tmp_path / "none"
