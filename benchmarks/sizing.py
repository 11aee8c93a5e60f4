"""Measure the cost of an image and of a replica, for the arithmetic in docs/scale.md."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.engine.bundle import CLASSES, CONFIG, FILES
from benchmarks.client import load, tool
from benchmarks.engine import draw
from benchmarks.server import HOST, serve

SECONDS = 8.0
CONNECTIONS = 16
SHIPPED = Path("models/wbc-resnet18")


@dataclass(frozen=True)
class Cost:
    """The cost of a replica under load, over all its processes."""

    images_per_second: float
    core_ms: float  # of processor time for each image
    mib: float  # resident after the load, shared pages counted once
    started_s: float


def main() -> int:
    table = Table("replica", "images/s", "core ms an image", "÷ plain", "MiB", "ready after, s")
    with tempfile.TemporaryDirectory(prefix="leuko-sizing-") as name:
        folder = Path(name)
        variants: dict[str, Mapping[str, str]] = {
            "plain, no log": {},
            "a log line for each request": {"LEUKO_LOG_LEVEL": "info"},
            "audit log too": {"LEUKO_LOG_LEVEL": "info", "LEUKO_AUDIT": str(folder / "audit.log")},
            "a second model, loaded": {"LEUKO_MODELS": str(second(folder))},
            "a shadow of all images": {"LEUKO_MODELS": str(second(folder, "shadow = true"))},
            "plain again": {},
        }
        costs = {what: measure(environ, CONNECTIONS, folder) for what, environ in variants.items()}
        costs["plain, 1 connection"] = measure({}, 1, folder)
        plain = costs["plain, no log"]
        for what, cost in costs.items():
            numbers = (cost.images_per_second, cost.core_ms, cost.core_ms / plain.core_ms, cost.mib)
            speed, core_ms, ratio, mib = numbers
            table.add_row(
                what, f"{speed:.0f}", f"{core_ms:.2f}", f"{ratio:.2f}", f"{mib:.0f}", f"{cost.started_s:.1f}"
            )
        lines = {name: longest(folder / name) for name in ("audit.log", "log")}
    Console().print(f"{os.cpu_count()} cores, {CONNECTIONS} connections, load by {tool()} on the same cores")
    Console().print(table)
    Console().print(f"longest log line for a request of one image, bytes: {lines}")
    return 0


def measure(environ: Mapping[str, str], connections: int, folder: Path) -> Cost:
    images = draw(CLASSES, 32)
    with (folder / "log").open("ab") as log, serve(environ=environ, log=log.fileno()) as server:
        load(HOST, server.port, images, connections, 1.0)
        before = server.cpu_seconds()
        result = load(HOST, server.port, images, connections, SECONDS)
        core_ms = 1000 * (server.cpu_seconds() - before) / result.answers
        return Cost(result.images_per_second, core_ms, server.memory_mib() or 0.0, server.started_s)


def second(folder: Path, more: str = "") -> Path:
    """Write a models file with the shipped bundle and a copy of it as another version; return its path."""
    other, file = folder / "other", folder / f"models{len(more)}.toml"
    if not other.exists():
        other.mkdir()
        for name in FILES:
            shutil.copy(SHIPPED / name, other / name)
        config = json.loads((SHIPPED / CONFIG).read_text()) | {"version": "0"}
        (other / CONFIG).write_text(json.dumps(config))
    file.write_text(f'[[models]]\nbundle = "{SHIPPED}"\n[[models]]\nbundle = "{other}"\n{more}\n')
    return file


def longest(file: Path) -> int:
    return max(map(len, file.read_bytes().splitlines()), default=0)


if __name__ == "__main__":
    raise SystemExit(main())
