"""The configuration for nginx that is shipped, on this machine's ports and folders."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.certificates import OPENSSL, self_signed
from tests.running import PATIENCE_S, ROOT, free_port, wait_until

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
here = pytest.mark.skipif(NGINX is None or OPENSSL is None, reason="nginx or openssl is absent here")

SHIPPED = ROOT / "ops/nginx/leuko.conf"
NAME = "leuko.example.org"
MAIN = """\
user {user};
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/main.error.log warn;
events {{ worker_connections 512; }}
http {{
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/leuko.conf;
}}
"""


@dataclass(frozen=True)
class Proxy:
    folder: Path
    http: int  # port
    https: int

    def client(self, secret: str = "") -> httpx.Client:
        """Its addresses name the shipped host; its connections go to the proxy."""
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.https}",
            headers={"host": NAME, **headers},
            transport=Named(verify=self.trust()),
            timeout=PATIENCE_S,
        )

    def trust(self) -> ssl.SSLContext:
        return trusting(self.folder)

    @contextmanager
    def connected(self, name: str = NAME) -> Iterator[ssl.SSLSocket]:
        with (
            socket.create_connection(("127.0.0.1", self.https), timeout=PATIENCE_S) as plain,
            self.trust().wrap_socket(plain, server_hostname=name) as client,
        ):
            yield client


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "leuko.crt"))


class Named(httpx.HTTPTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = NAME
        return super().handle_request(request)


def prepare(folder: Path, upstream: int, changes: Mapping[str, str]) -> Proxy:
    """Writes a certificate, and the shipped file with this machine's ports and folders."""
    proxy = Proxy(folder, free_port(), free_port())
    self_signed(folder, NAME, "leuko")
    text = SHIPPED.read_text()
    ours = {
        "listen 443": f"listen 127.0.0.1:{proxy.https}",
        "listen 80": f"listen 127.0.0.1:{proxy.http}",
        "server 127.0.0.1:8000": f"server 127.0.0.1:{upstream}",
        "/etc/nginx/tls": str(folder),
        "/var/log/nginx": str(folder),
        "/run/nginx-leuko": str(folder / "bodies"),
    }
    for shipped, here in {**ours, **changes}.items():
        assert shipped in text
        text = text.replace(shipped, here)
    (folder / "leuko.conf").write_text(text)
    user = pwd.getpwuid(os.geteuid()).pw_name
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))
    return proxy


@contextmanager
def proxying(folder: Path, upstream: int, changes: Mapping[str, str]) -> Iterator[Proxy]:
    proxy = prepare(folder, upstream, changes)
    command = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr
    assert "[warn]" not in tested.stderr.replace('the "user" directive makes sense only', "")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: listens(proxy.https))
            yield proxy
        finally:
            process.terminate()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
