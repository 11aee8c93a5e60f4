"""Which requests have a line of their own, and which are counted."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.edge.exchange import Exchange
from app.edge.request_log import RequestLog
from app.observability.audit import AuditLog
from app.observability.metrics import Telemetry
from app.observability.request_context import RequestContext
from app.observability.summaries import OWN_LINES
from tests.running import wait_until

MANY = OWN_LINES + 20


def finished(status: int, *, key: str | None = None, method: str = "POST", **findings: Any) -> Exchange:
    context = RequestContext("mine", arrived=0.0, findings=findings)
    scope = {"method": method}
    return cast(
        Exchange,
        SimpleNamespace(scope=scope, status=status, elapsed=0.1, key_id=key, context=context, trace_id=None),
    )


class Records:
    """A request log, the lines of its audit log, and its tracer."""

    def __init__(self, folder: Path, *, keyed: bool = True) -> None:
        self.path = folder / "audit.jsonl"
        self.audit = AuditLog(self.path)
        self.telemetry = Telemetry()
        self.traced = 0
        self.log = RequestLog(self.telemetry, self.audit, self, keyed=keyed)

    def record(self, *_: object) -> str:
        self.traced += 1
        return "0" * 32

    def close(self) -> None:
        raise NotImplementedError

    def send(self, number: int, route: str, exchange: Exchange) -> None:
        async def observe() -> None:
            for _ in range(number):
                self.log(exchange, route)
            self.log.flush()

        asyncio.run(observe())

    def end(self) -> list[dict[str, Any]]:
        self.audit.close()
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("keyed", "exchange"),
    [
        (True, finished(200, key="lab-1")),
        (True, finished(504, key="lab-1")),
        (True, finished(422, key="lab-1", images=[{"sha256": "0", "error": "undecodable_image"}])),
        (False, finished(200)),
        (False, finished(200, images=[{"sha256": "0", "label": "monocyte"}])),
    ],
)
def test_work_and_what_a_known_caller_got_have_their_own_lines(
    tmp_path: Path, keyed: bool, exchange: Exchange
) -> None:
    records = Records(tmp_path, keyed=keyed)
    records.send(MANY, "/predict", exchange)
    assert [line["request_id"] for line in records.end()] == ["mine"] * MANY
    assert records.traced == MANY


@pytest.mark.parametrize(
    ("keyed", "exchange"),
    [
        (True, finished(401)),
        (True, finished(200, method="GET")),  # a page, or what else is open to everybody
        (True, finished(500)),
        (True, finished(403, key="lab-1")),
        (True, finished(429, key="lab-1")),
        (True, finished(499, key="lab-1")),
        (True, finished(503, key="lab-1")),
        (False, finished(404)),
    ],
)
def test_refusals_and_what_strangers_get_are_counted_after_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, keyed: bool, exchange: Exchange
) -> None:
    caplog.set_level(logging.INFO)
    records = Records(tmp_path, keyed=keyed)
    records.send(MANY, "/predict", exchange)
    lines = records.end()
    assert [line.get("count", 1) for line in lines] == [1] * OWN_LINES + [20]
    assert (lines[-1]["key"], lines[-1]["status"]) == (exchange.key_id, exchange.status)
    assert len(caplog.records) == OWN_LINES + 1
    assert records.traced == OWN_LINES
    counted = records.telemetry.render().decode()
    assert (
        f'code="{exchange.status}",method="{exchange.scope["method"]}",route="/predict"}} {MANY}.0' in counted
    )


def test_what_was_counted_is_written_soon_after_the_file_was_moved(tmp_path: Path) -> None:
    records = Records(tmp_path)
    old = tmp_path / "audit.jsonl.1"

    def written(path: Path, lines: int) -> bool:
        return path.exists() and len(path.read_text().splitlines()) == lines

    async def rotate() -> None:
        for _ in range(MANY):
            records.log(finished(401), "/predict")
        await asyncio.to_thread(wait_until, lambda: written(records.path, OWN_LINES))
        records.path.rename(old)
        records.log(finished(200, key="lab-1"), "/predict")
        await asyncio.to_thread(wait_until, lambda: written(records.path, 2))

    asyncio.run(rotate())
    assert [line.get("count", 1) for line in records.end()] == [1, 20]
