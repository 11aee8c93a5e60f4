"""Which proxy of the environment leads to a service: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network
from urllib.request import getproxies, proxy_bypass

import httpx


def proxy_of(url: httpx.URL) -> httpx.Proxy | None:
    """Return the proxy for an address, None to connect directly, as always to this machine.

    Raise ValueError, which quotes no password, for a proxy that cannot be used.
    """
    if not url.host or is_loopback(url.host) or _bypassed(url):
        return None
    proxies = getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if not address:
        return None
    address = address if "://" in address else f"http://{address}"
    try:
        proxy = httpx.Proxy(address)
        valid = bool(proxy.url.host)
    except (ValueError, httpx.InvalidURL):
        valid = False
    if not valid:
        shown = address.partition("://")[0] + "://" + address.rpartition("@")[2].rpartition("://")[2]
        raise ValueError(
            f"the proxy {shown!r} of the environment cannot be used: it must begin with http://, https:// or"
            " socks5://; NO_PROXY excludes hosts from it"
        )
    return proxy


def shown(proxy: httpx.Proxy) -> str:
    """Return the address of a proxy without its user name and password."""
    return str(proxy.url.copy_with(userinfo=b""))


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine. No proxy elsewhere could reach it."""
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")  # RFC 6761, section 6.3
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback or (mapped or address).is_unspecified


def _bypassed(url: httpx.URL) -> bool:
    """Return whether NO_PROXY names the host: by its name, a domain, an address or a network."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    if proxy_bypass(host if url.port is None else f"{host}:{url.port}"):
        return True
    entries = [entry.strip() for entry in getproxies().get("no", "").split(",")]
    try:
        address = ip_address(url.host)
    except ValueError:
        return False
    return any(_contains(entry, address) for entry in entries)


def _contains(entry: str, address: object) -> bool:
    try:
        return address in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False
