"""Start the process that forks decoders, and have it fork them.

This module imports nothing that takes time: a service starts the process first of all, and it imports the
codecs on another core while the service imports everything else.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock

from app import private
from app.errors import StartupError

logger = logging.getLogger(__name__)

START_S = 30.0  # for the process to import everything
FORK_S = 3.0  # for it to fork a decoder, which takes milliseconds
HELLO = b"\1"  # from a decoder, with a descriptor of its process (pidfd), where the kernel has them
READY = b"\0"


class ForkServer:
    """The process that forks decoders; started when first needed, and again if it ended.

    A child that was forked from this process after `start` uses the same one; if that fails, its own.
    """

    def __init__(self, command: Sequence[str] = ()) -> None:
        self._command = command or private.command("app.inference.decode_worker")
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # process that started it
        self._control: socket.socket | None = None
        self._awaited = False  # it has begun to start, and has not been waited for

    def launch(self) -> None:
        """Start the process, if it does not run, without waiting until it is ready. Raise StartupError."""
        with self._lock, self._starting():
            if self._control is None:
                self._launch()

    def start(self) -> None:
        """Start the process, if it does not run, and wait until it is ready. Raise StartupError."""
        with self._lock, self._starting():
            self._ready()

    def fork(self, config: bytes) -> tuple[socket.socket, int | None]:
        """Fork a decoder. Return its socket and the descriptor of its process; None where there are none.

        Raise StartupError.
        """
        with self._lock, self._starting():
            if self._control is not None:
                try:
                    return _fork(self._ready(), config)
                except (OSError, EOFError) as error:
                    logger.warning("replacing the process that forks decoders: %s", error)
                    self._end()
            return _fork(self._ready(), config)

    @contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError) as error:
            self._end()
            raise StartupError(f"no decoder process can be started: {error}") from error

    def _launch(self) -> socket.socket:
        # Messages keep their limits: several processes of a service may send.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                self._command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=private.environment(OPENBLAS_NUM_THREADS="1"),
                start_new_session=True,
            )
        self._control, self._owner, self._awaited = ours, os.getpid(), True
        atexit.unregister(self._end)  # of an earlier process
        atexit.register(self._end)
        return ours

    def _ready(self) -> socket.socket:
        control = self._control or self._launch()
        if self._awaited:
            _await(control, READY, START_S)
            control.settimeout(FORK_S)
            self._awaited = False
        return control

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()  # it has nothing to finish, and may be stopped or stuck
            process.wait()


def _fork(control: socket.socket, config: bytes) -> tuple[socket.socket, int | None]:
    ours, theirs = socket.socketpair()
    process = None
    try:
        with theirs:
            socket.send_fds(control, [config], [theirs.fileno()])
        descriptors = _await(ours, HELLO, FORK_S)
        process = descriptors[0] if descriptors else None
        _await(ours, READY, FORK_S)
    except BaseException:
        ours.close()
        if process is not None:
            end(process)
        raise
    return ours, process


def end(process: int) -> None:
    """End a process, whatever it does, and close its descriptor."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGKILL)
    os.close(process)


def _await(connection: socket.socket, message: bytes, seconds: float) -> list[int]:
    """Wait for a message of a process that starts; return its descriptors. Raise OSError or EOFError."""
    connection.settimeout(seconds)
    received, descriptors, _, _ = socket.recv_fds(connection, len(message), 1)
    if received != message:
        raise EOFError("the process ended at once")
    connection.settimeout(None)
    return descriptors


shared = ForkServer()  # that all pools of this process use
prepare = shared.start
