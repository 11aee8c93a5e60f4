"""Long runs: a service beside slow clients, overloaded, and beside bad clients. Exit status 1 on failure."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, quantiles
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from app.settings import Settings
from benchmarks.client import form, load, tool
from benchmarks.engine import draw, introduce
from benchmarks.faults import Crowd, ask, connected, message, slow_clients, stay_slow
from benchmarks.lasting import Material, archive, soak
from benchmarks.server import HOST, Server, is_ready, leuko, serve
from benchmarks.watching import Line, listed, memory_line, none_of, sample, statuses, watching
from tests.running import FAKE

IMAGES = 32
SLOW = 500
SLOW_S = 30.0  # of load while the slow clients are connected
BODY_S, STALL_S = (
    20,
    15,
)  # shorter than the defaults, so that slow clients are closed and reconnect during the load
GOOD = 4  # good clients beside the slow ones
CROWD = 1000  # clients in an overload; more than the queue holds
OVERLOAD = 5.0  # times the capacity of the service
OVERLOAD_S = 60.0
ASKING = 4  # more clients, whose 429 responses are timed
REFUSED_MS = 100.0

MARKS = {None: "", True: "kept", False: "[bold red]BROKEN[/]"}

Command = Callable[[int], Sequence[str | Path]]
Scenario = Callable[[Server, Material], Coroutine[None, None, list[Line]]]


def main() -> int:
    args = parse()
    console = Console()
    _, classifier = introduce(console, f", load by {tool()}")
    labels = classifier.bundle.labels
    del classifier  # so that its threads and memory do not slow the service
    material = Material(draw(labels, IMAGES), labels, args.minutes)
    table = Table("measure", "promised", "result", "", title=f"soak of {args.minutes:g} minutes")
    kept = True
    for name in args.only or SCENARIOS:
        lines = run(*SCENARIOS[name], material)
        table.add_row(f"[bold]{name}[/]")
        for line in lines:
            table.add_row(line.measure, line.promised, line.here, MARKS[line.kept])
        table.add_section()
        kept = kept and not any(line.kept is False for line in lines)
    console.print(table)
    return 0 if kept else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="length of the scenario soak [%(default)s]"
    )
    parser.add_argument(
        "--only", choices=[*SCENARIOS], nargs="+", metavar="NAME", help=f"scenarios: {', '.join(SCENARIOS)}"
    )
    return parser.parse_args()


def run(scenario: Scenario, command: Command, material: Material) -> list[Line]:
    """Run a scenario against a service of its own; append what its log shows."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with serve(lambda port: logged(command(port), log)) as server:
            lines = asyncio.run(scenario(server, material))
            alive = is_ready(f"http://{HOST}:{server.port}/readyz")
        text = log.read_text()
    tracebacks = text.count("Traceback")
    if tracebacks:
        sys.stderr.write(text)
    return [
        *lines,
        Line("ready at the end", "yes", "yes" if alive else "no", alive),
        Line("lines in the log", "", str(text.count("\n"))),
        Line("tracebacks in the log", "0", str(tracebacks), not tracebacks),
    ]


def logged(command: Sequence[str | Path], log: Path) -> Sequence[str | Path]:
    return ["sh", "-c", 'log=$0; exec "$@" 2>"$log"', log, *command]


# --- slow -------------------------------------------------------------------------------------------


async def slow(server: Server, material: Material) -> list[Line]:
    async def p99_ms(seconds: float) -> float:
        result = await asyncio.to_thread(load, HOST, server.port, material.images, GOOD, seconds)
        failures.append(result.failures)
        return result.p99_ms

    failures: list[int] = []
    await p99_ms(2.0)
    before, files = await p99_ms(SLOW_S / 2), sample(server).files
    crowd = Crowd()
    kinds = slow_clients(Settings().head_timeout_s, BODY_S, STALL_S)
    clients = [
        asyncio.create_task(stay_slow(server.port, kind, kinds[kind], crowd))
        for kind, _ in zip([*kinds] * SLOW, range(SLOW), strict=False)
    ]
    await asyncio.sleep(2.0)
    beside, held = await p99_ms(SLOW_S), sample(server).files
    opened = crowd.open
    crowd.over = True
    await asyncio.gather(*clients)
    after = await p99_ms(SLOW_S / 2)
    alone = mean([before, after])
    left = sample(server).files
    return [
        Line("slow clients at a time; open descriptors", f"{SLOW}", f"{opened}; {held}", opened == SLOW),
        Line(f"p99 of {GOOD} good clients alone, before and after, ms", "", f"{before:.0f} {after:.0f}"),
        Line("their p99 beside slow clients ÷ alone", "< 2", f"{beside / alone:.2f}", beside / alone < 2),
        Line("their failures", "0", f"{sum(failures)}", not any(failures)),
        Line("slow clients closed in time", "", listed(crowd.closed)),
        none_of("slow clients closed too early", crowd.early),
        none_of("slow clients closed late or never", crowd.late),
        Line("descriptors afterwards − before", "≤ 0", f"{left - files:+d}", left <= files),
    ]


