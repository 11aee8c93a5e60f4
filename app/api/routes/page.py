"""`GET /`: the built-in page. It needs no key; its requests do, like those of any other client."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.page_files import PageFile
from app.api.routes.docs import WEB

# The page shows image files that the user chose, as blob: URLs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> PageFile:
    headers = {
        "Content-Security-Policy": POLICY,
        "Referrer-Policy": "no-referrer",
    }
    return PageFile(WEB / "index.html", headers=headers)
