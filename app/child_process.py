"""Work in a process of its own, which can be ended at any time and leaves no memory behind.

A thread can do neither, and a parser or a regular expression keeps the interpreter lock while it runs.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from threading import Lock
from typing import BinaryIO

from app import private
from app.units import MIB

OUT_OF_MEMORY = 3  # exit status; native code that gets no memory ends with SIGABRT instead
POLITENESS = 10  # nice value: predictions come first

Work = Callable[[BinaryIO], bytes]


class ChildTimeout(Exception):
    """The process took longer than it may."""


class ChildTooLarge(Exception):
    """The process needed more memory than it may."""


class ChildEnded(Exception):
    """The process was ended by `close`."""


class Child:
    """One run of a process. `close` may be called at any time, from any thread.

    work: "module:function" of a Work, which reads its whole input and returns its output.
    limit_s: seconds of wall clock; limit_mib: MiB of address space.
    """

    def __init__(self, work: str, *, limit_s: float, limit_mib: int) -> None:
        self._work = work
        self._limit_s = limit_s
        self._limit_mib = limit_mib
        self._lock = Lock()
        self._killed = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, chunks: Iterable[bytes | memoryview]) -> bytes:
        """Send the chunks and return the output. Blocks.

        Raise ChildTimeout, ChildTooLarge or ChildEnded, RuntimeError if the process has failed otherwise.
        """
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            with suppress(BrokenPipeError), process.stdin:  # it may end early; its status says why
                for chunk in chunks:
                    process.stdin.write(chunk)
            output = process.stdout.read()
        match process.returncode:
            case 0:
                return output
            case _ if self._killed:
                raise ChildEnded
            case status if status == -signal.SIGALRM:
                raise ChildTimeout
            # SIGKILL is the kernel's, which has run out of memory for all.
            case status if status in (OUT_OF_MEMORY, -signal.SIGABRT, -signal.SIGKILL, -signal.SIGSEGV):
                raise ChildTooLarge
            case status:
                raise RuntimeError(f"the process of {self._work} ended with {status}")

    def close(self) -> None:
        """End the process, or see to it that it never starts."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        # Each thread would reserve memory, and a parser that gets none would write pages to the log.
        environ = private.environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", RUST_BACKTRACE="0")
        limits = (str(math.ceil(self._limit_s)), str(self._limit_mib))
        with self._lock:
            if self._killed:
                raise ChildEnded
            self._process = subprocess.Popen(
                private.command("app.child_process", self._work, *limits, str(os.getpid())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environ,
                start_new_session=True,
            )
        return self._process


def main(work: str, limit_s: str, limit_mib: str, parent: str) -> None:
    """Run the work on standard input, within the limits, and end with the thread of the parent that waits."""
    private.end_with_thread(signal.SIGKILL)
    if os.getppid() != int(parent):  # it was gone before
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(max(1, int(limit_s)))
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    memory = int(limit_mib) * MIB if most == resource.RLIM_INFINITY else min(int(limit_mib) * MIB, most)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    os.nice(POLITENESS)
    module, _, name = work.partition(":")
    try:
        function: Work = getattr(import_module(module), name)
        output = function(sys.stdin.buffer)
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    os._exit(0)  # freeing millions of objects one by one would take as long as the work
