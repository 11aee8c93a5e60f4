"""Restrict the system calls of this process, by a seccomp filter (Linux, x86-64 and 64-bit ARM).

A filter is a program for the kernel's BPF machine: it reads the number and the arguments of each call and
returns what to do with it (`man 2 seccomp`; linux/seccomp.h, linux/filter.h). It stays for the life of the
process and of its children, and each child can only add further restrictions. The program made here is a list
of comparisons, read from its start, so the most frequent calls come first. It ends the process at a call of
another architecture (32-bit programs); calls of the x32 ABI have numbers that are in no list.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.private import check, libc, prctl

ALLOW, KILL = 0x7FFF_0000, 0x8000_0000  # what a filter returns; KILL ends the process with SIGSYS
REFUSE = 0x0005_0000 | errno.EPERM  # the call fails with EPERM

_ARCHITECTURES = {
    "x86_64": (0xC000_003E, 0),
    "aarch64": (0xC000_00B7, 1),
}  # → audit number, column of NUMBERS
# Name → number on x86-64 and on 64-bit ARM, where some old calls do not exist.
NUMBERS: dict[str, tuple[int, int | None]] = {
    "access": (21, None),
    "brk": (12, 214),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "close": (3, 57),
    "dup2": (33, None),
    "dup3": (292, 24),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fstat": (5, 80),
    "futex": (202, 98),
    "getcwd": (79, 17),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "getpeername": (52, 205),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "lstat": (6, None),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "newfstatat": (262, 79),
    "open": (2, None),
    "openat": (257, 56),
    "pidfd_open": (434, 434),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "seccomp": (317, 277),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "set_robust_list": (273, 99),
    "setitimer": (38, 103),
    "stat": (4, None),
    "statx": (332, 291),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "write": (1, 64),
}

# linux/filter.h: load a word of the call's description, and a constant, compare with a constant, return.
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; an argument has 8 bytes
_ALL = 0xFFFF_FFFF
SET_NO_NEW_PRIVS = 38  # of prctl(2)
_SET_FILTER, _GET_ACTION_AVAIL = 1, 2  # of seccomp(2)


@dataclass(frozen=True)
class Argument:
    """A condition on an argument, whose lower 32 bits are compared: argument & mask == value."""

    index: int
    value: int
    mask: int = _ALL


@dataclass(frozen=True)
class Rule:
    """What to do with a call whose arguments meet all conditions."""

    call: str
    arguments: tuple[Argument, ...] = ()
    action: int = ALLOW


def missing() -> str | None:
    """Return why the system calls of this process cannot be filtered, or None if they can."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ARCHITECTURES or sys.maxsize < 2**32:
        return f"there are no filters for {sys.platform} on {machine}"
    action = ctypes.c_uint32(KILL)
    try:
        _seccomp(_GET_ACTION_AVAIL, ctypes.byref(action))
    except OSError as error:
        return f"this kernel has none ({error.strerror})"
    return None


def restrict(rules: Sequence[Rule]) -> None:
    """Allow this thread, and what it starts, only what the rules allow; another call ends the process.

    Raise OSError if the kernel does not accept the filter.
    """
    program = compile_filter(rules)
    code = ctypes.create_string_buffer(program, len(program))
    filter_program = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    # Without it, only root may filter: a program that gains privileges could be misled by refused calls.
    prctl(SET_NO_NEW_PRIVS, 1)
    _seccomp(_SET_FILTER, filter_program)


def compile_filter(rules: Sequence[Rule], machine: str = "") -> bytes:
    """Return the filter as instructions (struct sock_filter). machine: default: this one."""
    architecture, column = _ARCHITECTURES[machine or platform.machine()]
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for rule in rules:
        number = NUMBERS[rule.call][column]
        if number is not None:
            instructions += _compare(rule, number)
    instructions.append((_RETURN, 0, 0, KILL))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _compare(rule: Rule, number: int) -> Iterator[tuple[int, int, int, int]]:
    # A comparison skips as many instructions as its second field says if the values are equal, else as its
    # third says. Where a condition does not hold, the number is loaded again for the next rule.
    conditions = rule.arguments
    after = 3 * len(conditions) + 1 + bool(conditions)
    yield _EQUAL, 0, after, number
    for position, argument in enumerate(conditions):
        yield _LOAD, 0, 0, _ARGUMENTS + 8 * argument.index
        yield _AND, 0, 0, argument.mask
        yield _EQUAL, 0, 3 * (len(conditions) - position - 1) + 1, argument.value
    yield _RETURN, 0, 0, rule.action
    if conditions:
        yield _LOAD, 0, 0, _NUMBER


def _seccomp(operation: int, argument: object) -> None:
    number = NUMBERS["seccomp"][_ARCHITECTURES[platform.machine()][1]]
    check(libc().syscall(*map(ctypes.c_long, (number or 0, operation, 0)), argument))
