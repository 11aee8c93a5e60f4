"""The files of the page and of Swagger UI."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope


class PageFiles(StaticFiles):
    """Static files that browsers revalidate each time, so that page and scripts are of one version."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file. Raise HTTPException, with Allow for another method, which Starlette leaves out."""
        try:
            return await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
                error.headers = {"Allow": "GET, HEAD"}
            raise

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response
