"""Record each finished request: in the metrics, the log, the audit log and the traces."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from app.edge.exchange import Exchange
from app.edge.paths import ROUTINE
from app.edge.tracing import Tracer
from app.observability.audit import AuditLog
from app.observability.metrics import METHODS, Telemetry
from app.observability.summaries import INTERVAL_S, Kind, Summaries
from app.wire import problems

logger = logging.getLogger("leuko.request")


class RequestLog:
    """Called with each finished exchange. Successful probes and scrapes: only metrics and DEBUG lines.

    Work on images has a line of its own in the log and the audit log, and a trace. So has all else that was
    not refused, if the caller is known by a key or the service has no keys (keyed is false). `Summaries`
    limits the rest.
    """

    def __init__(
        self, telemetry: Telemetry, audit: AuditLog | None, tracer: Tracer | None, *, keyed: bool
    ) -> None:
        self._telemetry = telemetry
        self._audit = audit
        self._tracer = tracer
        self._keyed = keyed
        self._summaries = Summaries()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, exchange: Exchange, route: str | None) -> None:
        """route: the template that matched, or None; never the path itself, which a client chose."""
        method, status = exchange.scope["method"], exchange.status
        self._telemetry.observe_request(route, method, status, exchange.elapsed)
        if reason := problems.REASONS.get(status):
            self._telemetry.count_rejected(reason)
        routine = method == "GET" and status < 400 and route in ROUTINE
        if not routine and not self._has_own_line(exchange, route):
            return
        if self._tracer is not None and not routine:
            exchange.trace_id = self._tracer.record(exchange, route)
        if self._audit is not None and not routine:
            self._audit.write(entry(exchange, route))
        level = logging.DEBUG if routine else _level(status)
        if logger.isEnabledFor(level):
            _log(level, exchange, route)

    def flush(self) -> None:
        """Write what was counted; called at the end of each interval, of the file and of the service."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for summary in self._summaries.take():
            if self._audit is not None:
                self._audit.write(summary)
            route, status, count = (summary[name] for name in ("route", "status", "count"))
            level = _level(status or 0)
            logger.log(level, "%s %s: %d more", route, status, count, extra={"fields": summary})

    def _has_own_line(self, exchange: Exchange, route: str | None) -> bool:
        status = exchange.status
        known = exchange.key_id is not None or not self._keyed
        refused = 400 <= status < 500 or status == 503
        if exchange.context.findings or (known and not refused):
            return True
        if self._timer is None:
            self._start_interval()
        return self._summaries.admit(Kind(exchange.key_id, route, status))

    def _start_interval(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(INTERVAL_S, self.flush)
        if self._audit is not None:
            self._audit.on_moved = lambda: _call_on(loop, self.flush)


def _call_on(loop: asyncio.AbstractEventLoop, call: Any) -> None:
    with suppress(RuntimeError):  # the loop has ended, and has called it before
        loop.call_soon_threadsafe(call)


def entry(exchange: Exchange, route: str | None) -> dict[str, Any]:
    """Return a line of the audit log: no path, file name or address, since each may hold a patient's name."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": exchange.context.request_id,
        "key": exchange.key_id,
        "method": exchange.scope["method"] if exchange.scope["method"] in METHODS else "other",
        "route": route,
        "status": exchange.status,
        "seconds": round(exchange.elapsed, 4),
        **exchange.context.findings,
    }


def _level(status: int) -> int:
    return logging.ERROR if status == 500 else logging.INFO


def _log(level: int, exchange: Exchange, route: str | None) -> None:
    fields = entry(exchange, route)
    del fields["time"]  # the log formatter adds it
    milliseconds = 1000 * fields.pop("seconds")
    exchange.context.stages.respond()
    fields["milliseconds"] = {"total": round(milliseconds, 1)} | exchange.context.stages.milliseconds()
    if images := fields.pop("images", None):
        fields["image_sha256"] = [image["sha256"] for image in images]
    if exchange.trace_id is not None:
        fields["trace_id"] = exchange.trace_id
    logger.log(
        level, "%s %s %d", fields["method"], route or "unmatched", exchange.status, extra={"fields": fields}
    )
