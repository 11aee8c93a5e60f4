"""The log on standard error: JSON lines for programs, text for a person at a terminal."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from app.settings import Settings

TEXT = "text"


def configure_logging(settings: Settings, stream: TextIO | None = None) -> None:
    """Set the level and format of the root logger. stream: instead of standard error."""
    stream = stream or sys.stderr
    text = settings.log_format == TEXT or (settings.log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it logs a warning for each malformed form
    logging.getLogger("PIL").setLevel(logging.WARNING)  # its debug lines contain image metadata


class JsonFormatter(logging.Formatter):
    """Format a record as one JSON object per line, including `extra={"fields": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, separators=(",", ":"), default=str)


class TextFormatter(logging.Formatter):
    """Format a record as text; for a request with its stage times, key and id, without hashes."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's)
        fields = _fields(record)
        times = [f"{name} {value:.1f}" for name, value in fields.get("milliseconds", {}).items()]
        details = [", ".join(times) + " ms"] if times else []
        details += [f"{name} {fields[name]}" for name in ("key", "request_id") if fields.get(name)]
        return "  ".join([super().formatMessage(record), *details])


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields
