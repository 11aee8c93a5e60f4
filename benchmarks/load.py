"""Measure the service under load, beside the same machine without HTTP in the same run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.client import Load, load, tool
from benchmarks.engine import draw, introduce, measure, workers
from benchmarks.server import HOST, Server, serve

IMAGES = 32


def main() -> int:
    args = parse()
    console = Console()
    settings, classifier = introduce(console, f", load by {tool()}")
    ceiling = measure(classifier, workers(settings), min(args.seconds, 4.0)).series
    images = draw(classifier.bundle.labels, IMAGES)
    del classifier  # so that its threads and memory do not slow the service
    with serve() as server:
        lines = [run(server, images, connections, args.seconds, ceiling) for connections in args.connections]
    console.print(table(lines, ceiling))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="of load for each number of connections [%(default)s]"
    )
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64], help="[%(default)s]")
    return parser.parse_args()


def run(
    server: Server, images: Sequence[bytes], connections: int, seconds: float, ceiling: float
) -> tuple[str, ...]:
    """Return one line of the table, measured after a second of warm-up."""
    load(HOST, server.port, images, connections, 1.0)
    result = load(HOST, server.port, images, connections, seconds)
    return line(connections, result, server.memory_mib(), ceiling)


def line(connections: int, result: Load, memory_mib: float | None, ceiling: float) -> tuple[str, ...]:
    return (
        str(connections),
        f"{result.images_per_second:.1f}",
        f"{result.images_per_second / ceiling:.2f}",
        f"{result.p50_ms:.1f}",
        f"{result.p99_ms:.1f}",
        str(result.failures),
        "unknown" if memory_mib is None else f"{memory_mib:.0f}",
    )


def table(lines: Sequence[tuple[str, ...]], ceiling: float) -> Table:
    result = Table(
        "connections",
        "images/s",
        "of ceiling",
        "p50 ms",
        "p99 ms",
        "failures",
        "RSS MiB",
        title=f"POST /predict, one image a request; ceiling {ceiling:.1f} images/s",
    )
    for cells in lines:
        result.add_row(*cells)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
