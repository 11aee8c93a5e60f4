"""Requests that are counted instead of recorded one by one, so that strangers cannot fill a disk.

Of each kind, the first requests of an interval have their own lines and the others are one line with their
number. A stranger controls neither the kinds nor their number, so the bytes of an interval have a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

INTERVAL_S = 60.0
OWN_LINES = 5  # of each kind and interval
MOST_KINDS = 25  # of each caller and interval; requests of further kinds are counted together


@dataclass(frozen=True)
class Kind:
    """caller: id of the key, or None. route: None if none matched. status: None for further kinds."""

    caller: str | None
    route: str | None
    status: int | None


@dataclass
class _Tally:
    own: int = 0
    counted: int = 0
    since: datetime | None = None  # of the first that was counted
    until: datetime | None = None


def _now() -> datetime:
    return datetime.now(UTC)


class Summaries:
    """Decide which requests have a line of their own, and count the others. now: a fake in tests."""

    def __init__(self, now: Callable[[], datetime] = _now) -> None:
        self._now = now
        self._tallies: dict[Kind, _Tally] = {}
        self._kinds: dict[str | None, int] = {}  # of each caller

    def admit(self, kind: Kind) -> bool:
        """Return whether a request of this kind has a line of its own; if not, count it."""
        tally = self._tallies.get(kind) or self._open(kind)
        if tally.own < OWN_LINES:
            tally.own += 1
            return True
        tally.until = self._now()
        tally.since = tally.since or tally.until
        tally.counted += 1
        return False

    def take(self) -> list[dict[str, Any]]:
        """End the interval; return what was counted in it as lines of the audit log."""
        lines = [_summary(kind, tally) for kind, tally in self._tallies.items() if tally.counted]
        self._tallies.clear()
        self._kinds.clear()
        return lines

    def _open(self, kind: Kind) -> _Tally:
        number = self._kinds.get(kind.caller, 0)
        if number < MOST_KINDS:
            self._kinds[kind.caller] = number + 1
            return self._tallies.setdefault(kind, _Tally())
        return self._tallies.setdefault(Kind(kind.caller, None, None), _Tally(own=OWN_LINES))


def _summary(kind: Kind, tally: _Tally) -> dict[str, Any]:
    assert tally.since is not None
    assert tally.until is not None
    return {
        "summary": "requests",
        "from": tally.since.isoformat(timespec="milliseconds"),
        "to": tally.until.isoformat(timespec="milliseconds"),
        "key": kind.caller,
        "route": kind.route,
        "status": kind.status,
        "count": tally.counted,
    }
