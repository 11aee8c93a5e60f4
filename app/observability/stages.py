"""The stages of a request, as time intervals; stages overlap if the request has several images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

Interval = tuple[float, float]  # start and end, in seconds of time.monotonic()

ORDER = ("receive", "queue", "decode", "infer", "respond")
MOST = 20  # intervals per stage; otherwise an evaluation would store one for each of its images


class Stages:
    """The intervals of each stage of one request; threads may add them concurrently."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._intervals: dict[str, list[Interval]] = {}  # sorted and disjoint
        self._gaps: dict[str, float] = {}  # seconds inside the intervals that were not spent in the stage
        self._adding = Lock()

    def add(self, name: str, began: float, ended: float) -> None:
        """Add an interval, merging it with those that it touches; beyond MOST, the two oldest are merged."""
        with self._adding:
            intervals = self._intervals.setdefault(name, [])
            before = [interval for interval in intervals if interval[1] < began]
            after = [interval for interval in intervals if interval[0] > ended]
            touching = [*intervals[len(before) : len(intervals) - len(after)], (began, ended)]
            merged = (min(start for start, _ in touching), max(end for _, end in touching))
            intervals[:] = [*before, merged, *after]
            if len(intervals) > MOST:  # the oldest, since a later interval is unlikely to fall between them
                first, second, *rest = intervals
                intervals[:] = [(first[0], second[1]), *rest]
                self._gaps[name] = self._gaps.get(name, 0.0) + second[0] - first[1]

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, began, time.monotonic())

    def respond(self) -> None:
        """Add the stage `respond` (creating and sending the answer): from the end of all others until now."""
        if stages := self.intervals():
            self.add("respond", max(intervals[-1][1] for intervals in stages.values()), time.monotonic())

    def intervals(self) -> Mapping[str, list[Interval]]:
        """Return the intervals of each stage, stages in the order of ORDER."""
        with self._adding:
            names = sorted(self._intervals, key=lambda name: (*ORDER, name).index(name))
            return {name: [*self._intervals[name]] for name in names}

    def milliseconds(self) -> dict[str, float]:
        """Return how long at least one image of the request was in each stage."""
        return {
            name: round(
                1000 * (sum(ended - began for began, ended in intervals) - self._gaps.get(name, 0.0)), 3
            )
            for name, intervals in self.intervals().items()
        }
