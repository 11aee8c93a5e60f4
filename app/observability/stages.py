"""What a request spent its time on: stages, as intervals that may overlap where it has several images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

Interval = tuple[float, float]  # began, ended: seconds of time.monotonic()

ORDER = ("receive", "queue", "decode", "infer", "respond")
MOST = 20  # intervals of a stage; an evaluation would have one for each of its images


class Stages:
    """Threads may add at the same time."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._intervals: dict[str, list[Interval]] = {}  # in order of time, none touching another
        self._gaps: dict[str, float] = {}  # seconds inside these that are not of the stage
        self._adding = Lock()

    def add(self, name: str, began: float, ended: float) -> None:
        with self._adding:
            known = self._intervals.setdefault(name, [])
            before = [one for one in known if one[1] < began]
            after = [one for one in known if one[0] > ended]
            touched = known[len(before) : len(known) - len(after)]
            joined = [*touched, (began, ended)]
            whole = (min(one[0] for one in joined), max(one[1] for one in joined))
            known[:] = [*before, whole, *after]
            if len(known) > MOST:  # the oldest, for nothing more is likely to come between them
                first, second, *rest = known
                known[:] = [(first[0], second[1]), *rest]
                self._gaps[name] = self._gaps.get(name, 0.0) + second[0] - first[1]

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, began, time.monotonic())

    def respond(self) -> None:
        """What came after all other stages, until now, was the answer's making and sending."""
        if known := self.intervals():
            self.add("respond", max(parts[-1][1] for parts in known.values()), time.monotonic())

    def intervals(self) -> Mapping[str, list[Interval]]:
        """By stage, in order of ORDER; those that touch are one, and beyond MOST the oldest are."""
        with self._adding:
            names = sorted(self._intervals, key=lambda name: (*ORDER, name).index(name))
            return {name: [*self._intervals[name]] for name in names}

    def milliseconds(self) -> dict[str, float]:
        """How long any image of the request was in each stage."""
        return {
            name: round(1000 * (sum(ended - began for began, ended in parts) - self._gaps.get(name, 0.0)), 3)
            for name, parts in self.intervals().items()
        }
