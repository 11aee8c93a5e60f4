"""Closed-loop load on one URL: by wrk if it is installed, else by asyncio streams."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

BOUNDARY = "leuko-bench"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
SCRIPT = Path(__file__).with_name("post.lua")


@dataclass(frozen=True)
class Load:
    """What the clients measured; each sends its next image when it has the response to the last."""

    answers: int
    failures: int  # statuses other than 200; wrk also counts broken connections, asyncio stops at one
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def images_per_second(self) -> float:
        return (self.answers - self.failures) / self.seconds


def tool() -> str:
    return "wrk" if shutil.which("wrk") else "asyncio"


def load(
    host: str, port: int, images: Sequence[bytes], connections: int, seconds: float, pause_s: float = 0.0
) -> Load:
    """Put load on /predict. pause_s: mean of a client's exponential pause before each request."""
    if tool() == "wrk":
        return run_wrk(f"http://{host}:{port}/predict", images, connections, seconds, pause_s)
    return asyncio.run(run_streams(host, port, images, connections, seconds, pause_s))


def run_wrk(url: str, images: Sequence[bytes], connections: int, seconds: float, pause_s: float) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        for index, image in enumerate(images, start=1):
            (Path(folder) / str(index)).write_bytes(form([image]))
        duration = f"{max(1, round(seconds))}s"
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{duration}",
            "--timeout",
            "30s",
            "-s",
            str(SCRIPT),
            url,
        ]
        output = subprocess.run(
            [*command, "--", folder, MULTIPART, str(pause_s)], check=True, capture_output=True, text=True
        ).stdout
    answers, failures, microseconds, p50, p99 = map(float, output.splitlines()[-1].split())
    return Load(int(answers), int(failures), microseconds / 1e6, p50 / 1e3, p99 / 1e3)


@dataclass
class _Tally:
    end: float  # time.perf_counter()
    pause_s: float
    failures: int = 0
    seconds: list[float] = field(default_factory=list)


async def run_streams(
    host: str, port: int, images: Sequence[bytes], connections: int, seconds: float, pause_s: float
) -> Load:
    requests = [request(host, image) for image in images]
    start = time.perf_counter()
    tally = _Tally(start + seconds, pause_s)
    clients = (
        repeat(host, port, requests[n % len(requests) :] + requests, tally) for n in range(connections)
    )
    await asyncio.gather(*clients)
    elapsed = time.perf_counter() - start
    cuts = quantiles(tally.seconds, n=100, method="inclusive")
    return Load(len(tally.seconds), tally.failures, elapsed, cuts[49] * 1e3, cuts[98] * 1e3)


def request(host: str, image: bytes) -> bytes:
    body = form([image])
    headers = f"Host: {host}\r\nContent-Type: {MULTIPART}\r\nContent-Length: {len(body)}\r\n"
    return f"POST /predict HTTP/1.1\r\n{headers}\r\n".encode() + body


def form(images: Sequence[bytes]) -> bytes:
    """Return a multipart body with one part named `files` for each image."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="cell.jpg"\r\n\r\n'.encode()
    )
    return b"".join(head + image + b"\r\n" for image in images) + f"--{BOUNDARY}--\r\n".encode()


async def repeat(host: str, port: int, requests: Sequence[bytes], tally: _Tally) -> None:
    """Send requests over one kept-alive connection."""
    reader, writer = await asyncio.open_connection(host, port)
    turn = 0
    while time.perf_counter() < tally.end:
        if tally.pause_s:
            await asyncio.sleep(random.expovariate(1 / tally.pause_s))
        start = time.perf_counter()
        writer.write(requests[turn % len(requests)])
        tally.failures += await answer(reader) != 200
        tally.seconds.append(time.perf_counter() - start)
        turn += 1
    writer.close()
    await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> int:
    """Read one whole response and return its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    lengths = [int(line.partition(":")[2]) for line in head if line.startswith("content-length:")]
    await reader.readexactly(lengths[0])
    return int(head[0].split()[1])
