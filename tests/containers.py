"""Containers of Leuko's image, run by the engine that is here; tests skip in words where there is none."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from tests.running import PATIENCE_S, ROOT, wait_until

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
STARTING_S = 120  # for a container to be healthy: its checks are 10 s apart
BUILDING_S = 1800


@cache
def _found() -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / ".ci/engine"], capture_output=True, text=True)


def engine() -> str:
    """Return the engine's command, or skip the test."""
    if _found().returncode:
        pytest.skip(_found().stderr.strip())
    return _found().stdout.strip()


def call(*arguments: str, check: bool = True) -> str:
    """Call the engine and return what it prints."""
    done = subprocess.run([engine(), *arguments], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


@cache
def _build(target: str) -> str:
    command = [str(ROOT / ".ci/image"), target]
    environ = {**os.environ, "ENGINE": engine()}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=BUILDING_S)
    assert done.returncode == 0, done.stderr[-4000:]
    return f"leuko:{target}"


def image(target: str = "cpu") -> str:
    """Build the image of this checkout, once, and return its name; or skip the test."""
    engine()
    return _build(target)


def hardened(*leave: str) -> list[str]:
    """Return the options for what docker-compose.yml says of the service. leave: keys that are left out."""
    service = {key: value for key, value in COMPOSE["services"]["leuko"].items() if key not in leave}
    options = ["--read-only"] if service.get("read_only") else []
    options += [f"--cap-drop={capability}" for capability in service.get("cap_drop", ())]
    options += [f"--security-opt={option}" for option in service.get("security_opt", ())]
    options += [f"--tmpfs={folder}" for folder in service.get("tmpfs", ())]
    options += [f"--ulimit={name}={limit}" for name, limit in service.get("ulimits", {}).items()]
    options += [f"--env={name}={value}" for name, value in service.get("environment", {}).items()]
    names = {"mem_limit": "memory", "pids_limit": "pids-limit"}
    options += [f"--{names[key]}={service[key]}" for key in names if key in service]
    return [*options, f"--stop-timeout={service['stop_grace_period'].rstrip('s')}"]


@dataclass(frozen=True)
class Container:
    name: str

    def inspect(self) -> dict[str, Any]:
        [found] = json.loads(call("inspect", self.name))
        return dict(found)

    @property
    def state(self) -> dict[str, Any]:
        return dict(self.inspect()["State"])

    @property
    def health(self) -> dict[str, Any]:
        return dict(self.state["Health"])

    @property
    def restarts(self) -> int:
        return int(self.inspect()["RestartCount"])

    @property
    def address(self) -> str:
        """Its own, on the engine's bridge: on Linux this machine reaches it."""
        [network, *_] = self.inspect()["NetworkSettings"]["Networks"].values()
        return f"http://{network['IPAddress']}:8000"

    @property
    def log(self) -> str:
        done = subprocess.run([engine(), "logs", self.name], capture_output=True, text=True)
        return done.stdout + done.stderr

    def client(self, timeout_s: float = PATIENCE_S) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=timeout_s)

    def run(self, *command: str) -> str:
        """Run a command in it, and return what it prints."""
        return call("exec", self.name, *command)

    def python(self, code: str, *arguments: str) -> str:
        return self.run("python", "-c", code, *arguments)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.address}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.is_ready() or not self.state["Running"], STARTING_S)
        assert self.state["Running"], self.log

    def wait_until_healthy(self) -> None:
        wait_until(lambda: self.health["Status"] == "healthy" or not self.state["Running"], STARTING_S)
        assert self.health["Status"] == "healthy", f"{self.health}\n{self.log}"

    def written(self) -> list[str]:
        """Return the paths in its own file system that differ from the image."""
        return call("diff", self.name).splitlines()

    @property
    def decoders(self) -> int:
        # One process forks the others.
        return max(0, call("top", self.name, "-eo", "pid,args").count("app.inference.decode_worker") - 1)


@contextmanager
def contained(
    *options: str, command: Sequence[str] = (), of: str | None = None, ready: bool = True
) -> Iterator[Container]:
    """Run a container of an image, Leuko's unless `of` names another, and remove it with its volumes."""
    container = Container(f"leuko-test-{uuid4().hex[:12]}")
    name = of or image()
    try:
        call("run", "--detach", "--name", container.name, *options, name, *command)
        if ready:
            container.wait_until_ready()
        yield container
    finally:
        call("rm", "--force", "--volumes", container.name, check=False)
