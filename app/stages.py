"""What a request spent its time on: stages, as intervals that may overlap where it has several images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

Interval = tuple[float, float]  # began, ended: seconds of time.monotonic()

ORDER = ("receive", "queue", "decode", "infer", "respond")


class Stages:
    """Threads may add at the same time."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._parts: list[tuple[str, float, float]] = []

    def add(self, name: str, began: float, ended: float) -> None:
        self._parts.append((name, began, ended))

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, began, time.monotonic())

    def respond(self) -> None:
        """What came after all other stages, until now, was the answer's making and sending."""
        if self._parts:
            self.add("respond", max(ended for _, _, ended in self._parts), time.monotonic())

    def intervals(self) -> Mapping[str, list[Interval]]:
        """By stage, in order of ORDER; those of one stage that touch are one."""
        found: dict[str, list[Interval]] = {name: [] for name in ORDER}
        for name, began, ended in sorted(self._parts, key=lambda part: part[1]):
            known = found.setdefault(name, [])
            if known and began <= known[-1][1]:
                known[-1] = (known[-1][0], max(known[-1][1], ended))
            else:
                known.append((began, ended))
        return {name: parts for name, parts in found.items() if parts}

    def milliseconds(self) -> dict[str, float]:
        """How long any image of the request was in each stage."""
        return {
            name: round(1000 * sum(ended - began for began, ended in parts), 3)
            for name, parts in self.intervals().items()
        }


# The request that is being answered, for what runs on its behalf.
current: ContextVar[Stages | None] = ContextVar("current", default=None)
