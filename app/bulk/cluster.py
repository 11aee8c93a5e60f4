"""Runs workers with Ray Data, here or on a cluster; lost workers are replaced, their parts retried."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from socket import gethostname
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.data
from pyarrow import ArrowException
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants
from ray.exceptions import RayError

from app.archives.image_files import Kind, LeftOut
from app.bulk.destination import ScoredPart
from app.bulk.plan import Part, dump, parse
from app.bulk.worker import Scorer, unpack
from app.errors import EngineError, StartupError
from app.imaging.limits import ImageLimits
from app.units import MIB

THREADS = 4  # cores of one worker: decoding in Python keeps hardly more busy
STORE_BYTES = 256 * MIB  # object store of the local Ray: holds the bundle and the list of parts
EMBEDDED = "local"


@dataclass(frozen=True)
class Job:
    """What every worker needs. source, destination: paths or URLs."""

    source: str
    destination: str
    engine: str
    threads: int  # cores of each worker
    limits: ImageLimits
    decode_timeout_s: float  # for one image
    max_cells: int | None = None  # classify all leukocytes of each image; None: one


@dataclass(frozen=True)
class FailedPart:
    """A part that could not be read or written as a whole."""

    why: str


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address`, or start Ray on this machine for the time of the context.

    Raise StartupError.
    """
    options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    with ExitStack() as stack:
        if address is None:
            options |= _embedded(stack)
        # Without this, Ray listens on all addresses. The public environment variable is read only at import.
        ray_constants.ENABLE_RAY_CLUSTER = address is not None
        logging.getLogger("ray").setLevel(logging.CRITICAL)  # it reports the port below as an error
        try:
            ray.init(address or EMBEDDED, **options)
        except Exception as error:  # Ray raises no narrower type when it fails to start
            raise StartupError(f"Ray cannot be started or reached: {error}") from error
        stack.callback(ray.shutdown)
        logging.getLogger("ray").setLevel(logging.ERROR)
        for handler in logging.getLogger("ray.data").handlers:
            handler.setLevel(logging.ERROR)
        # `command` shows a progress bar that counts images.
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield


def _embedded(stack: ExitStack) -> dict[str, Any]:
    """Return Ray's options for this machine alone: nothing leaves it, nothing stays behind."""
    # Keeps other users of this machine out: if the variable is set, Ray requires the token.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())
    # For Ray's other processes, which would ask the kernel for the route to a public address.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # A short prefix: the path of a Unix socket, below this folder, has at most 107 bytes. Ray's processes may
    # still be writing when it is deleted.
    folder = TemporaryDirectory(
        prefix="leuko-",
        dir=get_default_system_temp_dir(),  # type: ignore[no-untyped-call]
        ignore_cleanup_errors=True,
    )
    return {
        "include_dashboard": False,
        # Even so, Ray starts the dashboard's process, which asks the metadata service of the cloud
        # (169.254.169.254) where it runs, usage statistics on or off. With this port, it does not start.
        "dashboard_port": -1,
        "object_store_memory": STORE_BYTES,
        "_temp_dir": stack.enter_context(folder),
    }


def score(
    parts: Mapping[int, Part], job: Job, files: Mapping[str, bytes], workers: int
) -> Iterator[ScoredPart | FailedPart]:
    """Yield the result of each part as it completes. files: the bundle, from `worker.pack`.

    Raise EngineError if the workers fail for good.
    """
    items = [{"index": index, "part": dump(part)} for index, part in parts.items()]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _Worker,  # type: ignore[arg-type]  # constructed once, called for each part
        fn_constructor_kwargs={"job": job, "files": ray.put(dict(files))},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        # Half of what a worker uses, so that the workers of a lost machine fit on the remaining ones.
        num_cpus=job.threads / 2,
    )
    try:
        for row in results.iter_rows():
            yield FailedPart(row["why"]) if row["why"] else _scored(row)
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        raise EngineError(f"the workers failed: {str(cause).strip().splitlines()[-1]}") from error


def cores_of_machines() -> list[int]:
    """Return the number of cores of each live machine that offers any."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cores = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    return [count for count in cores if count]


def divide(cores: Sequence[int], workers: int | None = None, threads: int = 0) -> tuple[int, int]:
    """Return the number of workers, and of threads for each.

    cores: of each machine. workers, threads: as requested; None and 0 mean a choice by the cores.
    """
    threads = threads or min([THREADS, *cores])
    return workers or max(1, sum(count // threads for count in cores)), threads


class _Worker:
    """A scorer in a process that Ray starts."""

    def __init__(self, job: Job, files: Any) -> None:
        bundle: Mapping[str, bytes] = ray.get(files)
        classifier = unpack(bundle, job.engine, job.threads)
        self._scorer = Scorer(
            classifier, job.source, job.destination, job.limits, job.decode_timeout_s, job.max_cells
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = parse(row["part"])
        try:
            scored = self._scorer.score(row["index"], part)
        except Exception as error:  # also a defect of Leuko must cost one part, not the run
            expected = isinstance(error, OSError | ArrowException | EngineError)
            why = f"{error}" if expected else f"{type(error).__name__}: {error}"
            return {"rows": 0, "errors": 0, "left_out": "", "why": f"{part.title} on {gethostname()}: {why}"}
        left_out = json.dumps({kind.name: count for kind, count in scored.left_out.items()})
        return {"rows": scored.rows, "errors": scored.errors, "left_out": left_out, "why": ""}


def _scored(row: Mapping[str, Any]) -> ScoredPart:
    left_out = {Kind[name]: count for name, count in json.loads(row["left_out"]).items()}
    return ScoredPart(row["rows"], row["errors"], LeftOut(left_out))
