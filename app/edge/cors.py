"""Origins of other sites' pages that may use the service from a browser; none by default."""

from __future__ import annotations

import re

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from app.errors import SettingsError
from app.settings import NONE

ORIGIN = re.compile(r"https?://[a-z0-9.\-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
METHODS = ("GET", "HEAD", "POST")
HEADERS = ("Authorization", "Content-Type", "X-API-Key", "X-Request-ID", "traceparent")
EXPOSED = ("Allow", "Retry-After", "X-Request-ID")  # what a page's script may read of a response
MAX_AGE_S = 600  # for which a browser need not ask again


def origins_of(text: str) -> frozenset[str]:
    """Return the origins in the setting. Raise SettingsError for anything but exact origins: `*` is none."""
    if text == NONE:
        return frozenset()
    origins = [part.strip() for part in text.split(",")]
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"LEUKO_CORS_ORIGINS has {origin!r}, expected origins such as https://lis.example.org:8443, "
                "in lower case, without a path, separated by commas; any page of them can use this service"
            )
    return frozenset(origins)


def allow(app: ASGIApp, origins: frozenset[str]) -> ASGIApp:
    """Return the application with the headers that let these origins' pages use it (Fetch standard, CORS)."""
    return CORSMiddleware(
        app,
        allow_origins=sorted(origins),
        allow_methods=METHODS,
        allow_headers=HEADERS,
        expose_headers=EXPOSED,
        max_age=MAX_AGE_S,
    )
