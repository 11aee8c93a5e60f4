"""`app.main:create_app`, the application factory for ASGI servers."""

from __future__ import annotations

from app.api.application import create_app as create_app
