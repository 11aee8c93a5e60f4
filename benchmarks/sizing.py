"""What an image and a replica cost: docs/scale.md does the arithmetic with it."""

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

from app.engine.bundle import CLASSES, FILES
from app.registry.fetch import CONFIG
from benchmarks.client import load, tool
from benchmarks.engine import draw
from benchmarks.server import HOST, serve

SECONDS = 8.0
CONNECTIONS = 16
SHIPPED = Path("models/wbc-resnet18")


@dataclass(frozen=True)
class Cost:
    """Of a replica under load, by all its processes."""

    images_per_second: float
    core_ms: float  # computed for each image
    mib: float  # resident once the load is over, what is shared counted once
    started_s: float


def main() -> int:
    table = Table("replica", "images/s", "core ms an image", "÷ plain", "MiB", "ready after, s")
    with tempfile.TemporaryDirectory(prefix="leuko-sizing-") as name:
        folder = Path(name)
        variants: dict[str, Mapping[str, str]] = {
            "plain, no log": {},
            "a line of the log each": {"LEUKO_LOG_LEVEL": "info"},
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
    Console().print(f"bytes a request of one image: {lines}")
    return 0


def measure(environ: Mapping[str, str], connections: int, folder: Path) -> Cost:
    images = draw(CLASSES, 32)
    with (folder / "log").open("ab") as log, serve(environ=environ, log=log.fileno()) as server:
        load(HOST, server.port, images, connections, 1.0)
        before = server.cpu_seconds()
        found = load(HOST, server.port, images, connections, SECONDS)
        core_ms = 1000 * (server.cpu_seconds() - before) / found.answers
        return Cost(found.images_per_second, core_ms, server.memory_mib() or 0.0, server.started_s)


def second(folder: Path, more: str = "") -> Path:
    """A file that lists the shipped bundle, and the same under another version."""
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
