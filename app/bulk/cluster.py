"""Parts to workers by Ray Data, on this machine or on a cluster; a worker that is lost is replaced."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of this machine

import ray
import ray.data

from app.bulk.destination import Written
from app.bulk.plan import Part, dump, parse
from app.bulk.worker import Scorer, unpack
from app.vision.limits import ImageLimits

THREADS = 4  # cores of a worker: Python feeds hardly more
STORE_BYTES = 256 * 2**20  # of the embedded Ray: the bundle, and what parts there are
EMBEDDED = "local"


@dataclass(frozen=True)
class Job:
    """What every worker has to know."""

    source: str
    destination: str
    engine: str
    threads: int  # cores of each worker
    limits: ImageLimits
    patience_s: float  # for decoding one image


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """address: of a cluster; None starts Ray within this process, for as long as it is needed."""
    options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if address is None:
        # Others on this machine stay out: with a token Ray asks for it of itself.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(address or EMBEDDED, **options)
    for handler in logging.getLogger("ray.data").handlers:
        handler.setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours counts images
    try:
        yield
    finally:
        ray.shutdown()


def score(parts: Mapping[int, Part], job: Job, files: Mapping[str, bytes], workers: int) -> Iterator[Written]:
    """What was written of each of `parts`, as they are done; files: of the bundle, by `worker.pack`."""
    items = [{"index": index, "part": dump(part)} for index, part in parts.items()]
    found = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _Worker,  # type: ignore[arg-type]  # made once, called for each part
        fn_constructor_kwargs={"job": job, "files": ray.put(dict(files))},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        # Half of what it takes, so that those of a lost machine find a place on what is left.
        num_cpus=job.threads / 2,
    )
    for row in found.iter_rows():
        yield Written(row["rows"], row["errors"])


def divide(most: int | None = None) -> tuple[int, int]:
    """How many workers, and how many threads each has; most: workers, where that was asked for."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cores = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    cores = [count for count in cores if count]
    threads = min(THREADS, *cores) if cores else 1
    return most or sum(count // threads for count in cores), threads


class _Worker:
    """Made by Ray, in a process of its own."""

    def __init__(self, job: Job, files: Any) -> None:
        held: Mapping[str, bytes] = ray.get(files)
        classifier = unpack(held, job.engine, job.threads)
        self._scorer = Scorer(classifier, job.source, job.destination, job.limits, job.patience_s)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        written = self._scorer.score(row["index"], parse(row["part"]))
        return {"rows": written.rows, "errors": written.errors}
