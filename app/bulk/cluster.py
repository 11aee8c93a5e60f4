"""Parts to workers by Ray Data, on this machine or on a cluster; a worker that is lost is replaced."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socket import gethostname
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of this machine

import ray
import ray.data
from pyarrow import ArrowException
from ray._private import ray_constants
from ray.exceptions import RayError

from app.bulk.destination import Written
from app.bulk.plan import Part, dump, parse
from app.bulk.worker import Scorer, unpack
from app.errors import EngineError, StartupError
from app.imaging.limits import ImageLimits
from app.units import MIB

THREADS = 4  # cores of a worker: Python feeds hardly more
STORE_BYTES = 256 * MIB  # of the embedded Ray: the bundle, and what parts there are
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


@dataclass(frozen=True)
class Unread:
    """A part of which nothing could be read, or written."""

    why: str


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """address: of a cluster; None starts Ray on this machine, for as long as it is needed.

    Raises StartupError.
    """
    options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if address is None:
        # Others on this machine stay out: with a token Ray asks for it of itself.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    # Or it listens on all addresses. What of this is public is a variable that is read when Ray is imported.
    ray_constants.ENABLE_RAY_CLUSTER = address is not None
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(address or EMBEDDED, **options)
    except Exception as error:  # Ray raises no narrower one where a part of it does not start
        raise StartupError(f"Ray cannot be used: {error}") from error
    for handler in logging.getLogger("ray.data").handlers:
        handler.setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours counts images
    try:
        yield
    finally:
        ray.shutdown()


def score(
    parts: Mapping[int, Part], job: Job, files: Mapping[str, bytes], workers: int
) -> Iterator[Written | Unread]:
    """What came of each of `parts`, as they are done; files: of the bundle, by `worker.pack`.

    Raises EngineError where workers cannot go on.
    """
    items = [{"index": index, "part": dump(part)} for index, part in parts.items()]
    found = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _Worker,  # type: ignore[arg-type]  # made once, called for each part
        fn_constructor_kwargs={"job": job, "files": ray.put(dict(files))},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        # Half of what it takes, so that those of a lost machine find a place on what is left.
        num_cpus=job.threads / 2,
    )
    try:
        for row in found.iter_rows():
            yield Unread(row["why"]) if row["why"] else Written(row["rows"], row["errors"])
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        raise EngineError(f"the workers cannot go on: {str(cause).strip().splitlines()[-1]}") from error


def nodes() -> list[int]:
    """The cores of each machine that has any to give."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cores = [int(node["Resources"].get("CPU", 0)) for node in found if node["Alive"]]
    return [count for count in cores if count]


def divide(cores: Sequence[int], workers: int | None = None, threads: int = 0) -> tuple[int, int]:
    """How many workers, and how many threads each has; given: what was asked for."""
    threads = threads or min([THREADS, *cores])
    return workers or max(1, sum(count // threads for count in cores)), threads


class _Worker:
    """Made by Ray, in a process of its own."""

    def __init__(self, job: Job, files: Any) -> None:
        held: Mapping[str, bytes] = ray.get(files)
        classifier = unpack(held, job.engine, job.threads)
        self._scorer = Scorer(classifier, job.source, job.destination, job.limits, job.patience_s)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = parse(row["part"])
        try:
            written = self._scorer.score(row["index"], part)
        except (OSError, ArrowException, EngineError) as error:
            return {"rows": 0, "errors": 0, "why": f"{part.title} on {gethostname()}: {error}"}
        return {"rows": written.rows, "errors": written.errors, "why": ""}
