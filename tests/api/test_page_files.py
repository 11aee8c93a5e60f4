"""The files of the page, sent from memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from starlette.types import Message

from app.api.page_files import PIECE, PageFile


async def nothing_more() -> Message:
    """Wait for ever, as for a client that has said all."""
    return await asyncio.Future[Message]()


def sent(response: PageFile, method: str = "GET") -> list[Message]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(dict(message))

    asyncio.run(response({"type": "http", "method": method, "headers": []}, nothing_more, send))
    return messages


def test_a_file_needs_no_thread_that_a_cancelled_request_would_leave_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr(anyio.to_thread, "run_sync", refused)
    path = tmp_path / "page.js"
    path.write_bytes(bytes(range(256)) * 1_000)
    head, *body = sent(PageFile(path))
    assert (b"content-length", b"256000") in head["headers"]
    assert b"".join(each["body"] for each in body) == path.read_bytes()
    assert max(len(each["body"]) for each in body) == PIECE
    assert [each["more_body"] for each in body] == [True] * (len(body) - 1) + [False]


def test_head_has_the_headers_of_get_and_no_body(tmp_path: Path) -> None:
    path = tmp_path / "page.js"
    path.write_text("text")
    head, body = sent(PageFile(path), "HEAD")
    assert head == sent(PageFile(path))[0]
    assert body["body"] == b""


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "page.js"
    path.write_text("old")
    assert PageFile(path).content == b"old"
    path.write_text("newer")
    assert PageFile(path).content == b"newer"
