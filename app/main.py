"""`app.main:create_app`, where ASGI servers look for an application."""

from __future__ import annotations

from app.api.application import create_app as create_app
