"""Scenarios 51 to 56 once more: files that grow, hold commands for a terminal, or cannot be listed."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from app.edge.keys import add_key
from app.units import MIB
from tests.fake_classifier import png
from tests.running import FAKE, ROOT, linux, running, wait_until

PR_CAPBSET_DROP = 24  # prctl(2)
READ_ALL = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: with them root can list every folder


def test_51_a_key_file_that_grows_without_limit_delays_nobody_and_keeps_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    secret = add_key(path, "lab-1", ["predict", "metrics"])
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "image/png"}
    with running(FAKE, "--keys", str(path)) as service, httpx.Client(base_url=service.address) as client:
        with path.open("ab") as file:
            for _ in range(400):
                file.write(b"#" * MIB)
        began = time.monotonic()
        wait_until(lambda: "\nleuko_keys_stale 1" in client.get("/metrics", headers=headers).text)
        assert client.post("/predict", content=png(0), headers=headers).status_code == 200
        assert time.monotonic() - began < 10
        assert service.end() == 0
    assert any("it has more than 1048576 bytes" in line for line in service.log)


def drop_capabilities() -> None:
    for capability in READ_ALL:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability)


@linux
def test_56_a_temporary_folder_that_cannot_be_listed_costs_a_warning(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir(mode=0o300)
    environ = {"TMPDIR": str(temporary)}
    with running(FAKE, "--processes", "2", environ=environ, prepare=drop_capabilities) as service:
        assert httpx.get(f"{service.address}/readyz").status_code == 200
        assert service.end() == 0
    temporary.chmod(0o700)
    assert [*temporary.iterdir()] == []


@pytest.mark.parametrize(
    "arguments",
    [("drift", "{}"), ("drift", "--{}", "log"), ("evaluate", "{}"), ("key", "a", "{}/b")],
)
def test_53_no_message_of_a_command_holds_control_characters(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    name = f"{tmp_path}/a\x1b]0;b\x07"
    command = [sys.executable, "-c", FAKE, *[argument.format(name) for argument in arguments]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode in (1, 2)
    assert "a�]0;b�" in done.stderr
    assert all(character.isprintable() or character == "\n" for character in done.stderr)
