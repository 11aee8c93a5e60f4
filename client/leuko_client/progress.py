"""A progress bar on standard error, shown only if that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO, TypeVar

Item = TypeVar("Item")

WIDTH = 30


class Bar:
    """A bar of the images done; `close` erases it. total: None if unknown."""

    def __init__(
        self, total: int | None, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total = total
        self.done = 0
        self._stream = stream or sys.stderr
        self._clock = clock
        self._began = clock()
        self._shown = self._stream.isatty()

    def advance(self, count: int) -> None:
        self.done += count
        if self._shown:
            self._stream.write(f"\r{self.line()}\x1b[K")
            self._stream.flush()

    def line(self) -> str:
        seconds = max(self._clock() - self._began, 1e-9)
        rate = self.done / seconds
        if self.total is None:
            return f"{self.done} images, {rate:.0f}/s"
        full = WIDTH * self.done // max(self.total, 1)
        left = (self.total - self.done) / rate if rate else 0
        bar = "━" * full + "─" * (WIDTH - full)
        return f"{bar} {self.done}/{self.total} {rate:.0f}/s {left:.0f} s left"

    def close(self) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def counted(items: list[Item], bar: Bar | None) -> list[Item]:
    """Advance the bar by the number of items; return the items."""
    if bar is not None:
        bar.advance(len(items))
    return items
