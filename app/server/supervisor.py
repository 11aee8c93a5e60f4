"""Several services behind one listener, each with its share of the cores; who dies is replaced."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from threading import Thread
from types import FrameType

from prometheus_client.multiprocess import mark_process_dead

from app.observability.logs import configure_logging
from app.observability.metrics import SHARED
from app.server.run import Launch, run, say

logger = logging.getLogger(__name__)

POLL_S = 0.2


@dataclass(frozen=True)
class Member:
    process: SpawnProcess
    ready: Event


def supervise(launch: Launch, address: str) -> int:
    """Until a signal: 0. Until a service cannot start and no other is there: 1."""
    with tempfile.TemporaryDirectory(prefix="leuko-metrics-") as folder:
        # Read by the services as they import the client library, so that /metrics adds them up.
        os.environ[SHARED] = folder
        return Supervisor(launch, address, folder).run()


class Supervisor:
    """The first SIGTERM or SIGINT has every service drain and stop; a second ends them at once."""

    def __init__(self, launch: Launch, address: str, folder: str) -> None:
        self._launch = launch
        self._address = address
        self._folder = folder
        self._members: dict[int, Member] = {}
        self._stopping = False
        self._status = 0

    def run(self) -> int:
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self._on_signal)
        for slot in range(self._launch.settings.processes):
            self._start(slot)
        announced = False
        while self._members:
            connection.wait([member.process.sentinel for member in self._members.values()], POLL_S)
            for slot, member in list(self._members.items()):
                if not member.process.is_alive():
                    self._bury(slot, member)
            if not (announced or self._stopping) and self._all_ready():
                say(f"{len(self._members)} processes", self._address)
                announced = True
        return self._status

    def _all_ready(self) -> bool:
        return all(member.ready.is_set() for member in self._members.values())

    def _start(self, slot: int, *, accept_when_ready: bool = False) -> None:
        ready = get_context("spawn").Event()
        share = cores_of(slot, self._launch.settings.processes)
        arguments = (self._launch, ready, share, accept_when_ready)
        process = get_context("spawn").Process(target=work, args=arguments, name=f"service-{slot}")
        with _without_interrupts():
            process.start()
        self._members[slot] = Member(process, ready)
        if self._stopping:  # the signal came while it was being started
            process.terminate()

    def _bury(self, slot: int, member: Member) -> None:
        process = member.process
        process.join()
        del self._members[slot]
        mark_process_dead(process.pid, self._folder)  # type: ignore[no-untyped-call]
        if self._stopping:
            return
        if member.ready.is_set() or any(other.ready.is_set() for other in self._members.values()):
            logger.error("process %d ended with %s and is replaced", process.pid, process.exitcode)
            self._start(slot, accept_when_ready=True)
        else:
            logger.critical("process %d could not start", process.pid)
            self._status = 1
            self._stop()

    def _on_signal(self, sig: int, _: FrameType | None) -> None:
        if self._stopping:
            for member in self._members.values():
                member.process.kill()
            self._status = 128 + sig
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        for member in self._members.values():
            member.process.terminate()


def work(
    launch: Launch,
    ready: Event,
    share: Sequence[int],
    accept_when_ready: bool,
) -> None:
    """One service, in a process of its own."""
    Thread(target=_end_with_parent, name="orphanage", daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)
    elif launch.settings.threads == 0:
        launch = replace(launch, settings=replace(launch.settings, threads=len(share)))
    configure_logging(launch.settings)
    sys.exit(run(launch, lambda _: ready.set(), accept_when_ready=accept_when_ready))


def cores_of(slot: int, processes: int) -> list[int]:
    """Neighbouring cores, as many for each process as for the others, but for one."""
    known = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if known else [*range(os.cpu_count() or 1)]
    if processes >= len(cores):
        return [cores[slot % len(cores)]]
    return cores[slot * len(cores) // processes : (slot + 1) * len(cores) // processes]


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """What starts inside never sees the terminal's Ctrl-C: it is the supervisor who ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
