"""Scenarios 39 and 47, from a process's first moment on; 43: what a service that is killed leaves running."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app import private
from benchmarks.stalls import pattern
from tests.running import FAKE, PATIENCE_S, ROOT, linux, running, serves, wait_until
from tests.safety.test_bodies import command, send, working
from tests.safety.test_confinement import allow_core_files

# Python imports this first if its folder is on the import path. It acts before the first import of a package
# that is neither ours nor Python's own (pickle tries `org`, site usercustomize): what takes time comes after.
SITE = """
import ctypes, json, os, resource, signal, sys

class First:
    def find_spec(self, name, *_):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("app", "org", "usercustomize"):
            return
        sys.meta_path.remove(self)
        ACT

def note():
    line = {
        "command": sys.orig_argv,
        "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "variables": [*os.environ],
    }
    with open(__file__ + ".jsonl", "a") as file:
        file.write(json.dumps(line) + "\\n")

sys.meta_path.insert(0, First())
"""
NOTE, QUIT = "note()", "os.kill(os.getpid(), signal.SIGQUIT)"
SECRETS = {"HF_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "s", "LEUKO_CACHE": "c", "PGPASSWORD": "p"}


@dataclass(frozen=True)
class Noted:
    """What a process was when it imported the first package."""

    command: list[str]
    dumpable: int
    core: list[int]
    variables: list[str]


def site(folder: Path, act: str) -> dict[str, str]:
    """Write SITE and return the environment of a service that reads it."""
    (folder / "sitecustomize.py").write_text(SITE.replace("ACT", act))
    return {**os.environ, **SECRETS, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@contextmanager
def noted(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Serve the shipped model as `python -m app` does, from a folder that can have core files."""
    with subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--port", "0", "--bundle", *BUNDLE, *arguments],
        cwd=folder,
        env=site(folder, NOTE),
        preexec_fn=allow_core_files,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            address = next(json.loads(line)["message"] for line in process.stderr if serves(line)).split()[-1]
            with httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
                yield process, client
        finally:
            process.terminate()
            process.wait()


BUNDLE = [str(ROOT / "models/wbc-resnet18")]


@linux
def test_39_and_47_every_process_is_private_before_it_imports_any_package(tmp_path: Path) -> None:
    with noted(tmp_path, "--processes", "2") as (_, client):
        work = pattern()
        large = b'{"labels":[' + b"1," * 9000 + b'1],"predictions":[' + b"1," * 9000 + b"1]}"
        assert send(client, "/evaluate/predictions", large).status_code == 200
        assert send(client, work.path, work.body, work.media_type).status_code == 422
    lines = (tmp_path / "sitecustomize.py.jsonl").read_text().splitlines()
    found = [Noted(**json.loads(line)) for line in lines]
    kinds = ("serve", "decode_worker", "json_tasks:work")
    for kind in kinds:
        assert any(kind in " ".join(noted.command) for noted in found), kind
    for each in found:
        assert (each.dumpable, each.core) == (0, [0, 0]), each.command
        if "app.private" in each.command:
            assert not SECRETS.keys() & {*each.variables}


@linux
def test_39_a_process_that_computes_gets_no_variable_that_may_hold_a_secret() -> None:
    slow = pattern()
    with (
        running(FAKE, "--processes", "2", environ=SECRETS) as service,
        service.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(send, client, slow.path, slow.body, slow.media_type)
        wait_until(lambda: bool(working(service, "pattern_search")))
        kinds = ("pattern_search", "decode_worker")
        found = [(pid, kind) for pid in service.processes for kind in kinds if kind in command(pid)]
        assert {kind for _, kind in found} == {*kinds}
        for pid, kind in found:
            variables = Path(f"/proc/{pid}/environ").read_bytes()
            assert not [name for name in SECRETS if name.encode() in variables], kind
        assert answer.result().status_code == 422


def end_at_sigquit() -> None:
    allow_core_files()
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell ignores it in what it runs in the background


@linux
def test_47_a_service_that_is_ended_by_sigquit_while_it_starts_leaves_no_core_file(tmp_path: Path) -> None:
    if Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")):
        pytest.skip("this machine does not write core files to the working folder")
    folder = tmp_path / "here"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--port", "0"],
        cwd=folder,
        env=site(tmp_path, QUIT),
        preexec_fn=end_at_sigquit,
        check=False,
    )
    assert done.returncode == -signal.SIGQUIT
    assert list(folder.iterdir()) == []


@linux
def test_39_a_process_that_was_traced_before_it_became_private_ends() -> None:
    # This process traces it: the program stops at once and is let go on.
    with subprocess.Popen(
        private.command("app.inference.decode_worker"),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: ctypes.CDLL(None).ptrace(0, 0, 0, 0),  # PTRACE_TRACEME
        text=True,
    ) as process:
        _, status = os.waitpid(process.pid, 0)
        assert os.WIFSTOPPED(status)
        ctypes.CDLL(None).ptrace(7, process.pid, None, None)  # PTRACE_CONT
        assert process.stderr is not None
        assert f"process {os.getpid()} traces a process of the service" in process.stderr.read()
        assert process.wait() == 1


@linux
def test_43_a_service_that_is_killed_leaves_no_pattern_running() -> None:
    slow = pattern()
    with running() as service, service.client() as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(send, client, slow.path, slow.body, slow.media_type)
        wait_until(lambda: bool(working(service, "pattern_search")))
        [pid] = working(service, "pattern_search")
        wait_until(lambda: nice(pid) > 0)  # it has begun
        os.kill(service.process.pid, signal.SIGKILL)
        wait_until(lambda: "pattern_search" not in command(pid), patience_s=5)  # long before its own limit
        assert isinstance(answer.exception(PATIENCE_S), httpx.TransportError)


def nice(pid: int) -> int:
    with suppress(OSError):  # it has ended
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])
    return 0
