"""Images that are still those of the manifest."""

from __future__ import annotations

import hashlib

from PIL import Image

from app.errors import RequestError
from app.imaging.decode import decode
from training.data import Row
from training.errors import DataError


def read_image(row: Row, data: bytes) -> Image.Image:
    """Decode the content of the row's file. Raise DataError, also if it is another than in the manifest."""
    if hashlib.sha256(data).hexdigest() != row.sha256:  # runs and reports have the manifest's fingerprint
        raise DataError(
            f"{row.archive}: {row.path} has changed since the manifest was created; "
            "create it again with `leuko-train data`"
        )
    try:
        return decode(data)
    except RequestError as error:
        raise DataError(f"{row.archive}: {row.path} does not decode ({error.detail})") from error
