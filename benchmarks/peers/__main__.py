"""Compare Leuko with other model servers on the same machine in the same run: `make bench-peers`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.engine.bundle import CLASSES
from benchmarks.client import Load, load, tool
from benchmarks.engine import draw
from benchmarks.server import HOST, Command, leuko, serve

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
CONNECTIONS = (1, 16, 64)
SECONDS = 6.0  # for each load
WARM_UP_S = 4.0  # BentoML first learns how large its batches should be


@dataclass(frozen=True)
class Peer:
    name: str
    package: str  # name of its environment in .venv-peers
    arguments: Sequence[str]  # PORT stands for the port
    ready: str  # path that answers GET with 200 once the model is loaded


PEERS = (
    Peer("LitServe", "litserve", ["bin/python", "-m", "benchmarks.peers.with_litserve", "PORT"], "/health"),
    Peer(
        "BentoML",
        "bentoml",
        ["bin/bentoml", "serve", "benchmarks.peers.with_bentoml:Cells", "--host", HOST, "--port", "PORT"],
        "/readyz",
    ),
    Peer("Ray Serve", "ray", ["bin/python", "-m", "benchmarks.peers.with_ray", "PORT"], "/docs"),
)


@dataclass(frozen=True)
class Measured:
    name: str
    loads: Sequence[Load]  # by CONNECTIONS
    memory_mib: float | None

    @property
    def failures(self) -> int:
        return sum(one.failures for one in self.loads)


def main() -> int:
    images = draw(CLASSES, 32)
    ours = measure("Leuko, int8", leuko, "/readyz", images)
    int8 = [ask(peer, "openvino", images) for peer in PEERS]
    float32 = [ask(peer, "torch", images) for peer in PEERS]
    console = Console()
    console.print(f"{os.cpu_count()} cores, load by {tool()}", highlight=False)
    console.print(table([ours, *int8, *float32]))
    for index, connections in enumerate(CONNECTIONS):
        best = max(one.loads[index].images_per_second for one in int8)
        ratio = ours.loads[index].images_per_second / best
        console.print(f"{connections} connections, Leuko ÷ the best peer with int8: {ratio:.2f}")
    return 0


def ask(peer: Peer, engine: str, images: Sequence[bytes]) -> Measured:
    return measure(f"{peer.name}, {engine}", partial(command, peer, engine), peer.ready, images)


def command(peer: Peer, engine: str, port: int) -> Sequence[str | Path]:
    program, *rest = peer.arguments
    settings = [f"PEER_ENGINE={engine}", f"PYTHONPATH={ROOT}"]
    arguments = [str(port) if word == "PORT" else word for word in rest]
    return ["env", *settings, ENVIRONMENTS / peer.package / program, *arguments]


def measure(name: str, start: Command, ready: str, images: Sequence[bytes]) -> Measured:
    print(name, "…", file=sys.stderr)
    with serve(start, ready) as server:
        load(HOST, server.port, images, 16, WARM_UP_S)
        loads = [load(HOST, server.port, images, count, SECONDS) for count in CONNECTIONS]
        return Measured(name, loads, server.memory_mib())


def table(lines: Sequence[Measured]) -> Table:
    result = Table("service", "1 connection", "p50 ms", "16", "64", "RSS MiB", "failures")
    for one in lines:
        speeds = [f"{result.images_per_second:.0f}" for result in one.loads]
        memory = "unknown" if one.memory_mib is None else f"{one.memory_mib:.0f}"
        latency = f"{one.loads[0].p50_ms:.1f}"
        result.add_row(one.name, speeds[0], latency, *speeds[1:], memory, str(one.failures))
    return result


if __name__ == "__main__":
    raise SystemExit(main())
