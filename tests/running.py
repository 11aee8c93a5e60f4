"""`leuko serve` in a process of its own, as an operator starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import httpx
import pytest

from benchmarks.server import family, field

ROOT = Path(__file__).parents[1]
PATIENCE_S = 60  # of a test, with a machine that does much else
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
FAKE = """
import sys; from app.cli.main import main; from tests.fake_classifier import load; sys.exit(main(load=load))
"""
REAL = "import sys; from app.cli.main import main; sys.exit(main())"


# Below the ports that Linux gives to whoever asks for any, so that a port that is found free stays free.
# Test processes that run at the same time begin at different ones.
_PORTS = cycle(range(20_000 + os.getpid() % 100 * 100, 32_000))


def free_port() -> int:
    """Return a port on which nothing listens, another one each time; for what has to know it beforehand."""
    for port in _PORTS:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError("a cycle does not end")


@contextmanager
def serving(
    script: str,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    prepare: Callable[[], object] | None = None,
    stderr: int = subprocess.PIPE,
) -> Iterator[subprocess.Popen[str]]:
    """prepare: called in the new process, before it becomes the service."""
    command = [sys.executable, "-W", "error", "-c", script, "serve", "--port", "0", *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=stderr,
        text=True,
        env={**os.environ, **(environ or {})},
        preexec_fn=prepare,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_ready(process: subprocess.Popen[str]) -> str:
    """The address that the log gives; its end, and so the process's, ends the wait."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if serves(line):
            return str(json.loads(line)["message"].split()[-1])
    raise AssertionError("".join(lines))


def wait_until(holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def serves(line: str) -> bool:
    return '"message":"serving at ' in line


@dataclass(frozen=True)
class Running:
    """A ready service; `log` grows while it runs, and is complete after `end`."""

    process: subprocess.Popen[str]
    address: str
    log: list[str]
    _reader: Thread

    @property
    def port(self) -> int:
        port = urlsplit(self.address).port
        assert port is not None
        return port

    def end(self, sig: int = signal.SIGTERM) -> int:
        """Its exit status."""
        self.process.send_signal(sig)
        self._reader.join()
        return self.process.wait()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=PATIENCE_S)

    @property
    def processes(self) -> list[int]:
        """Of the service, itself first; Linux."""
        return family(self.process.pid)

    def decoders(self) -> list[int]:
        """Those that do not fork others."""
        return [pid for pid in self.processes if runs_decoder(pid) and len(family(pid)) == 1]

    def resident_mib(self, measure: str = "VmRSS") -> float:
        """Memory of its processes, in MiB; with VmHWM the most so far of each; Linux."""
        found = [int(kb) for pid in self.processes for kb in field(pid, rf"{measure}:\s+(\d+) kB")]
        return sum(found) / 1024


def runs_decoder(pid: int) -> bool:
    return b"app.inference.decode_worker" in command_of(pid)


def services(supervisor: int) -> set[int]:
    """The processes that a supervisor has forked to serve: they have its command line; Linux."""
    return {pid for pid in family(supervisor)[1:] if command_of(pid) == command_of(supervisor)}


def command_of(pid: int) -> bytes:
    """The command line; nothing if the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def running(
    script: str = FAKE,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    prepare: Callable[[], object] | None = None,
) -> Iterator[Running]:
    with serving(script, *arguments, environ=environ, prepare=prepare) as process:
        address = wait_until_ready(process)
        log: list[str] = []
        assert process.stderr is not None
        # A full pipe would hold the service up.
        reader = Thread(target=log.extend, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            yield Running(process, address, log, reader)
        finally:
            process.kill()
            reader.join()  # before what it reads is closed
