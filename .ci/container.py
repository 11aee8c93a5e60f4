"""Run the Dockerfile's steps for a target in a clean folder without Docker, then start and query the service.

A folder replaces `/`: absolute paths of the Dockerfile are mapped into it; only the current stage is there.
Not tested: the base image (this machine's Python replaces it), its user, isolation.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE_S = 120.0
ABSOLUTE = re.compile(r"(?<![\w./}])/(?=(?:build|opt|srv|wheel)\b)")  # the paths that the Dockerfile creates
MOUNT = re.compile(r"--mount=from=(\S+?),source=(\S+?),target=(\S+)\s+")
SKIPPED = ("groupadd", "useradd")
INHERITED = re.compile(
    r"HOME|LANG|(PIP|SSL|UV|HTTPS?|NO|REQUESTS)_\w+", re.IGNORECASE
)  # how packages are found on this machine
KNOWN = ("ARG", "CMD", "COPY", "ENV", "EXPOSE", "HEALTHCHECK", "RUN", "USER", "WORKDIR")


@dataclass(frozen=True)
class Stage:
    name: str
    base: str
    steps: tuple[tuple[str, str], ...]  # instruction, arguments


@dataclass
class Image:
    """The state of a stage besides its files."""

    environ: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    settings: dict[str, str] = field(default_factory=dict)  # CMD, USER …

    def copy(self) -> Image:
        return Image(dict(self.environ), self.folder, dict(self.settings))


def parse(text: str) -> dict[str, Stage]:
    """Return the stages by name. Raises ValueError for an unknown instruction."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    name = base = ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        instruction, _, arguments = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            stages[name] = Stage(name, base, ())
        elif instruction and instruction not in KNOWN:
            raise ValueError(f"unknown instruction {instruction}: expected one of {', '.join(KNOWN)}")
        elif instruction and name:
            steps = (*stages[name].steps, (instruction, arguments))
            stages[name] = Stage(name, base, steps)
    return stages


class Builder:
    """root: replaces `/` for the current stage; the folders of the other stages lie beside it."""

    def __init__(self, stages: Mapping[str, Stage], folder: Path) -> None:
        self._stages = stages
        self._folder = folder
        self._done: dict[str, Image] = {}
        self._current = ""
        self.root = folder / "-"  # not the name of any stage

    def build(self, name: str) -> Image:
        """Build a stage and all that it needs, and make it the current one."""
        stage = self._stages[name]
        if name not in self._done:
            for needed in dependencies(stage):
                if needed in self._stages:
                    self.build(needed)
            image = self._begin(stage)
            for instruction, arguments in stage.steps:
                print(f"{name}: {instruction} {arguments}", flush=True)
                self._carry_out(image, instruction, arguments)
            self._done[name] = image
        self._switch(name)
        return self._done[name]

    def run(
        self, image: Image, command: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        folder = self.path(image.folder)
        return subprocess.Popen(command, cwd=folder, env={**self.environ(image), **(environ or {})})

    def environ(self, image: Image) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}
        return (
            inherited
            | {"PATH": self.search}
            | {name: self.map(value) for name, value in image.environ.items()}
        )

    @property
    def search(self) -> str:
        # uv does not base an environment on another one (ours in usr/local), so its base Python comes along.
        return f"{self.root}/usr/local/bin:{sys.base_prefix}/bin:/usr/bin:/bin"

    def map(self, text: str) -> str:
        return ABSOLUTE.sub(f"{self.root}/", text)

    def path(self, name: str, folder: str = "/") -> Path:
        return self.root / os.path.normpath(os.path.join(folder, name)).lstrip("/")  # noqa: PTH118

    def _begin(self, stage: Stage) -> Image:
        if stage.base in self._stages:
            image = self._done[stage.base].copy()
            self._switch("")
            shutil.copytree(self._place(stage.base), self.root, symlinks=True)
        else:
            image = Image()
            self._switch("")
            self.root.mkdir()
            python = [sys.executable, "-m", "venv", str(self.root / "usr/local")]
            subprocess.run(python, check=True)
        self._current = stage.name
        return image

    def _switch(self, name: str) -> None:
        if self._current != name:
            if self._current:
                self.root.rename(self._folder / self._current)
            if name:
                (self._folder / name).rename(self.root)
        self._current = name

    def _place(self, name: str) -> Path:
        return self.root if name == self._current else self._folder / name

    def _carry_out(self, image: Image, instruction: str, arguments: str) -> None:
        if instruction == "WORKDIR":
            image.folder = arguments
            self.path(arguments).mkdir(parents=True, exist_ok=True)
        elif instruction == "ENV":
            for name, _, value in (pair.partition("=") for pair in shlex.split(arguments)):
                image.environ[name] = value.replace("$PATH", image.environ.get("PATH", self.search))
        elif instruction == "COPY":
            self._copy(image, arguments.split())
        elif instruction == "RUN":
            self._run(image, arguments)
        else:
            image.settings[instruction] = arguments

    def _copy(self, image: Image, arguments: Sequence[str]) -> None:
        stage = arguments[0].removeprefix("--from=") if arguments[0].startswith("--from=") else None
        *sources, target = arguments[stage is not None :]
        goal = self.path(target, image.folder)
        for source in sources:
            into = goal / Path(source).name if target.endswith("/") else goal
            if stage is None:
                copy_tracked(source, into)
            else:
                shutil.copytree(
                    self._place(stage) / source.lstrip("/"), into, symlinks=True, dirs_exist_ok=True
                )

    def _run(self, image: Image, command: str) -> None:
        if command.startswith(SKIPPED):
            print("  skipped: it needs root and a system of its own")
            return
        mounted = []
        for stage, source, target in MOUNT.findall(command):
            shutil.copytree(self._place(stage) / source.lstrip("/"), self.path(target))
            mounted.append(self.path(target))
        script = self.map(MOUNT.sub("", command))
        folder = self.path(image.folder)
        subprocess.run(["bash", "-euc", script], cwd=folder, env=self.environ(image), check=True)
        for path in mounted:
            shutil.rmtree(path)


