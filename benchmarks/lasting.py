"""The long scenarios of `soak`: good clients beside bad ones, and an archive of 100,000 images."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import time
import zipfile
from asyncio import StreamReader, StreamWriter
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from benchmarks.client import MULTIPART, form
from benchmarks.faults import Fault, archive_form, ask, commit, connected, faults, message
from benchmarks.ratios import TOLERANCE, labelled_zip
from benchmarks.server import HOST, Server
from benchmarks.watching import (
    Line,
    count_line,
    fresh_peak,
    listed,
    memory_line,
    none_of,
    peak_mib,
    sample,
    statuses,
    watching,
)

CLIENTS = 16
BAD = 0.1  # share of bad requests
TOGETHER = 4  # images in one form
WARM_UP_S = 10.0
UNWANTED_S = 5.0  # after which an abandoned request holds no resources
SPARE = 2 * CLIENTS  # descriptors of clients that connected or left just before a sample
LAZY_THREADS = min(32, (os.cpu_count() or 1) + 4)  # asyncio's default executor, which starts them as needed
ENTRIES = 100_000  # of the archive
ARCHIVE_MIB = 50.0  # allowed for evaluating the archive, beside the archive itself

Probabilities = Mapping[str, float]


@dataclass(frozen=True)
class Material:
    images: Sequence[bytes]
    labels: Sequence[str]
    minutes: float


@dataclass(frozen=True)
class Good:
    """A good request. right: whether the response body is the same as without other clients."""

    kind: str
    sent: bytes
    right: Callable[[Any], bool]


@dataclass
class Tally:
    sent: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)


# --- soak -------------------------------------------------------------------------------------------


async def soak(server: Server, material: Material) -> list[Line]:
    archive = labelled_zip(material.images, material.labels, 1)
    good = await learn(server.port, material.images, archive)
    bad = faults(material.images[0], archive)

    async def run(seconds: float) -> Tally:
        tally, end = Tally(), time.monotonic() + seconds
        await asyncio.gather(*(take_turns(server.port, good, bad, tally, end) for _ in range(CLIENTS)))
        return tally

    await run(WARM_UP_S)
    await asyncio.sleep(UNWANTED_S)
    before, counted = sample(server), statuses(server)
    async with watching(server) as samples:
        tally = await run(60 * material.minutes)
    await asyncio.sleep(UNWANTED_S)
    after, answered = sample(server), statuses(server) - counted
    failed = {status: number for status, number in answered.items() if status >= 500}
    share = tally.injected.total() / (tally.injected.total() + tally.sent.total())
    return [
        Line("good requests", "", listed(tally.sent)),
        Line("faults", f"{BAD:.0%}", f"{share:.0%}: {listed(tally.injected)}"),
        Line("responses (499: client gone)", "", listed(answered)),
        none_of("good requests with a wrong response", tally.wrong),
        Line(
            "faults with another status than documented", "0", listed(tally.unexpected), not tally.unexpected
        ),
        none_of("5xx", failed),
        memory_line(samples),
        count_line("descriptors", samples, lambda one: one.files, SPARE),
        count_line("threads", samples, lambda one: one.threads, LAZY_THREADS),
        left_line("descriptors", before.files, after.files, 0),
        left_line("threads", before.threads, after.threads, LAZY_THREADS),
        Line("tasks", "", "not exposed"),
    ]


def left_line(what: str, before: int, after: int, allowed: int) -> Line:
    more = after - before
    return Line(f"{what} after all clients left − before", f"≤ {allowed}", f"{more}", more <= allowed)


async def learn(port: int, images: Sequence[bytes], archive: bytes) -> list[Good]:
    """Return requests of each kind; the right responses are those that the service gives without load."""
    async with connected(port) as (reader, writer):

        async def answer(sent: bytes) -> Any:
            reply = await ask(reader, writer, sent)
            if reply.status != 200:
                raise SystemExit(f"the service answered {reply.status} to a good request, before any load")
            return json.loads(reply.body)

        bare = [message("/predict", image, "image/jpeg") for image in images]
        probabilities = [(await answer(sent))["predictions"][0]["probabilities"] for sent in bare]
        evaluation = message("/evaluate", archive_form(archive))
        loss = (await answer(evaluation))["log_loss"]
    if len({json.dumps(values) for values in probabilities}) < len(images):
        raise SystemExit("two images have the same probabilities, so a mix-up could not be detected")
    good = [Good("an image", sent, same([values])) for sent, values in zip(bare, probabilities, strict=True)]
    for start in range(len(images)):
        chosen = [(start + step) % len(images) for step in range(TOGETHER)]
        sent = message("/predict", form([images[index] for index in chosen]))
        good.append(Good(f"form of {TOGETHER}", sent, same([probabilities[index] for index in chosen])))

    def scored(report: Any) -> bool:
        return bool(report["n"] == len(images) and abs(report["log_loss"] - loss) < TOLERANCE)

    return [*good, Good("/evaluate", evaluation, scored)]


def same(expected: Sequence[Probabilities]) -> Callable[[Any], bool]:
    def right(answer: Any) -> bool:
        received = [prediction["probabilities"] for prediction in answer["predictions"]]
        return len(received) == len(expected) and all(map(close, received, expected))

    return right


def close(received: Probabilities, expected: Probabilities) -> bool:
    return all(abs(received[label] - expected[label]) < TOLERANCE for label in expected)


async def take_turns(
    port: int, good: Sequence[Good], bad: Mapping[str, Fault], tally: Tally, end: float
) -> None:
    while time.monotonic() < end:
        async with connected(port) as (reader, writer):
            while time.monotonic() < end and random.random() >= BAD:
                if not await behave(reader, writer, random.choice(good), tally):
                    break
        await misbehave(port, random.choice([*bad.items()]), tally)


async def behave(reader: StreamReader, writer: StreamWriter, good: Good, tally: Tally) -> bool:
    """Send a good request and check its response. Return whether the connection stays open."""
    tally.sent[good.kind] += 1
    try:
        reply = await ask(reader, writer, good.sent)
    except (OSError, EOFError, TimeoutError) as error:
        tally.wrong[f"{good.kind}: {type(error).__name__}"] += 1
        return False
    if reply.status != 200:
        tally.wrong[f"{good.kind}: {reply.status}"] += 1
    elif not good.right(json.loads(reply.body)):
        tally.wrong[f"{good.kind}: different body"] += 1
    return reply.headers.get("connection") != "close"


async def misbehave(port: int, chosen: tuple[str, Fault], tally: Tally) -> None:
    kind, fault = chosen
    tally.injected[kind] += 1
    try:
        status = await commit(port, fault)
    except (OSError, EOFError, TimeoutError) as error:
        tally.unexpected[f"{kind}: {type(error).__name__}"] += 1
        return
    if status != fault.status:
        tally.unexpected[f"{kind}: {status}"] += 1


# --- archive ----------------------------------------------------------------------------------------


async def archive(server: Server, material: Material) -> list[Line]:
    async for _ in events(server.port, tiny_archive(material.labels, 100)):
        pass  # the first evaluation loads modules, which stay in memory
    body = tiny_archive(material.labels, ENTRIES)
    before = fresh_peak(server)
    received = classified = 0.0
    report: Any = None
    async for event in events(server.port, body):
        if not received:
            received = fresh_peak(server)
        if event.get("done", ENTRIES) < ENTRIES:  # the report has no `done`
            classified = peak_mib(server)
        report = event
    peak = peak_mib(server)
    right = (report.get("n"), report.get("accuracy"), report.get("errors")) == (ENTRIES, 1.0, [])
    here = f"{report['images_per_second']:.0f} images/s" if right else json.dumps(report)[:200]
    return [
        Line(f"{ENTRIES:,} images, engine without a network", "all correct", here, right),
        Line("size of the archive, MiB", "", f"{len(body) / 2**20:.0f}"),
        Line("MiB before, after receiving", "", f"{before:.0f} {received:.0f}"),
        Line(
            "peak MiB while classifying − after receiving",
            f"≤ {ARCHIVE_MIB:.0f}",
            f"{classified - received:.0f}",
            classified - received <= ARCHIVE_MIB,
        ),
        Line(
            "peak MiB until the response − after receiving",
            f"≤ {ARCHIVE_MIB:.0f}",
            f"{peak - received:.0f}",
            peak - received <= ARCHIVE_MIB,
        ),
        Line("MiB a minute later", "", f"{await later(server):.0f}"),
    ]


async def later(server: Server) -> float:
    await asyncio.sleep(60)
    return sample(server).mib


async def events(port: int, body: bytes) -> Any:
    """Yield the progress events, then the report."""
    headers = {"Content-Type": MULTIPART, "Accept": "text/event-stream"}
    async with (
        httpx.AsyncClient(timeout=600) as client,
        client.stream(
            "POST", f"http://{HOST}:{port}/evaluate", content=archive_form(body), headers=headers
        ) as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def tiny_archive(labels: Sequence[str], entries: int) -> bytes:
    """Return a ZIP of PNG and JPEG images whose grey tells the fake engine their class."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        drawn = [
            (label, kind, flat(64 * index + shade, kind))
            for index, label in enumerate(labels)
            for shade in range(4, 60, 8)
            for kind in ("png", "jpeg")
        ]
        for number in range(entries):
            label, kind, data = drawn[number % len(drawn)]
            archive.writestr(f"{label}/{number:06}.{kind}", data)
    return file.getvalue()


def flat(grey: int, kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (grey, grey, grey)).save(file, kind)
    return file.getvalue()
