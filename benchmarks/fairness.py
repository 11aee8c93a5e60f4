"""How long a caller waits for single images, alone and while another caller floods the service.

The two callers are two addresses, 127.0.0.1 and 127.0.0.2, or two keys with --keys. In turn: the quiet caller
alone, then the same beside the flood. Run: python -m benchmarks.fairness
"""

from __future__ import annotations

import argparse
import http.client
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median, quantiles

from app.edge.keys import add_key
from app.engine.bundle import CLASSES
from benchmarks.client import MULTIPART, form
from benchmarks.engine import draw
from benchmarks.server import HOST, serve

CONNECTIONS, IMAGES = 8, 64  # of the flood; images in each request
TARGET = 3.0  # p99 under the flood ÷ alone
FILL_S = 2.0  # until the flood has filled the queue
PATIENCE_S = 120


@dataclass(frozen=True)
class Caller:
    port: int
    address: str
    key: str | None = None

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self.port, PATIENCE_S, source_address=(self.address, 0))

    def send(self, connection: http.client.HTTPConnection, body: bytes) -> http.client.HTTPResponse:
        headers = {"Content-Type": MULTIPART} | ({"X-API-Key": self.key} if self.key else {})
        connection.request("POST", "/predict", body, headers)
        response = connection.getresponse()
        response.read()
        return response


@dataclass
class Tally:
    """What one caller was answered. images: classified."""

    images: int = 0
    refused: int = 0
    seconds: list[float] = field(default_factory=list)

    def ms(self, percent: int) -> float:
        return 1000 * quantiles(self.seconds, n=100, method="inclusive")[percent - 1]


def quiet(caller: Caller, images: Sequence[bytes], seconds: float, pause_s: float) -> Tally:
    """Send one image after another."""
    tally, connection = Tally(), caller.connect()
    end, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        time.sleep(pause_s)
        body = form([images[number % len(images)]])
        began = time.perf_counter()
        response = caller.send(connection, body)
        tally.seconds.append(time.perf_counter() - began)
        tally.images += response.status == 200
        tally.refused += response.status != 200
        number += 1
    connection.close()
    return tally


@contextmanager
def flood(caller: Caller, images: Sequence[bytes]) -> Iterator[Tally]:
    """Send many images on many connections until the block ends; the tally is complete then.

    In a process of its own, so that it does not hold up the threads of the quiet caller.
    """
    tally, spawning = Tally(), get_context("spawn")
    began, stop, counts = spawning.Event(), spawning.Event(), spawning.SimpleQueue()
    process = spawning.Process(target=send_until, args=(caller, images, began, stop, counts))
    process.start()
    began.wait()
    try:
        yield tally
    finally:
        stop.set()
        tally.images, tally.refused = counts.get()
        process.join()


def send_until(
    caller: Caller, images: Sequence[bytes], began: Event, stop: Event, counts: SimpleQueue[tuple[int, int]]
) -> None:
    body = form([images[number % len(images)] for number in range(IMAGES)])
    began.set()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        answers = list(pool.map(lambda _: send(caller, body, stop), range(CONNECTIONS)))
    counts.put((IMAGES * sum(good for good, _ in answers), sum(refused for _, refused in answers)))


def send(caller: Caller, body: bytes, stop: Event) -> tuple[int, int]:
    """Return how many requests were answered and how many refused; wait as long as a refusal says."""
    good = refused = 0
    while not stop.is_set():
        connection = caller.connect()
        response = caller.send(connection, body)
        connection.close()
        good += response.status == 200
        refused += response.status != 200
        if response.status == 429:
            stop.wait(float(response.headers["Retry-After"]))
    return good, refused


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement [%(default)s]")
    parser.add_argument("--runs", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds before each image [%(default)s]")
    parser.add_argument("--keys", action="store_true", help="two keys instead of two addresses")
    arguments = parser.parse_args(argv)
    images = draw(CLASSES, 32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys"
        keys = [add_key(file, id, ["predict"]) if arguments.keys else None for id in ("quiet", "flood")]
        environ = {"LEUKO_KEYS": str(file)} if arguments.keys else {}
        with serve(environ=environ) as server:
            light = Caller(server.port, "127.0.0.1", keys[0])
            heavy = Caller(server.port, "127.0.0.1" if arguments.keys else "127.0.0.2", keys[1])
            measure(light, heavy, images, arguments)


def measure(light: Caller, heavy: Caller, images: Sequence[bytes], arguments: argparse.Namespace) -> None:
    with flood(heavy, images) as alone:
        time.sleep(arguments.seconds)
    print(
        f"the flood alone: {alone.images / arguments.seconds:.0f} images/s, {alone.refused} requests refused"
    )
    print(
        f"{'quiet caller, ms':<18}{'p50 alone':>11}{'flood':>8}{'÷':>6}"
        f"{'p99 alone':>11}{'flood':>8}{'÷':>6}{'refused':>9}"
    )
    ratios = []
    for run in range(1, arguments.runs + 1):
        before = quiet(light, images, arguments.seconds, arguments.pause)
        with flood(heavy, images) as flooding:
            time.sleep(FILL_S)
            under = quiet(light, images, arguments.seconds, arguments.pause)
        ratios.append(under.ms(99) / before.ms(99))
        cells = "".join(
            f"{before.ms(p):11.1f}{under.ms(p):8.1f}{under.ms(p) / before.ms(p):6.1f}" for p in (50, 99)
        )
        rate = flooding.images / (arguments.seconds + FILL_S)
        print(
            f"run {run:<14}{cells}{before.refused + under.refused:9}   flood {rate:.0f} images/s", flush=True
        )
    print(f"median of p99 under the flood ÷ alone: {median(ratios):.1f}; target at most {TARGET:g}")


if __name__ == "__main__":
    main()
