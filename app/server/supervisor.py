"""Several server processes on one listener, each with its share of the cores; a dead one is replaced."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Literal

from prometheus_client.multiprocess import mark_process_dead

from app.errors import StartupError
from app.inference.fork_server import prepare
from app.observability.logs import configure_logging
from app.observability.shared_folder import SHARED, hold, restore
from app.observability.shared_values import forget
from app.private import Private, environment
from app.server.ahead import LoadAhead
from app.server.run import Launch, print_address, run
from app.server.signals import end_by_default, insists, stopping, without_stopping
from app.settings import Settings

logger = logging.getLogger(__name__)

METHOD: Literal["fork", "spawn"] = "fork" if sys.platform == "linux" else "spawn"
POLL_S = 0.2  # between checks whether all processes are ready


@dataclass(frozen=True)
class ServerProcess:
    """ready: set by the process once it serves."""

    process: BaseProcess
    ready: Event


class Supervisor:
    """The first signal that stops the service makes all processes drain and stop; a second kills them.

    folder: of the processes' metrics; `SHARED` must name it in the environment. On Linux the processes are
    forked: they share the memory of what this process has imported. It must have no other thread.
    """

    def __init__(self, launch: Launch, address: str, folder: str) -> None:
        self._launch = launch
        self._address = address
        self._folder = folder
        self._processes: dict[int, ServerProcess] = {}
        self._folder_lost = False
        self._stopping = False
        self._status = 0

    def run(self) -> int:
        """Serve until a signal, then return 0; return 1 if a process fails to start while none is ready."""
        if METHOD == "fork":
            share_memory(self._launch.settings)
        with stopping(self._on_signal):
            return self._run()

    def _run(self) -> int:
        for slot in range(self._launch.settings.processes):
            self._start(slot)
        announced = False
        while self._processes:
            connection.wait([server.process.sentinel for server in self._processes.values()], POLL_S)
            self._keep_folder()
            for slot, server in list(self._processes.items()):
                if not server.process.is_alive():
                    self._on_exit(slot, server)
            if not (announced or self._stopping) and self._all_ready():
                print_address(f"{len(self._processes)} processes", self._address)
                announced = True
        return self._status

    def _keep_folder(self) -> None:
        """Make the folder of metrics again if it was deleted; say so once, also if that fails."""
        try:
            lost = restore(self._folder)
        except OSError as error:
            if not self._folder_lost:
                logger.error("the folder of metrics is gone and cannot be made again: %s", error.strerror)
            self._folder_lost = True
        else:
            if lost and not self._folder_lost:
                logger.error("the folder of metrics %s was deleted; it is made again", self._folder)
            self._folder_lost = False

    def _all_ready(self) -> bool:
        return all(server.ready.is_set() for server in self._processes.values())

    def _start(self, slot: int, *, accept_when_ready: bool = False) -> None:
        context = get_context("fork") if METHOD == "fork" else get_context("spawn")
        share = cores_of(slot, self._launch.settings.processes)
        with without_stopping():
            if METHOD == "spawn":
                _start_tracker()
            ready = context.Event()
            arguments = (self._launch, ready, share, accept_when_ready)
            process = context.Process(target=Private(run_server), args=arguments, name=f"service-{slot}")
            process.start()
        self._processes[slot] = ServerProcess(process, ready)
        if self._stopping:  # a signal arrived while the process was being started
            process.terminate()

    def _on_exit(self, slot: int, server: ServerProcess) -> None:
        """Replace a process that has exited; stop if it could not start and no other process is ready."""
        process = server.process
        process.join()
        del self._processes[slot]
        mark_process_dead(process.pid, self._folder)  # type: ignore[no-untyped-call]
        forget(process.pid, self._folder)
        if self._stopping:
            return
        if server.ready.is_set() or any(other.ready.is_set() for other in self._processes.values()):
            logger.error("process %d exited with status %s; replacing it", process.pid, process.exitcode)
            self._start(slot, accept_when_ready=True)
        else:
            logger.critical("process %d failed to start", process.pid)
            self._status = 1
            self._stop()

    def _on_signal(self, sig: int, _: FrameType | None) -> None:
        if self._stopping and not insists(sig):
            return
        if self._stopping:
            for server in self._processes.values():
                server.process.kill()
            self._status = 128 + sig
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        for server in self._processes.values():
            server.process.terminate()


def run_server(launch: Launch, ready: Event, share: Sequence[int], accept_when_ready: bool) -> None:
    """Serve in this process, on the cores of `share`; set `ready` once the application is ready."""
    end_by_default()
    Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)
    elif launch.settings.threads == 0:
        launch = replace(launch, settings=replace(launch.settings, threads=len(share)))
    configure_logging(launch.settings)
    with suppress(OSError):  # a folder that was deleted: the supervisor has said so
        hold(os.environ[SHARED])  # until this process ends, which may be after its supervisor was killed
    launch = replace(launch, load=LoadAhead(launch.load, launch.settings))
    sys.exit(run(launch, lambda _: ready.set(), accept_when_ready=accept_when_ready))


def share_memory(settings: Settings) -> None:
    """Import what each process needs, once, and have the fork server of the decoders ready for all."""
    if settings.engine != "torch" and not Path("/dev/nvidiactl").exists():
        import_module("app.engine.openvino")  # torch cannot be used on a GPU by forked processes
    with suppress(StartupError):  # each process tries again and reports it
        prepare()
    gc.collect()
    gc.freeze()  # else garbage collection in the processes would write to pages that they share


def cores_of(slot: int, processes: int) -> list[int]:
    """Return the cores of one process: neighbouring ones, and as many for each process, give or take one."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if has_affinity else [*range(os.cpu_count() or 1)]
    if processes >= len(cores):
        return [cores[slot % len(cores)]]
    return cores[slot * len(cores) // processes : (slot + 1) * len(cores) // processes]


def _start_tracker() -> None:
    """Start multiprocessing's process that removes semaphores, unless it runs.

    It cannot be made private, so it gets only variables that hold no secrets. Call without other threads.
    """
    ours = dict(os.environ)
    try:
        _replace_environ(environment())
        resource_tracker.ensure_running()
    finally:
        _replace_environ(ours)


def _replace_environ(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _end_with_parent() -> None:
    """Wait until the supervisor ends, however it ends; then stop this process."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
