"""Record each finished request: in the metrics, the log, the audit log and the traces."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from app.edge.exchange import Exchange
from app.edge.paths import ROUTINE
from app.edge.tracing import Tracer
from app.observability.audit import AuditLog
from app.observability.metrics import METHODS, Telemetry
from app.wire import problems

logger = logging.getLogger("leuko.request")


class RequestLog:
    """Called with each finished exchange. Successful probes and scrapes: only metrics and DEBUG lines."""

    def __init__(self, telemetry: Telemetry, audit: AuditLog | None, tracer: Tracer | None) -> None:
        self._telemetry = telemetry
        self._audit = audit
        self._tracer = tracer

    def __call__(self, exchange: Exchange, route: str | None) -> None:
        """route: the template that matched, or None; never the path itself, which a client chose."""
        method, status = exchange.scope["method"], exchange.status
        self._telemetry.observe_request(route, method, status, exchange.elapsed)
        if reason := problems.REASONS.get(status):
            self._telemetry.count_rejected(reason)
        routine = method == "GET" and status < 400 and route in ROUTINE
        if self._audit is not None and not routine:
            self._audit.write(entry(exchange, route))
        if self._tracer is not None and not routine:
            exchange.trace_id = self._tracer.record(exchange, route)
        level = logging.ERROR if status == 500 else logging.DEBUG if routine else logging.INFO
        if logger.isEnabledFor(level):
            _log(level, exchange, route)


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
