"""The filter of system calls, run as the kernel runs it."""

from __future__ import annotations

import struct

import pytest

from app.inference.confinement import DECODER, FORK_SERVER
from app.inference.seccomp import ALLOW, KILL, NUMBERS, REFUSE, Argument, Rule, compile_filter

X86_64, I386, ARM_64, ARM = 0xC000_003E, 0x4000_0003, 0xC000_00B7, 0x4000_0028  # linux/audit.h
X32 = 0x4000_0000


def run(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Return what the filter says of a call; the instructions are those of linux/filter.h."""
    call = struct.pack("=IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("=HBBI", program))
    position = value = 0
    while True:
        code, equal, other, constant = instructions[position]
        position += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", call, constant)
        elif code == 0x54:
            value &= constant
        elif code == 0x15:
            position += equal if value == constant else other
        else:
            assert code == 0x06
            return int(constant)


def verdict(rules: tuple[Rule, ...], machine: str, call: str, *arguments: int) -> int:
    number = NUMBERS[call][machine == "aarch64"]
    assert number is not None
    program = compile_filter(rules, machine)
    return run(program, {"x86_64": X86_64, "aarch64": ARM_64}[machine], number, *arguments)


machines = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


@machines
def test_a_decoder_may_receive_and_allocate_but_not_execute_what_it_writes(machine: str) -> None:
    assert verdict(DECODER, machine, "recvfrom") == ALLOW
    assert verdict(DECODER, machine, "exit_group") == ALLOW
    read_write, anonymous, executable = 3, 0x22, 4
    assert verdict(DECODER, machine, "mmap", 0, 4096, read_write, anonymous) == ALLOW
    assert verdict(DECODER, machine, "mmap", 0, 4096, read_write | executable, anonymous) == KILL
    assert verdict(DECODER, machine, "mmap", 0, 4096, read_write, 2) == KILL  # a file
    assert verdict(DECODER, machine, "mprotect", 0, 4096, read_write) == ALLOW
    assert verdict(DECODER, machine, "mprotect", 0, 4096, executable) == KILL
    assert [verdict(DECODER, machine, "write", fd) for fd in range(4)] == [KILL, ALLOW, ALLOW, KILL]


@machines
def test_a_decoder_reads_no_clock_of_another_process(machine: str) -> None:
    for call in ("clock_gettime", "clock_nanosleep"):
        assert {verdict(DECODER, machine, call, clock) for clock in range(16)} == {ALLOW}
        for pid in (0, 1, 2, 4711, 2**22):
            for kind in range(8):  # CPUCLOCK_PROF, VIRT, SCHED, of a descriptor; of a process, of a thread
                assert verdict(DECODER, machine, call, (~pid << 3 | kind) & 2**64 - 1) == KILL
                assert verdict(DECODER, machine, call, (~pid << 3 | kind) & 2**32 - 1) == KILL
        assert verdict(DECODER, machine, call, 16) == KILL


@machines
def test_a_decoder_sends_and_receives_nothing_out_of_band(machine: str) -> None:
    wait_all, no_signal = 0x100, 0x4000
    for call in ("sendto", "recvfrom"):
        for flags in (0, wait_all, no_signal, wait_all | no_signal):
            assert verdict(DECODER, machine, call, 0, 0, 0, flags) == ALLOW
        for bit in range(32):
            if 1 << bit not in (wait_all, no_signal):  # MSG_OOB, MSG_PEEK, MSG_ERRQUEUE, MSG_FASTOPEN, …
                assert verdict(DECODER, machine, call, 0, 0, 0, wait_all | 1 << bit) == KILL


@machines
def test_a_decoder_waits_and_wakes_but_asks_for_no_owner_of_a_lock(machine: str) -> None:
    wait, wake, wait_bitset, wake_bitset = 0, 1, 9, 10
    for flags in (0, 0x80, 0x100, 0x180):
        allowed = {op for op in range(128) if verdict(DECODER, machine, "futex", 0, op | flags) == ALLOW}
        assert allowed == {wait, wake, wait_bitset, wake_bitset}


@machines
def test_only_what_codecs_try_by_themselves_is_an_error(machine: str) -> None:
    assert verdict(DECODER, machine, "openat") == REFUSE
    for call in ("clone", "prctl", "prlimit64", "seccomp", "sendmsg", "recvmsg", "close", "rt_sigaction"):
        assert verdict(DECODER, machine, call) == KILL, call


@machines
def test_the_fork_server_may_fork_but_make_no_thread_and_no_namespace(machine: str) -> None:
    fork, thread, user_namespace = 0x0120_0011, 0x3D_0F00, 0x1000_0011
    assert verdict(FORK_SERVER, machine, "clone", fork) == ALLOW
    assert verdict(FORK_SERVER, machine, "clone", thread) == KILL
    assert verdict(FORK_SERVER, machine, "clone", user_namespace) == KILL
    assert verdict(FORK_SERVER, machine, "prlimit64", 0) == ALLOW
    assert verdict(FORK_SERVER, machine, "prlimit64", 1) == KILL
    assert verdict(FORK_SERVER, machine, "openat") == REFUSE


@machines
def test_calls_of_other_architectures_and_of_x32_are_refused(machine: str) -> None:
    program = compile_filter(DECODER, machine)
    for architecture in {X86_64, I386, ARM_64, ARM} - {X86_64 if machine == "x86_64" else ARM_64}:
        assert {run(program, architecture, number) for number in range(500)} == {KILL}
    assert {run(program, X86_64, X32 | number) for number in range(600)} == {KILL}


def test_every_condition_must_hold_and_a_later_rule_is_asked_otherwise() -> None:
    rules = (
        Rule("write", (Argument(0, 1), Argument(2, 0, 0xF0))),
        Rule("write", (Argument(0, 2),), REFUSE),
        Rule("brk"),
    )
    program = compile_filter(rules, "x86_64")
    assert run(program, X86_64, 1, 1, 0, 0x0F) == ALLOW
    assert run(program, X86_64, 1, 1, 0, 0x10) == KILL
    assert run(program, X86_64, 1, 2, 0, 0x10) == REFUSE
    assert run(program, X86_64, 12) == ALLOW
    assert run(program, X86_64, 0) == KILL
