"""Downloads of files by https: bounded, verified, and never led from a public server to a private address."""

from __future__ import annotations

import hashlib
import math
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPSConnection, responses
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from threading import Timer
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import unquote, unquote_plus, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    getproxies,
    proxy_bypass,
)

from app.errors import BundleError
from app.units import GIB, MIB

PATIENCE_S = 60.0  # socket timeout: longest wait for the next bytes
CHUNK = MIB
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052, section 2.1: IPv4 addresses in IPv6
LEAST_SECRET = 4  # characters of a value that is hidden; shorter ones, such as v=2, protect nothing
COMPATIBLE = IPv6Network("::/96")  # RFC 4291, section 2.5.5.1; deprecated

SECRETS = (
    (r"://[^\s/?#'\"]*@", "://"),
    # A password with a slash, which does not belong there; a port is a number.
    (r"://[^\s/?#'\"@:]*:(?!\d+(?:[/?#\s'\"]|$))[^\s?#'\"]*@", "://"),
    (r"\?[^\s#'\"]*", "?…"),
    (r"#(?!sha256=)[^\s'\"]*", "#…"),
    (r"hf_\w+|(?<=Bearer )[^\s'\"]+", "…"),
)

PRIVATE = "redirected to a private address, see LEUKO_BUNDLE_REDIRECTS"
Address = tuple[str, int]


@dataclass(frozen=True)
class Bounds:
    """Limits on a download. most_bytes: of one file; seconds: for the whole bundle.

    anywhere: a redirect may lead to a private address, also from a public server.
    """

    most_bytes: int = GIB
    seconds: float = 1800.0
    anywhere: bool = False


def download(url: str, sha256: str, path: Path, bounds: Bounds, until: float) -> None:
    """Fetch one file and verify its hash. until: deadline on the monotonic clock.

    Nothing that the server sends, or holds back, extends the deadline.
    Raise BundleError, OSError, HTTPException or ValueError, whose texts may contain the URL.
    """
    guard = _Guard(bounds.anywhere)
    try:
        with guard.closing_at(until), path.open("wb") as file:
            _download(url, sha256, file, bounds, guard)
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):  # it holds the connection
            error.close()
        if not guard.late:
            raise
        raise BundleError(f"{without_secrets(url)} takes too long to download") from None


def _download(url: str, sha256: str, file: IO[bytes], bounds: Bounds, guard: _Guard) -> None:
    shown = without_secrets(url)
    digest, size = hashlib.sha256(), 0
    request = Request(url, headers={"User-Agent": "leuko"})
    # From Python 3.12, `urlopen` reads the trusted certificates once in the life of a process.
    with _opener(guard).open(request, timeout=PATIENCE_S) as response:
        while True:
            # length: the announced bytes that have not arrived yet
            if size + (response.length or 0) > bounds.most_bytes:
                raise BundleError(f"{shown} is over {bounds.most_bytes} bytes")
            guard.check()
            # read() would collect the whole chunk in memory.
            if not (chunk := response.read1(CHUNK)):
                break
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    guard.check()  # a connection that was shut down can look like the end of the file
    if response.length:
        raise BundleError(f"{shown} ended {response.length} bytes too early")
    if (actual := digest.hexdigest()) != sha256:
        raise BundleError(f"{shown} has sha256 {actual}, expected {sha256}")


def without_secrets(text: str) -> str:
    """Remove user names, passwords, queries and fragments from the URLs in a text, and tokens of the Hub."""
    for pattern, instead in SECRETS:
        text = re.sub(pattern, instead, text)
    return text


def without_values(text: str, address: str) -> str:
    """Remove the user, password and values of the query of an address from a text, in which a server may
    have repeated them in whatever form: encoded or not, in other letters.
    """
    rest = address.partition("://")[2].partition("#")[0]
    user, query = rest.rpartition("@")[0], rest.partition("?")[2]
    values = {
        user,
        user.partition(":")[2],
        query,
        *(part.rpartition("=")[2] for part in re.split("[&;]", query)),
    }
    values |= {part.partition("=")[2] for part in re.split("[&;]", query)}
    values |= {decode(value) for value in values for decode in (unquote, unquote_plus)}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= LEAST_SECRET:
            text = re.sub(re.escape(value), "…", text, flags=re.IGNORECASE)
    return text


def zone(address: str) -> str:
    """Return which network an IP address belongs to: public, private, loopback or link-local."""
    ip = _inner(ip_address(address.partition("%")[0]))
    if ip.is_loopback or ip.is_unspecified:  # connecting to 0.0.0.0 reaches this machine
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    local = ip.is_multicast or (isinstance(ip, IPv6Address) and ip.is_site_local)
    return "public" if ip.is_global and not local else "private"