# --- overload ---------------------------------------------------------------------------------------


@dataclass
class Asked:
    seconds: dict[int, list[float]] = field(default_factory=dict)  # by status
    without_retry_after: int = 0  # responses 429 without Retry-After


async def overload(server: Server, material: Material) -> list[Line]:
    async def loaded(clients: int, seconds: float, pause_s: float = 0.0) -> float:
        result = await asyncio.to_thread(load, HOST, server.port, material.images, clients, seconds, pause_s)
        return result.images_per_second

    await loaded(64, 2.0)
    first = await loaded(64, OVERLOAD_S / 6)
    before, counted = sample(server).mib, statuses(server)
    asked, end = Asked(), time.monotonic() + OVERLOAD_S
    async with watching(server) as samples:
        crowd = asyncio.create_task(loaded(CROWD, OVERLOAD_S, CROWD / (OVERLOAD * first)))
        await asyncio.gather(*(time_refusals(server, material.images, asked, end) for _ in range(ASKING)))
        goodput = await crowd
    goodput += len(asked.seconds.get(200, [])) / OVERLOAD_S
    await asyncio.sleep(5.0)
    answered, after = statuses(server) - counted, sample(server).mib
    peak = mean([first, await loaded(64, OVERLOAD_S / 6)])
    refused = asked.seconds.get(429, [])
    # wrk disconnects at the end, even while it waits for responses.
    strange = {status: number for status, number in answered.items() if status not in (200, 429, 499)}
    return [
        Line("peak at 64 connections, images/s", "", f"{peak:.0f}"),
        Line("goodput at 5 × that ÷ peak", "≥ 0.90", f"{goodput / peak:.2f}", goodput / peak >= 0.9),
        Line("responses (499: client gone)", "", listed(answered)),
        none_of("responses other than 200, 429 and 499", strange),
        Line("429 p50, p99, max in ms", f"p99 < {REFUSED_MS:.0f}", *refusal_times(refused)),
        Line("number of 429", "", str(len(refused))),
        Line("429 without Retry-After", "0", str(asked.without_retry_after), not asked.without_retry_after),
        Line("MiB before, after", "", f"{before:.0f} {after:.0f}"),
        memory_line(samples),
    ]


async def time_refusals(server: Server, images: Sequence[bytes], asked: Asked, end: float) -> None:
    async with connected(server.port) as (reader, writer):
        while time.monotonic() < end:
            sent = message("/predict", form([random.choice(images)]))
            began = time.perf_counter()
            reply = await ask(reader, writer, sent)
            asked.seconds.setdefault(reply.status, []).append(time.perf_counter() - began)
            if reply.status == 429:
                asked.without_retry_after += not reply.headers.get("retry-after", "").isdigit()
            await asyncio.sleep(random.expovariate(10))


def refusal_times(seconds: Sequence[float]) -> tuple[str, bool]:
    if len(seconds) < 2:
        return "no request was refused", False
    cuts = quantiles(seconds, n=100, method="inclusive")
    p50, p99, most = 1e3 * cuts[49], 1e3 * cuts[98], 1e3 * max(seconds)
    return f"{p50:.0f} {p99:.0f} {most:.0f}", p99 < REFUSED_MS


SCENARIOS: dict[str, tuple[Scenario, Command]] = {
    "slow": (
        slow,
        lambda port: [*leuko(port), "--body-timeout-s", str(BODY_S), "--stall-timeout-s", str(STALL_S)],
    ),
    "overload": (overload, leuko),
    "soak": (soak, leuko),
    "archive": (archive, lambda port: [sys.executable, "-c", FAKE, *leuko(port)[1:]]),
}


if __name__ == "__main__":
    raise SystemExit(main())
