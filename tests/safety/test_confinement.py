"""What a decoder that an image has taken over can do, from inside; what else reads a service's memory."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import httpx
import pytest

from app.inference import seccomp
from tests.fake_classifier import png
from tests.running import FAKE, PATIENCE_S, Running, linux, running, serves, serving, wait_until
from tests.safety.intruder import ERRORS, FOLDER, INTRUDED, KILLED, NOBODY, SECRET, SECRETS, UID, attack
from tests.safety.sending import alone

x86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64" or seccomp.missing() is not None,
    reason="the attacks have the call numbers of x86-64, and the kernel must have seccomp",
)


def drop_capabilities() -> None:
    """Leave root what any user has: its files and its processes. Any other user has no capabilities."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in range(64):
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; the next program has none


@pytest.fixture(scope="module", params=["the user of the service", "user 10001"])
def intruded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service whose decoders run as its own user without capabilities, or as the user of the container."""
    folder = tmp_path_factory.mktemp("secrets")
    environ = {FOLDER: str(folder)}
    other = request.param == "user 10001"
    if other:
        if os.geteuid() != 0:
            pytest.skip("only root can start decoders as another user")
        environ[UID] = str(NOBODY)
        os.chown(folder, NOBODY, NOBODY)
    (folder / SECRET).write_bytes(SECRETS)
    if other:
        os.chown(folder / SECRET, NOBODY, NOBODY)
    prepare = None if other else drop_capabilities
    with running(INTRUDED, "--decode-workers", "1", environ=environ, prepare=prepare) as service:
        yield service
        assert [path.name for path in folder.iterdir()] == [SECRET]
        assert (folder / SECRET).read_bytes() == SECRETS


def outcome(client: httpx.Client, name: str) -> tuple[int, str]:
    """Return the status and the detail for an image that attacks."""
    answer = alone(client, attack(name))
    return answer.status_code, answer.json().get("detail", "the call was allowed")


@x86_64
def test_39_a_call_that_no_decoder_needs_ends_the_decoder(intruded: Running) -> None:
    with intruded.client() as client:
        found = {name: outcome(client, name) for name in KILLED}
        assert found == dict.fromkeys(KILLED, (422, "the image crashes its decoder"))
        assert client.get("/readyz").status_code == 200
        assert alone(client, png(0)).status_code == 200


@x86_64
def test_39_a_call_that_python_tries_by_itself_is_refused(intruded: Running) -> None:
    with intruded.client() as client:
        found = {name: outcome(client, name) for name in ERRORS}
    assert found == dict.fromkeys(ERRORS, (422, "refused: EPERM"))


@x86_64
def test_39_a_decoder_gets_no_gigabyte_and_serves_on(intruded: Running) -> None:
    decoders = intruded.decoders()
    with intruded.client() as client:
        status, detail = outcome(client, "a gigabyte")
        assert (status, "more memory than a decoder may use" in detail) == (413, True)
        assert alone(client, png(0)).status_code == 200
    assert intruded.decoders() == decoders


@linux
def test_39_a_decoder_that_ignores_its_time_limit_is_killed(tmp_path: Path) -> None:
    arguments = ("--decode-workers", "1", "--engine-timeout-s", "4")  # its processor time ends it after 84 s
    environ = {FOLDER: str(tmp_path)}
    with running(INTRUDED, *arguments, environ=environ) as service, service.client() as client:
        [decoder] = service.decoders()
        assert outcome(client, "hang") == (422, "the image takes longer than 4 s to decode")
        wait_until(lambda: not Path(f"/proc/{decoder}/cmdline").exists())
        assert alone(client, png(0)).status_code == 200


@linux
def test_39_a_decoder_has_limits_on_memory_and_processor_time(intruded: Running) -> None:
    limits = Path(f"/proc/{intruded.decoders()[0]}/limits").read_text()
    [memory] = re.findall(r"^Max address space +(\d+) +\1 ", limits, re.MULTILINE)
    assert int(memory) < 2**30
    assert re.search(r"^Max cpu time +630 +630 ", limits, re.MULTILINE), limits


@linux
def test_39_a_start_as_root_says_so_in_the_log() -> None:
    with serving(FAKE) as process:
        assert process.stderr is not None
        start = list(takewhile(lambda line: not serves(line), process.stderr))
    assert any("decoders run as root" in line for line in start) == (os.geteuid() == 0)


READ = """
import ctypes, os, sys
libc, pid = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
traced = libc.ptrace(16, pid, 0, 0) == 0  # PTRACE_ATTACH
try:
    opened = bool(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
except PermissionError:
    opened = False
print(traced, opened)
"""


@linux
def test_39_no_process_of_the_same_user_can_trace_or_read_any_process_of_a_service() -> None:
    with running(FAKE, "--processes", "2", prepare=drop_capabilities) as service:
        mine = service.processes
        assert len(mine) >= 6  # a supervisor; a fork server; two services, each with a decoder
        for pid in mine:
            arguments = [sys.executable, "-c", READ, str(pid)]
            done = subprocess.run(
                arguments, preexec_fn=drop_capabilities, capture_output=True, text=True, check=True
            )
            assert done.stdout == "False False\n", command(pid)


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


# A process that crashes leaves its core file in its working folder.
ELSEWHERE = """
import os, sys
sys.path.insert(0, os.getcwd())
from app.cli.main import main
from tests.fake_classifier import load
os.chdir(os.environ["LEUKO_TEST_FOLDER"])
sys.exit(main(load=load))
"""


@linux
@pytest.mark.parametrize("sig", [signal.SIGSEGV, signal.SIGABRT], ids=lambda sig: sig.name)
def test_47_a_crash_leaves_no_core_file(tmp_path: Path, sig: signal.Signals) -> None:
    if Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")):
        pytest.skip("this machine does not write core files to the working folder")
    with running(ELSEWHERE, environ={FOLDER: str(tmp_path)}, prepare=allow_core_files) as service:
        for pid in reversed(service.processes):
            os.kill(pid, sig)
        assert service.process.wait(PATIENCE_S) == -sig
    assert list(tmp_path.iterdir()) == []


@linux
def test_47_no_process_of_a_service_may_write_a_core_file() -> None:
    with running(FAKE, "--processes", "2", prepare=allow_core_files) as service:
        for pid in service.processes:
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), command(pid)


def allow_core_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
