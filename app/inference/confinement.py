"""What the processes that decode give up: nearly everything. `app.private` has what all of a service give up.

docs/safety.md lists what a decoder can still do; `tests/safety/test_confinement.py` tries the rest, inside.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from app.inference import seccomp
from app.inference.seccomp import REFUSE, SET_NO_NEW_PRIVS, Argument, Rule
from app.private import SET_PDEATHSIG, end_with_thread

_PROT_EXEC, _MAP_ANONYMOUS = 4, 0x20
# clone(2): the flags of a fork, CLONE_CHILD_SETTID and CLONE_CHILD_CLEARTID. All others, which make threads
# or namespaces, are refused.
_FORK = 0x0120_0000 | signal.SIGCHLD

_PEER_FLAGS = 0x100 | 0x4000  # MSG_WAITALL, MSG_NOSIGNAL: all others of send(2) and recv(2) are refused
# Clocks 0 to 15. The numbers of other processes' clocks, which contain a pid or descriptor, are negative.
_CLOCK = Argument(0, 0, 0xFFFF_FFF0)
_FUTEX_FLAGS = 0x180  # FUTEX_PRIVATE_FLAG, FUTEX_CLOCK_REALTIME
_FUTEX_WAIT_BITSET, _FUTEX_WAKE_BITSET = 9, 10

# All that decoding needs, the most frequent first. Another call ends the process: a crash is counted and
# logged, while an error would let an intruder try the next one.
COMPUTE = (
    Rule("recvfrom", (Argument(3, 0, 0xFFFF_FFFF & ~_PEER_FLAGS),)),
    Rule("sendto", (Argument(3, 0, 0xFFFF_FFFF & ~_PEER_FLAGS),)),
    Rule("setitimer"),
    Rule("brk"),
    # Memory only, never a file, and never to be executed.
    Rule("mmap", (Argument(2, 0, _PROT_EXEC), Argument(3, _MAP_ANONYMOUS, _MAP_ANONYMOUS))),
    Rule("munmap"),
    Rule("madvise"),
    Rule("mremap"),
    Rule("mprotect", (Argument(2, 0, _PROT_EXEC),)),
    # Wait and wake; the calls that inherit priorities would tell which processes exist.
    Rule("futex", (Argument(1, 0, 0xFFFF_FFFE & ~_FUTEX_FLAGS),)),
    Rule("futex", (Argument(1, _FUTEX_WAIT_BITSET, 0xFFFF_FFFF & ~_FUTEX_FLAGS),)),
    Rule("futex", (Argument(1, _FUTEX_WAKE_BITSET, 0xFFFF_FFFF & ~_FUTEX_FLAGS),)),
    Rule("clock_gettime", (_CLOCK,)),
    Rule("gettimeofday"),
    Rule("getrandom"),
    Rule("sched_yield"),
    Rule("clock_nanosleep", (_CLOCK,)),
    Rule("nanosleep"),
    Rule("getpid"),
    Rule("gettid"),
    Rule("rt_sigprocmask"),
    Rule("rt_sigreturn"),
    Rule("restart_syscall"),
    Rule("write", (Argument(0, 1),)),  # standard output and error, which are /dev/null
    Rule("write", (Argument(0, 2),)),
    Rule("exit_group"),
    Rule("exit"),
)
# What Python and the C library try by themselves, for a traceback or the number of cores, and can do without.
TRIED = (
    "open openat stat lstat newfstatat statx fstat readlink readlinkat access faccessat faccessat2 getcwd"
    " sched_getaffinity sysinfo uname"
)
DECODER = (*COMPUTE, *(Rule(call, action=REFUSE) for call in TRIED.split()))
# To receive a socket, fork, and let the child give up the rest.
FORKING = (
    "recvmsg sendmsg close dup2 dup3 getsockname getpeername getsockopt seccomp pidfd_open set_robust_list"
    " rseq rt_sigaction"
)
FORK_SERVER = (
    *DECODER,
    *map(Rule, FORKING.split()),
    Rule("clone", (Argument(0, 0, 0xFFFF_FFFF & ~_FORK),)),
    Rule("prlimit64", (Argument(0, 0),)),  # of the process itself
    Rule("prctl", (Argument(0, SET_PDEATHSIG),)),
    Rule("prctl", (Argument(0, SET_NO_NEW_PRIVS),)),
)


def confine_fork_server() -> None:
    """Allow this process only to receive sockets and to fork; for a private process. Raise OSError."""
    if seccomp.missing() is None:
        seccomp.restrict(FORK_SERVER)


def confine_decoder(memory_bytes: int, life_s: float) -> None:
    """Allow this process only to compute and to use its sockets, for ever.

    memory_bytes: address space. life_s: processor time, after which it is killed. Raise OSError.
    """
    end_with_thread(signal.SIGKILL)  # it ends with the fork server, which ends with the service
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(life_s),) * 2)
    if sys.platform == "linux":  # elsewhere, the limit is not applied or the size not known
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    sys.meta_path.insert(0, NoImports())
    if seccomp.missing() is None:
        seccomp.restrict(DECODER)


def address_space() -> int:
    """Return the bytes of this process's address space; 0 where that is unknown."""
    statm = Path("/proc/self/statm")  # proc(5): its first field is the size in pages
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0


def weaknesses() -> list[str]:
    """Return in which respects decoders are confined less than they should be, in words for the log."""
    found = []
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        found.append("decoders run as root: start the service as another user, as the container does")
    if (reason := seccomp.missing()) is not None:
        found.append(f"the system calls of decoders are not filtered: {reason}")
    return found


class NoImports:
    """Refuse imports: a module that cannot be opened must not look like a broken image."""

    def find_spec(self, name: str, *_: Any) -> None:
        raise RuntimeError(f"a decoder imports {name}: rehearse() must import it before")
