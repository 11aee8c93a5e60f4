"""`leuko serve` as a process of its own, on a free loopback port."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    pid: int
    port: int

    def memory_mib(self) -> float | None:
        """Resident memory; None where the kernel has no /proc."""
        status = Path("/proc") / str(self.pid) / "status"
        found = (
            re.search(r"^VmRSS:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
        )
        return int(found[1]) / 1024 if found else None


@contextmanager
def serve(*, ready_s: float = 120.0, stop_s: float = 60.0) -> Iterator[Server]:
    """A ready service; ended by SIGTERM, as an orchestrator would."""
    port = free_port()
    environ = {**os.environ, "LEUKO_HOST": HOST, "LEUKO_PORT": str(port), "LEUKO_LOG_LEVEL": "error"}
    command = Path(sys.executable).with_name("leuko")
    process = subprocess.Popen([command, "serve"], env=environ)
    try:
        wait_ready(process, port, ready_s)
        yield Server(process.pid, port)
    finally:
        process.terminate()
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(process: subprocess.Popen[bytes], port: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_ready(port):
        if process.poll() is not None:
            raise SystemExit(f"leuko serve ended with status {process.returncode} before it was ready")
        if time.monotonic() > end:
            raise SystemExit(f"leuko serve was not ready within {seconds:.0f} s")
        time.sleep(0.1)


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/readyz", timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port
