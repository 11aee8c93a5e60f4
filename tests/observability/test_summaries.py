from __future__ import annotations

from datetime import UTC, datetime, timedelta

from app.observability.summaries import MOST_KINDS, OWN_LINES, Kind, Summaries

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
REFUSED = Kind(None, "/predict", 401)


class Clock:
    now = NOON

    def __call__(self) -> datetime:
        return self.now


def test_the_first_of_a_kind_have_their_own_lines_and_the_others_are_counted() -> None:
    clock = Clock()
    summaries = Summaries(clock)
    assert [summaries.admit(REFUSED) for _ in range(OWN_LINES + 1)] == [True] * OWN_LINES + [False]
    clock.now += timedelta(seconds=3)
    assert not summaries.admit(REFUSED)
    assert summaries.admit(Kind(None, "/predict", 404))
    assert summaries.take() == [
        {
            "summary": "requests",
            "from": "2026-11-27T12:00:00.000+00:00",
            "to": "2026-11-27T12:00:03.000+00:00",
            "key": None,
            "route": "/predict",
            "status": 401,
            "count": 2,
        }
    ]
    assert summaries.take() == []
    assert summaries.admit(REFUSED)  # a new interval


def test_further_kinds_of_a_caller_are_counted_together_and_take_nothing_from_others() -> None:
    summaries = Summaries()
    own = sum(summaries.admit(Kind(None, None, status)) for status in range(1000))
    assert own == MOST_KINDS
    assert summaries.admit(Kind("lab-1", "/predict", 429))
    [line] = summaries.take()
    assert (line["key"], line["route"], line["status"]) == (None, None, None)
    assert line["count"] == 1000 - MOST_KINDS
