"""The log on standard error: JSON lines for programs, text for a person at a terminal."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, TextIO

from app.printable import printable
from app.settings import Settings

TEXT = "text"
REQUESTS = "leuko.request"  # the logger of `app.edge.request_log`, which limits its lines above DEBUG itself
INTERVAL_S = 60.0
MOST_LINES = 10  # of DEBUG, or warnings and errors, of one place in the code and interval
MAX_TEXT = 8192  # characters of a message, and of a traceback


def configure_logging(settings: Settings, stream: TextIO | None = None) -> None:
    """Set the level and format of the root logger. stream: instead of standard error."""
    stream = stream or sys.stderr
    text = settings.log_format == TEXT or (settings.log_format == "auto" and stream.isatty())
    handler = BoundedHandler(stream)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it logs a warning for each malformed form
    logging.getLogger("PIL").setLevel(logging.WARNING)  # its debug lines contain image metadata


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Write at most MOST_LINES of one place in the code in INTERVAL_S, except of level INFO.

    What clients can cause again and again must not fill a disk, whichever library logs it. The number of the
    others is a line of its own, before the next line that follows the interval, or at the end.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._began = clock()
        self._counts: Counter[tuple[str, int]] = Counter()
        self._first: dict[tuple[str, int], logging.LogRecord] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if self._clock() - self._began >= INTERVAL_S:
            self._summarise()
        if record.levelno == logging.INFO or (record.name == REQUESTS and record.levelno > logging.DEBUG):
            super().emit(record)
            return
        place = record.pathname, record.lineno
        self._counts[place] += 1
        self._first.setdefault(place, record)
        if self._counts[place] <= MOST_LINES:
            super().emit(record)

    def close(self) -> None:
        with self.lock or nullcontext():
            self._summarise()
        super().close()

    def _summarise(self) -> None:
        counts, first = self._counts, self._first
        self._began, self._counts, self._first = self._clock(), Counter(), {}
        for (path, line), count in counts.items():
            if count > MOST_LINES:
                record = first[path, line]
                values = (count - MOST_LINES, str(record.msg))
                more = "%d more lines like: %s"
                super().emit(logging.LogRecord(record.name, record.levelno, path, line, more, values, None))


class JsonFormatter(logging.Formatter):
    """Format a record as one JSON object per line, including `extra={"fields": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _shortened(record.getMessage()),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = _shortened(self.formatException(record.exc_info))
        return json.dumps(line, separators=(",", ":"), default=str)


class TextFormatter(logging.Formatter):
    """Format a record as text; for a request with its stage times, key and id, without hashes."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        # Line by line: a traceback has several.
        return "\n".join(map(printable, _shortened(super().format(record)).split("\n")))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's)
        fields = _fields(record)
        times = [f"{name} {value:.1f}" for name, value in fields.get("milliseconds", {}).items()]
        details = [", ".join(times) + " ms"] if times else []
        details += [f"{name} {fields[name]}" for name in ("key", "request_id") if fields.get(name)]
        return "  ".join([super().formatMessage(record), *details])


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _shortened(text: str) -> str:
    """Leave out the middle of a text over MAX_TEXT: a client may have made it long."""
    half = MAX_TEXT // 2
    return text if len(text) <= MAX_TEXT else f"{text[:half]} … {text[-half:]}"
