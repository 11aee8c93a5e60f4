"""Runs a service in its own process, on a free loopback port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    pid: int
    port: int
    started_s: float  # from the start of the process until it was ready

    def cpu_seconds(self) -> float:
        """Return the processor time of all its processes so far (Linux)."""
        ticks = 0
        for pid in family(self.pid):
            with suppress(OSError):  # it has ended
                # utime and stime are fields 14 and 15. Split after the name, which may contain anything.
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float | None:
        """Return the resident memory of all processes, shared pages counted once; None without /proc."""
        sizes = [int(kb) for pid in family(self.pid) for kb in field(pid, r"Pss:\s+(\d+) kB", "smaps_rollup")]
        return sum(sizes) / 1024 if sizes else None


def family(pid: int) -> list[int]:
    """Return the process and all its descendants, parents first."""
    parents = {
        int(path.name): field(int(path.name), r"PPid:\s+(\d+)") for path in Path("/proc").glob("[0-9]*")
    }
    pids = [pid]
    for ancestor in pids:  # the list grows while it is read
        pids += [child for child, parent in parents.items() if parent == [str(ancestor)]]
    return pids


def field(pid: int, pattern: str, file: str = "status") -> list[str]:
    """Return the matches in a /proc file of a process; none if it has ended or there is no /proc."""
    try:
        return re.findall(f"^{pattern}", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    except OSError:
        return []


Command = Callable[[int], Sequence[str | Path]]  # port → arguments


def leuko(port: int) -> Sequence[str | Path]:
    return [Path(sys.executable).with_name("leuko"), "serve", "--host", HOST, "--port", str(port)]


def naive(port: int) -> Sequence[str | Path]:
    uvicorn = Path(sys.executable).with_name("uvicorn")
    return [uvicorn, "benchmarks.naive:app", "--host", HOST, "--port", str(port), "--log-level", "warning"]


@contextmanager
def serve(
    command: Command = leuko,
    path: str = "/readyz",
    *,
    ready_s: float = 120.0,
    stop_s: float = 60.0,
    environ: Mapping[str, str] | None = None,
    log: int | None = None,
) -> Iterator[Server]:
    """Start a service, wait until `path` answers 200, and end it with SIGTERM, as an orchestrator would.

    log: file descriptor for its standard error.
    """
    port = free_port()
    began = time.monotonic()
    variables = {**os.environ, "LEUKO_LOG_LEVEL": "error", **(environ or {})}
    process = subprocess.Popen(command(port), env=variables, stderr=log)
    try:
        wait_ready(process, f"http://{HOST}:{port}{path}", ready_s)
        yield Server(process.pid, port, time.monotonic() - began)
    finally:
        started = family(process.pid)
        process.terminate()
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in started[1:]:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def wait_ready(process: subprocess.Popen[bytes], url: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_ready(url):
        if process.poll() is not None:
            raise SystemExit(f"the service ended with status {process.returncode} before it was ready")
        if time.monotonic() > end:
            raise SystemExit(f"the service was not ready within {seconds:.0f} s")
        time.sleep(0.02)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port
