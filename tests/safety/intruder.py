"""`app.inference.decode_worker` with images that make the decoder do what somebody who took it over would do.

An attack that is allowed is followed by the image's own pixels, so it shows as a 200.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from app.errors import UndecodableImage
from app.imaging.decode import decode
from app.imaging.limits import DEFAULT_LIMITS, ImageLimits
from app.inference import decode_worker, fork_server
from tests.fake_classifier import png

FOLDER, UID = "LEUKO_TEST_FOLDER", "LEUKO_TEST_UID"  # UID: decoders run as this user
NOBODY = 10_001  # the user of the container
SECRET, SECRETS = "secret", b"keys and answers"  # a file in FOLDER, and what it holds
MARK = b"attack:"

_libc = ctypes.CDLL(None, use_errno=True)
_victim = os.getppid()  # the service, as its user
_WORD = ctypes.create_string_buffer(8)
_MACHINE_CODE = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # getpid of a 32-bit program
_executable: list[mmap.mmap] = []  # memory that could be executed before the decoder was confined


def attack(name: str) -> bytes:
    """Return the image that makes its decoder attack."""
    return png(0) + MARK + name.encode()


def call(name: str, *arguments: object) -> Callable[[], object]:
    """A function of the C library; raises OSError."""

    def run() -> object:
        return _checked(getattr(_libc, name)(*map(_word, arguments)))

    return run


def system_call(number: int, *arguments: object) -> Callable[[], object]:
    """A system call by its number on x86-64; raises OSError."""
    return lambda: _checked(_libc.syscall(*map(_word, (number, *arguments))))


def _word(value: object) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def _checked(result: int) -> int:
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _secret() -> Path:
    return Path(os.environ[FOLDER]) / SECRET


def _path() -> bytes:
    return bytes(_secret())


def _owned_by(pid: int) -> object:
    """Return a lock that a process holds, as it says."""
    return ctypes.byref(ctypes.c_uint32(pid))


def _map_executable() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC)


def _call_as_32_bit() -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(_executable[0]))
    ctypes.CFUNCTYPE(ctypes.c_int)(address)()


def _hang() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)  # its time limit
    while True:
        pass


def _by_path(name: str, *arguments: object) -> Callable[[], object]:
    return lambda: call(name, _path(), *arguments)()


# Such calls codecs and Python try by themselves; all that they get is an error.
ERRORS: dict[str, Callable[[], object]] = {
    "open to read": lambda: os.open(_secret(), os.O_RDONLY),
    "open to write": lambda: os.open(_secret(), os.O_WRONLY | os.O_TRUNC),
    "create": lambda: os.open(_secret().with_name("new"), os.O_WRONLY | os.O_CREAT),
    "stat": lambda: _secret().stat(),
    "read own memory": lambda: os.open("/proc/self/mem", os.O_RDWR),
    "read memory of the service": lambda: os.open(f"/proc/{_victim}/mem", os.O_RDONLY),
    "affinity of the service": lambda: os.sched_getaffinity(_victim),
}
KILLED: dict[str, Callable[[], object]] = {
    "unlink": lambda: _secret().unlink(),
    "rename": lambda: _secret().rename(_secret().with_name("other")),
    "truncate": lambda: os.truncate(_secret(), 0),
    "chmod": lambda: _secret().chmod(0o777),
    "chown": lambda: os.chown(_secret(), os.getuid(), -1),
    "utime": lambda: os.utime(_secret(), (0, 0)),
    "setxattr": lambda: os.setxattr(_secret(), "user.a", b"b"),
    "symlink": lambda: _secret().with_name("new").symlink_to(_secret()),
    "link": lambda: os.link(_secret(), _secret().with_name("new")),
    "mkdir": lambda: _secret().with_name("new").mkdir(),
    "mkfifo": lambda: os.mkfifo(_secret().with_name("new")),
    "chdir": lambda: os.chdir("/"),
    "chroot": _by_path("chroot"),
    "umask": lambda: os.umask(0),
    "inotify": call("inotify_init"),
    "open_by_handle_at": system_call(304, 0, _WORD, 0),
    "openat2": system_call(437, -100, b"/etc/passwd", _WORD, 24),
    "socket": lambda: socket.socket(socket.AF_INET),
    "connect": lambda: call("connect", 1, _WORD, 8)(),
    "socketpair": lambda: socket.socketpair(),
    "bind": call("bind", 1, _WORD, 8),
    "recvmsg": call("recvmsg", 1, _WORD, 0),
    "sendmsg": call("sendmsg", 1, _WORD, 0),
    "send out of band": call("send", 1, _WORD, 1, 1),
    "receive out of band": call("recv", 1, _WORD, 1, 1),
    "peek": call("recv", 1, _WORD, 1, 2),
    "processor time of the service": lambda: time.clock_gettime(~_victim << 3 | 2),
    "processor time of a thread of the service": lambda: time.clock_gettime(~_victim << 3 | 6),
    "sleep by a clock of the service": lambda: system_call(230, ~_victim << 3 | 2, 0, _WORD, 0)(),
    "whether a process exists": lambda: system_call(202, _owned_by(_victim), 6 | 128, 0, 0, 0)(),
    "pipe": lambda: os.pipe(),
    "memfd_create": lambda: os.memfd_create("a"),
    "execve": lambda: os.execv("/bin/true", ["true"]),
    "execveat": system_call(322, 1, b"", 0, 0, 0x1000),
    "fork": lambda: os.fork(),
    "vfork": system_call(58),
    "clone3": system_call(435, _WORD, 64),
    "ptrace the service": lambda: call("ptrace", 16, _victim, 0, 0)(),
    "process_vm_readv": lambda: call("process_vm_readv", _victim, _WORD, 1, _WORD, 1, 0)(),
    "process_vm_writev": lambda: call("process_vm_writev", _victim, _WORD, 1, _WORD, 1, 0)(),
    "kcmp": lambda: system_call(312, _victim, _victim, 0, 0, 0)(),
    "pidfd_open": lambda: os.pidfd_open(_victim),
    "pidfd_getfd": system_call(438, 1, 0, 0),
    "pidfd_send_signal": system_call(424, 1, 0, 0, 0),
    "signal the service": lambda: os.kill(_victim, 0),
    "signal everybody": lambda: os.kill(-1, 0),
    "tgkill": lambda: system_call(234, _victim, _victim, 0)(),
    "rt_sigqueueinfo": lambda: system_call(129, _victim, 0, _WORD)(),
    "renice the service": lambda: os.setpriority(os.PRIO_PROCESS, _victim, 19),
    "ioprio_set": lambda: system_call(251, 1, _victim, 0)(),
    "affinity": lambda: os.sched_setaffinity(_victim, {0}),
    "sched_setscheduler": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    "limits of the service": lambda: resource.prlimit(_victim, resource.RLIMIT_NOFILE),
    "own limits": lambda: resource.getrlimit(resource.RLIMIT_NOFILE),
    "setuid": lambda: os.setuid(os.getuid()),
    "setsid": lambda: os.setsid(),
    "prctl": call("prctl", 4, 1, 0, 0, 0),
    "personality": call("personality", 0x0400000),
    "unshare": call("unshare", 0x1000_0000),
    "setns": call("setns", 1, 0),
    "mount": call("mount", b"none", b"/tmp", b"tmpfs", 0, 0),
    "umount": call("umount2", b"/tmp", 0),
    "bpf": system_call(321, 0, _WORD, 8),
    "userfaultfd": system_call(323, 0),
    "io_uring_setup": system_call(425, 1, _WORD),
    "keyctl": system_call(250, 0, -3, 0),
    "add_key": system_call(248, b"user", b"a", b"b", 1, -3),
    "perf_event_open": system_call(298, _WORD, 0, -1, -1, 0),
    "seccomp": system_call(317, 0, 0, 0),
    "landlock": system_call(444, _WORD, 8, 0),
    "shmget": system_call(29, 0, 4096, 0o1600),
    "msgget": system_call(68, 0, 0o1600),
    "mq_open": system_call(240, b"a", 0o100, 0o600, 0),
    "syslog": system_call(103, 10, 0, 0),
    "ioctl": system_call(16, 1, 0x5412, _WORD),  # TIOCSTI: a key press on the terminal
    "fcntl": system_call(72, 1, 1024, 0),
    "dup": lambda: os.dup(1),
    "write elsewhere": lambda: os.write(0, b""),
    "map executable memory": _map_executable,
    "make memory executable": lambda: call("mprotect", 0, 0, 5)(),
    "mmap of a file": lambda: call("mmap", 0, 4096, 1, 2, 1, 0)(),
    "remap_file_pages": system_call(216, 0, 0, 0, 0, 0),
    "modify_ldt": system_call(154, 0, _WORD, 0),
    "a call of the x32 ABI": system_call(0x4000_0000 | 39),
    "a call of a 32-bit program": _call_as_32_bit,
    "a number that no kernel knows": system_call(9999),
}
ATTACKS = KILLED | ERRORS | {"hang": _hang, "a gigabyte": lambda: bytearray(1 << 30)}


def decode_or_attack(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    _, mark, name = data.partition(MARK)
    if mark:
        try:
            ATTACKS[name.decode()]()
        except OSError as error:
            raise UndecodableImage(f"refused: {errno.errorcode[error.errno or 0]}") from error
    return decode(data, limits)


def main() -> int:
    decode_worker.decode = decode_or_attack  # type: ignore[attr-defined]
    _executable.append(mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))
    _executable[0][: len(_MACHINE_CODE)] = _MACHINE_CODE
    for argument in sys.argv[1:]:
        name, _, os.environ[name] = argument.partition("=")
    return fork_decoders()


def fork_decoders() -> int:
    """Run the process that forks decoders, as the user UID if that is set."""
    if uid := int(os.environ.get(UID, "0")):
        decode_worker.rehearse()  # now, since that user may not be allowed to read our packages
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    return decode_worker.main()


DECODER = "import sys, app.inference.decode_worker, tests.safety.intruder as it; sys.exit(it.main())"
INTRUDED = "import tests.safety.intruder as intruder; intruder.serve()"


def serve() -> None:
    """`leuko serve` with such decoders."""
    from app.cli.main import main as leuko
    from tests.fake_classifier import load

    # Decoders do not get such variables.
    needed = (f"{name}={os.environ[name]}" for name in (FOLDER, UID) if name in os.environ)
    fork_server.shared._command = (sys.executable, "-c", DECODER, *needed)
    sys.exit(leuko(load=load))


if __name__ == "__main__":
    sys.exit(main())
