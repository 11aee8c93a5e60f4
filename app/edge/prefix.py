"""The path under which clients see the service: a proxy may put a prefix before its own paths."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import Scope

HEADER = "X-Forwarded-Prefix"
# Not `//`, after which a client would read the name of another host.
PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
MOST = 255  # characters


def prefix_of(scope: Scope) -> str:
    """Return the prefix, without a slash at its end: of X-Forwarded-Prefix, else ASGI's root path, else "".

    Several proxies list theirs in order, the outermost first. The header reaches only the answer to whoever
    sent it; what is no path in it is ignored.
    """
    sent = ",".join(Headers(scope=scope).getlist(HEADER))
    prefix = "".join(part.strip().rstrip("/") for part in sent.split(","))
    prefix = prefix or str(scope.get("root_path", "")).rstrip("/")
    return prefix if len(prefix) <= MOST and PREFIX.fullmatch(prefix) else ""
