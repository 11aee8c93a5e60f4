"""The parsed Dockerfile, and its steps for the target `cpu`, run in a clean folder."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest

from tests.running import ROOT

TEXT = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def container() -> ModuleType:
    spec = spec_from_file_location("container", ROOT / ".ci/container.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["container"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_both_targets_run_as_a_user_that_is_not_root(container: ModuleType) -> None:
    stages = container.parse(TEXT)
    assert stages["cpu"].base == stages["cuda"].base == "runtime"
    steps = dict(stages["runtime"].steps)
    assert steps["USER"] == "10001:10001"
    assert {"HEALTHCHECK", "CMD"} <= steps.keys()


def test_only_the_gpu_s_target_installs_torch(container: ModuleType) -> None:
    stages = container.parse(TEXT)
    runs = {name: " ".join(text for _, text in stage.steps) for name, stage in stages.items()}
    assert "--extra torch" in runs["cuda-build"]
    assert not any("torch" in run for name, run in runs.items() if not name.startswith("cuda"))
    assert "cuda-build" not in container.dependencies(stages["cpu"])


def test_everything_that_is_copied_is_there(container: ModuleType) -> None:
    copied = [
        source
        for stage in container.parse(TEXT).values()
        for instruction, arguments in stage.steps
        if instruction == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    assert {"app", "models", "requirements.lock"} <= {*copied}
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_an_instruction_that_is_not_known_is_an_error(container: ModuleType) -> None:
    with pytest.raises(ValueError, match="unknown instruction SHELL"):
        container.parse('FROM a AS b\nSHELL ["sh"]')


@pytest.mark.ops
def test_what_the_steps_make_serves_without_torch() -> None:
    command = [sys.executable, ".ci/container.py"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "cpu: built, started, queried and stopped" in done.stdout
