"""Bundles from elsewhere: a real https server with a certificate of its own, and a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from app.bundles import locate
from app.errors import BundleError
from app.settings import Settings
from app.vision.bundle import FILES

OPENSSL = shutil.which("openssl")
REVISION = "c0ffee" + "0" * 34


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Files with right hashes; what they hold is not looked at here."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(name.encode())
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in FILES}
    (folder / "config.json").write_text(json.dumps({"files": hashes}))
    (folder / "README.md").write_text("a card, which nothing needs at run time")
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
def https(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the bundle on a server whose certificate this process trusts."""
    if OPENSSL is None:
        pytest.skip("openssl is absent here")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        OPENSSL,
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
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
    found = locate(asked)
    assert found == tmp_path / "cache" / pin
    assert {path.name for path in found.iterdir()} == {"config.json", *FILES}
    for name in FILES:
        assert (found / name).read_bytes() == (bundle / name).read_bytes()
    shutil.rmtree(bundle)
    assert locate(asked) == found
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [pin]


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


class Hub(BaseHTTPRequestHandler):
    """As much of https://huggingface.co/docs/hub/api as huggingface_hub asks for."""

    root: Path

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in ("/api/models/lab/wbc/revision/v2", f"/api/models/lab/wbc/revision/{REVISION}"):
            self._json({"id": "lab/wbc", "sha": REVISION, "siblings": self._siblings()})
        elif path == f"/api/models/lab/wbc/tree/{REVISION}":
            self._json(
                [{"type": "file", "path": one, "size": size, "oid": "0" * 40} for one, size in self._sizes()]
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
from app.bundles import locate
from app.settings import Settings
print(locate(Settings(bundle=sys.argv[1], cache=sys.argv[2])))
"""


def test_a_bundle_comes_from_the_hub_by_its_library(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    ask = partial(subprocess.run, capture_output=True, text=True)
    command = [sys.executable, "-c", LOCATE, "hf://lab/wbc@v2", str(tmp_path / "cache")]
    with serving(type("ThisHub", (Hub,), {"root": bundle})) as port:
        # Its library reads the variable when it is imported: hence a process of its own.
        environ = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_DISABLE_TELEMETRY": "1", "PATH": ""}
        done = ask(command, env=environ, check=False)
        assert done.returncode == 0, done.stderr
        found = Path(done.stdout.strip())
        assert {path.name for path in found.iterdir()} == {"config.json", *FILES}
        assert (found / FILES[0]).read_bytes() == (bundle / FILES[0]).read_bytes()
        other = ask([*command[:3], "hf://lab/none@v2", command[4]], env=environ, check=False)
        assert "BundleError: hf://lab/none cannot be fetched" in other.stderr
    unplugged = ask(command, env=environ, check=False)
    assert unplugged.stdout == done.stdout


def test_where_there_is_no_home_another_folder_is_asked_for() -> None:
    asked = Settings(bundle="https://a/b#sha256=" + "0" * 64, cache="~nobody-of-this-name/leuko")
    with pytest.raises(BundleError, match="there is no home here"):
        locate(asked)
    assert locate(Settings(bundle="models/mine", cache=asked.cache)) == Path("models/mine")
