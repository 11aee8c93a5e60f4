"""Runs mutated inputs through one target; keeps those that end in an undocumented error."""

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

MOST_KEPT = 2000  # inputs with a new outcome


@dataclass(frozen=True)
class Target:
    """What is fuzzed. run: returns the name of an outcome or raises; allowed: its documented errors."""

    name: str
    run: Callable[[bytes], str]
    allowed: tuple[type[LeukoError], ...]
    seeds: Sequence[bytes]


@dataclass
class Campaign:
    """out: folder for the input of each finding; None: findings are only counted."""

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
            self._write_latest(data)
            began = time.perf_counter()
            trait = self.attempt(data)
            self._note_time(time.perf_counter() - began, data)
            # An input that fails in a new way is closer to other new ways than a seed is.
            if trait not in self._traits and len(self._traits) < MOST_KEPT:
                self._traits.add(trait)
                self._new.append(data)

    def _corpus(self) -> Sequence[bytes]:
        return self._new if self._new and self.random.random() < 0.5 else self.target.seeds

    def attempt(self, data: bytes) -> str:
        """Run one input. Return its outcome; for an error, with the line that raised it."""
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

    def _write_latest(self, data: bytes) -> None:
        # If the process crashes, only this file shows the input.
        if self._latest is not None:
            self._latest.write_bytes(data)

    def _keep(self, data: bytes, trace: str, trait: str) -> None:
        if trait in self._traits:  # keep one example of each
            return
        self.findings.append(trace)
        self._save(data, f"{self.target.name}-{sha256(data).hexdigest()[:16]}")

    def _note_time(self, seconds: float, data: bytes) -> None:
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
