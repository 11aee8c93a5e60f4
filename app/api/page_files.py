"""The files of the page and of Swagger UI."""

from __future__ import annotations

import os
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Receive, Scope, Send

PIECE = 2**16  # bytes


class PageFile(FileResponse):
    """A file that browsers revalidate each time, so that page and scripts are of one version.

    It is sent from memory. Starlette opens it in a thread, and a request that is cancelled meanwhile, as at
    the end of a drain, would leave it open.
    """

    def __init__(self, path: str | os.PathLike[str], headers: dict[str, str] | None = None) -> None:
        found = Path(path).stat()
        super().__init__(path, headers={"Cache-Control": "no-cache", **(headers or {})}, stat_result=found)
        del self.headers["accept-ranges"]
        self.content = _content(os.fspath(path), found.st_mtime_ns)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (ASGI's)
        """Send the headers, then the file unless the method is HEAD."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        size = 0 if scope["method"] == "HEAD" else len(self.content)
        for start in range(0, size, PIECE):
            piece = self.content[start : start + PIECE]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class PageFiles(StaticFiles):
    """The folders with the files."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file. Raise HTTPException, with Allow for another method, which Starlette leaves out."""
        try:
            return await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
                error.headers = {"Allow": "GET, HEAD"}
            raise

    def file_response(
        self, full_path: str | os.PathLike[str], _: os.stat_result, scope: Scope, *__: Any
    ) -> Response:
        """Return the file, or 304 if the client has it."""
        response = PageFile(full_path)
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response


@lru_cache(maxsize=128)
def _content(path: str, modified_ns: int) -> bytes:  # noqa: ARG001 (a key of the cache)
    return Path(path).read_bytes()