def _inner(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address stands for, if it stands for one."""
    if isinstance(ip, IPv4Address):
        return ip
    if (ip in NAT64 or ip in COMPATIBLE) and int(ip) > 1:  # not ::1
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)


def _opener(guard: _Guard) -> OpenerDirector:
    """Return an opener for https alone, for one file. A proxy of the environment is used, and trusted."""
    opener = OpenerDirector()
    for handler in (
        _Proxies(guard),
        _Connections(guard),
        _Redirects(guard),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def proxy_of(url: str) -> str | None:
    """Return the proxy that the environment has for an https address, without user and password; None: none.

    This machine is asked directly. Raise ValueError for a proxy that cannot be used.
    """
    host = urlsplit(url).netloc
    if _is_this_machine(urlsplit(url).hostname or "") or proxy_bypass(host):
        return None
    if not (address := _proxies().get("https")):
        return None
    scheme, found, rest = address.rpartition("://")
    shown = f"{scheme if found else 'http'}://{rest.rpartition('@')[2].rstrip('/')}"
    if found and scheme.lower() != "http":
        raise ValueError(f"the proxy {shown} cannot be used: only those that begin with http:// can")
    return shown


def _proxies() -> dict[str, str]:
    """Return the environment's proxies by scheme; ALL_PROXY, which urllib ignores, is for https too."""
    proxies = getproxies()
    if "all" in proxies:
        proxies.setdefault("https", proxies["all"])
    return proxies


def _is_this_machine(host: str) -> bool:
    try:
        return zone(host) == "loopback"
    except ValueError:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")  # RFC 6761, section 6.3


class _Proxies(ProxyHandler):
    """The environment's proxies, except for an address of this machine that the operator named."""

    def __init__(self, guard: _Guard) -> None:
        super().__init__({scheme: address for scheme, address in _proxies().items() if scheme == "https"})
        self._guard = guard

    def proxy_open(self, req: Request, proxy: str, type: str) -> Any:
        if not self._guard.redirected and _is_this_machine(urlsplit(req.full_url).hostname or ""):
            return None
        return super().proxy_open(req, proxy, type)


class _Guard:
    """Lets the first address be any, for the operator named it; those that follow public or of its zone.

    late: the deadline has passed, and the connection is shut down.
    """

    def __init__(self, anywhere: bool) -> None:
        self.redirected = False
        self.late = False
        self._until: float | None = None
        self._held: socket.socket | None = None
        self._anywhere = anywhere
        self._first = "public"

    def allows(self, near: str) -> bool:
        """Return whether a redirect may lead to this zone."""
        return self._anywhere or near in ("public", self._first)

    @contextmanager
    def closing_at(self, until: float) -> Iterator[None]:
        """Shut the connection down at a moment of the monotonic clock.

        The socket's timeout begins anew with every byte: in a handshake, a header, or the size of a chunk.
        """
        self._until = until
        timer = Timer(max(0.0, until - time.monotonic()), self._shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            self._hold(None)

    def check(self) -> None:
        """Raise TimeoutError after the deadline."""
        if self._until is not None and time.monotonic() > self._until:
            self.late = True
        if self.late:
            raise TimeoutError("the deadline has passed")

    def _shut_down(self) -> None:
        self.late = True
        if (held := self._held) is not None:
            with suppress(OSError):  # not connected any more
                held.shutdown(socket.SHUT_RDWR)

    def _hold(self, connection: socket.socket | None) -> None:
        """Keep a descriptor of the current connection: TLS takes over the first one."""
        before, self._held = self._held, None if connection is None else connection.dup()
        if before is not None:
            before.close()

    def connect(self, address: Address, timeout: float, source: Address | None = None) -> socket.socket:
        """Connect as `socket.create_connection` does, to an address that was checked: names may change."""
        host, port = address
        error: OSError = PermissionError(PRIVATE)
        for *_, found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            near = zone(str(found[0]))
            if self.redirected and not self.allows(near):
                continue
            self.check()
            left = math.inf if self._until is None else max(0.01, self._until - time.monotonic())
            try:
                connection = socket.create_connection((str(found[0]), port), min(timeout, left), source)
            except OSError as failed:
                error = failed
                continue
            if not self.redirected:
                self._first = near
            connection.settimeout(timeout)
            if self._until is not None:
                self._hold(connection)
            if self.late:  # the deadline passed before there was something to shut down
                connection.close()
            self.check()
            return connection
        raise error


class _Connections(HTTPSHandler):
    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self._guard = guard

    def https_open(self, request: Request) -> Any:
        def connect(host: str, **options: Any) -> HTTPConnection:
            connection = HTTPSConnection(host, **options)
            connection._create_connection = self._guard.connect  # type: ignore[attr-defined]
            return connection

        response: Any = self.do_open(connect, request)
        response.msg = responses.get(response.status, "")  # not the server's words, which may be a secret
        return response


class _Redirects(HTTPRedirectHandler):
    def __init__(self, guard: _Guard) -> None:
        self._guard = guard

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """Refuse other schemes than https, and addresses with a password. The message has neither."""
        fp.close()  # else urllib reads the body, of whatever size, into memory
        target = urlsplit(newurl)
        if target.scheme != "https" or "@" in target.netloc:
            raise PermissionError("redirected to an address that is not plain https")
        # A proxy would connect to what `connect` never sees.
        with suppress(ValueError):  # a name
            if not self._guard.allows(zone(target.hostname or "")):
                raise PermissionError(PRIVATE)
        self._guard.redirected = True
        return super().redirect_request(req, fp, code, msg, headers, newurl)
