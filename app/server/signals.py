"""What each signal does to a service: drain, or nothing. By default it would end the process at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# SIGHUP: the terminal was closed. SIGQUIT: Ctrl-\, and what nginx and others drain on.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
MEANINGLESS = (signal.SIGUSR1, signal.SIGUSR2)

Handler = Callable[[int, FrameType | None], object]


def ignore_meaningless() -> None:
    """Ignore the signals without a meaning here, also in processes started from now on."""
    for sig in MEANINGLESS:
        signal.signal(sig, signal.SIG_IGN)


@contextmanager
def stopping(handler: Handler) -> Iterator[None]:
    """Call the handler for each signal that stops the service; do nothing outside the main thread.

    SIGHUP stays ignored if it is: nohup has set that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [sig for sig in STOPPING if sig != signal.SIGHUP or signal.getsignal(sig) != signal.SIG_IGN]
    before = {sig: signal.signal(sig, handler) for sig in handled}
    try:
        yield
    finally:
        for sig, earlier in before.items():
            signal.signal(sig, earlier)


def insists(sig: int) -> bool:
    """Return whether this signal, after one that drains, ends the service at once.

    A second SIGHUP does not: shell and kernel each send one when a terminal is closed.
    """
    return sig != signal.SIGHUP


@contextmanager
def without_stopping() -> Iterator[None]:
    """Block the signals that stop a service, also in processes started inside: the supervisor stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_by_default() -> None:
    """Drop the supervisor's handlers in a process that it has forked, then let SIGTERM in."""
    for sig in STOPPING:
        if signal.getsignal(sig) != signal.SIG_IGN:
            signal.signal(sig, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
