"""What keeps a process private: no core file, no tracing, no reading by other processes of its user.

Its memory holds images and keys. A program can be traced and read until it says otherwise itself, so this is
the first thing that each does, before it imports a package: this module must import nothing that takes time.
`python -m app.private MODULE ARGUMENT…` runs MODULE's `main` in such a process.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from importlib import import_module

TYPE_CHECKING = False  # typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable

SET_PDEATHSIG, SET_DUMPABLE = 1, 4  # of prctl(2)
# What a process needs that only computes: where things are, the language, how memory is allocated. All else
# stays with the service: variables hold secrets, and an image may take a decoder over.
_NEEDED = {
    "DYLD_LIBRARY_PATH",
    "GLIBC_TUNABLES",
    "HOME",
    "LANG",
    "LANGUAGE",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONPYCACHEPREFIX",
    "PYTHONWARNINGS",
    "TMPDIR",
    "TZ",
}
_NEEDED_KINDS = ("LC_", "MALLOC_")


def keep_private() -> None:
    """Write no core file of this process, and let no other process of its user read or trace it.

    Children inherit both, but lose the second when they start a program.
    """
    prctl(SET_DUMPABLE, 0)  # a handler of core files (a pipe in kernel.core_pattern) ignores the limit
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_with_thread(sig: int) -> None:
    """Have the kernel send this process a signal when the thread that started it ends; Linux only."""
    prctl(SET_PDEATHSIG, sig)


def prctl(option: int, value: int) -> None:
    """Set a property of this process; see `man 2 prctl`. Does nothing elsewhere. Raise OSError."""
    if sys.platform == "linux":
        check(libc().prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))))


def release_memory() -> None:
    """Return memory that was freed to the system; glibc keeps it otherwise."""
    if sys.platform == "linux" and hasattr(libc(), "malloc_trim"):
        libc().malloc_trim(0)


def libc() -> ctypes.CDLL:
    """Return the C library, for calls that Python does not have."""
    return ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    """Raise the OSError of a call of the C library that has failed."""
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module's `main` in a private process.

    -P keeps the working folder off its import path: a package named `app` there must not replace ours.
    """
    return [sys.executable, "-P", "-m", "app.private", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """Return the variables that such a process gets: those it needs, our import path, and more."""
    kept = {
        name: value for name, value in os.environ.items() if name in _NEEDED or name.startswith(_NEEDED_KINDS)
    }
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)  # noqa: PTH109 (pathlib takes time)
    return {**kept, "PYTHONPATH": path, **more}


class Private:
    """A module's function for `multiprocessing`: the process is private before it imports the module."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return _arrive, (self._function.__module__, self._function.__name__)


def _arrive(module: str, name: str) -> Callable[..., object]:
    _begin()
    function: Callable[..., object] = getattr(import_module(module), name)
    return function


def _begin() -> None:
    """Keep this process private, or end it if somebody already traces it, who does not trace its parent."""
    keep_private()
    if (pid := _tracer(os.getpid())) and pid != _tracer(os.getppid()):
        sys.exit(f"leuko: process {pid} traces a process of the service, which therefore ends")


def _tracer(pid: int) -> int:
    """Return the process that traces a process, 0 if none does or this is not Linux (proc(5))."""
    try:
        with open(f"/proc/{pid}/status") as status:  # noqa: PTH123 (pathlib takes time)
            return next(int(line.split()[1]) for line in status if line.startswith("TracerPid:"))
    except FileNotFoundError:
        return 0


def main(module: str, *arguments: str) -> None:
    """Run a module's `main` in this process, which `command` has started."""
    _begin()
    sys.exit(import_module(module).main(*arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