def dependencies(stage: Stage) -> list[str]:
    """Return the names of the stages and images that a stage uses, in order."""
    names = [stage.base]
    for _, arguments in stage.steps:
        names += re.findall(r"from=([\w-]+)", arguments)
    return names


def copy_tracked(source: str, goal: Path) -> None:
    """Copy the files that git and .dockerignore let in. Raises ValueError if there are none."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", source]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [name for name in listed.split("\0") if name and Path(name).parts[0] in allowed]
    if not files:
        raise ValueError(f"COPY {source}: git and .dockerignore let no file of this name in")
    for name in files:
        inside = Path(name).relative_to(source)
        target = goal / inside if str(inside) != "." else goal / name if goal.is_dir() else goal
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)


def try_out(builder: Builder, image: Image) -> None:
    """Run the image's own command on a free loopback port, and query it as a client does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    without = builder.run(image, ["python", "-c", "import torch"], {"PYTHONNOUSERSITE": "1"})
    assert without.wait() != 0, "torch can be imported"
    version = ["python", "-c", f"import sys; sys.exit(sys.version != {sys.version!r})"]
    assert builder.run(image, version).wait() == 0, "the image has another Python than this machine"
    sample = builder.path("/tmp/cell.png")
    sample.parent.mkdir(exist_ok=True)
    assert builder.run(image, ["leuko", "sample", "neutrophil", "-o", str(sample)]).wait() == 0
    environ = {"LEUKO_PORT": port}
    with builder.run(image, json.loads(image.settings["CMD"]), environ) as service:
        try:
            wait_ready(service, f"http://127.0.0.1:{port}/readyz")
            health = json.loads(image.settings["HEALTHCHECK"].partition("CMD ")[2])
            assert builder.run(image, health, environ).wait() == 0, "the health check fails"
            headers = {"content-type": "image/png"}
            request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", sample.read_bytes(), headers)
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                [prediction] = json.load(response)["predictions"]
            assert prediction["label"] == "neutrophil", prediction
            service.send_signal(signal.SIGTERM)
            assert service.wait(PATIENCE_S) == 0, "the service does not exit with 0"
        finally:
            service.kill()


def wait_ready(service: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert service.poll() is None, "the service ended before it was ready"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the service was not ready within {PATIENCE_S:g} s")


def main(target: str = "cpu") -> None:
    stages = parse((ROOT / "Dockerfile").read_text())
    with tempfile.TemporaryDirectory(prefix="leuko-image-") as folder:
        builder = Builder(stages, Path(folder))
        image = builder.build(target)
        try_out(builder, image)
        size = sum(path.lstat().st_size for path in builder.root.rglob("*") if path.is_file())
        print(f"{target}: built, started, queried and stopped; {size / 2**20:.0f} MiB without Python")


if __name__ == "__main__":
    main(*sys.argv[1:])
