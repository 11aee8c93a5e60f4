"""Inputs without end through one target; what is neither a result nor a documented error is kept."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random

from app.errors import LeukoError
from tests.fuzz.mutations import mutate

MOST_KEPT = 2000  # inputs that showed something new


@dataclass(frozen=True)
class Target:
    """`run` gives an outcome's name or raises; of what it raises, `allowed` is documented."""

    name: str
    run: Callable[[bytes], str]
    allowed: tuple[type[LeukoError], ...]
    seeds: Sequence[bytes]


@dataclass
class Campaign:
    """`out` takes each finding's bytes; without it they are only counted."""

    target: Target
    random: Random
    out: Path | None = None
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def __post_init__(self) -> None:
        self._new: list[bytes] = []
        self._traits: set[str] = set()

    def run(self, inputs: int) -> None:
        for _ in range(inputs):
            data = mutate(self.random, self._corpus())
            self._leave(data)
            began = time.perf_counter()
            trait = self.attempt(data)
            self._clock(time.perf_counter() - began, data)
            # What fails in a new way is nearer to the next new way than a seed is.
            if trait not in self._traits and len(self._traits) < MOST_KEPT:
                self._traits.add(trait)
                self._new.append(data)

    def _corpus(self) -> Sequence[bytes]:
        return self._new if self._new and self.random.random() < 0.5 else self.target.seeds

    def attempt(self, data: bytes) -> str:
        """What became of one input; for an error with the line that raised it first."""
        try:
            trait = outcome = self.target.run(data)
        except self.target.allowed as error:
            outcome, trait = type(error).__name__, _origin(error)
        except Exception as error:
            outcome, trait = "finding", _origin(error)
            self._keep(data, "".join(traceback.format_exception(error)), trait)
        self.outcomes[outcome] += 1
        return trait

    def report(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.outcomes.most_common())
        return (
            f"{self.target.name}: {self.outcomes.total()} inputs: {counts}; {len(self.findings)} findings;"
            f" {len(self._traits)} ways; slowest {self.slowest_s:.2f} s"
        )

    @property
    def _latest(self) -> Path | None:
        return None if self.out is None else self.out / f"{self.target.name}.latest"

    def close(self) -> None:
        if self._latest is not None:
            self._latest.unlink(missing_ok=True)

    def _leave(self, data: bytes) -> None:
        # All that a crash of the whole process would leave behind.
        if self._latest is not None:
            self._latest.write_bytes(data)

    def _keep(self, data: bytes, trace: str, trait: str) -> None:
        if trait in self._traits:  # one example of each
            return
        self.findings.append(trace)
        self._save(data, f"{self.target.name}-{sha256(data).hexdigest()[:16]}")

    def _clock(self, seconds: float, data: bytes) -> None:
        if seconds > self.slowest_s:
            self.slowest_s = seconds
            self._save(data, f"{self.target.name}-slowest")

    def _save(self, data: bytes, name: str) -> None:
        if self.out is not None:
            (self.out / name).write_bytes(data)


def _origin(error: Exception) -> str:
    first = error.__cause__ or error
    *_, (frame, line) = traceback.walk_tb(first.__traceback__)
    return f"{type(error).__name__} {type(first).__name__} {frame.f_code.co_filename}:{line}"
