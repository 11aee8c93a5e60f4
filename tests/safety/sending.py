"""Pictures to a running service, and what it says of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import httpx

FORM = 64  # files in one

IMAGE = {"content-type": "image/png"}


def alone(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.post("/predict", content=data, headers=IMAGE)


def together(client: httpx.Client, images: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """For each picture its prediction, which has no status, or its problem."""
    for start in range(0, len(images), FORM):
        files = [("files", ("cell.png", image)) for image in images[start : start + FORM]]
        answer = client.post("/predict", files=files).json()
        items = [*answer.get("predictions", []), *answer["errors"]]
        assert sorted(item["index"] for item in items) == list(range(len(files))), answer
        yield from sorted(items, key=lambda item: int(item["index"]))


def status(item: dict[str, Any]) -> int:
    return int(item.get("status", 200))
