"""Requests that a web page of another site makes a browser send; a service without keys must refuse them.

Its users are whoever can reach it, and through a browser on the same machine any web page can: a form or a
`no-cors` request reaches it as it is, and a name that resolves to 127.0.0.1 makes its answers readable too
("DNS rebinding"). Browsers say in Host, Origin and Sec-Fetch-Site where a request is from, and let no script
change these headers. Other clients send only Host.
"""

from __future__ import annotations

import re
from collections.abc import Container

from starlette.datastructures import Headers

from app.errors import CrossSite

_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
# Names that cannot be another machine's: RFC 6761, section 6.3, and RFC 1122, section 3.2.1.3.
LOOPBACK = re.compile(rf"(localhost|127(\.{_OCTET}){{3}}|\[::1\])(:[0-9]{{1,5}})?", re.IGNORECASE)


def check_loopback(headers: Headers) -> None:
    """Raise CrossSite if Host, which every browser sends, names anything but this machine."""
    if any(LOOPBACK.fullmatch(host) is None for host in headers.getlist("host")):
        raise CrossSite(
            "Without keys, Host must be localhost or a loopback address. For other names set LEUKO_KEYS, or "
            "LEUKO_WITHOUT_KEYS=anywhere."
        )


def check_site(headers: Headers, allowed_origins: Container[str] = ()) -> None:
    """Raise CrossSite if a browser sends the request for a page of another origin that is not allowed.

    https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header, and RFC 6454, section 7, for Origin.
    """
    origins = headers.getlist("origin")
    if len(origins) == 1 and origins[0] in allowed_origins:
        return
    own = bool(origins) and all(_authority(origin) == headers.get("host", "").lower() for origin in origins)
    allowed = ("same-origin", "same-site", "none") if own else ("same-origin", "none")
    if (origins and not own) or any(site not in allowed for site in headers.getlist("sec-fetch-site")):
        raise CrossSite("Without keys, web pages of other origins cannot use this service.")


def _authority(origin: str) -> str:
    """Return host and port of an http or https origin (a proxy may have removed TLS), "" for others."""
    scheme, _, authority = origin.lower().partition("://")
    return authority if scheme in ("http", "https") else ""
