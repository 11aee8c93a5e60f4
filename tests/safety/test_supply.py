"""Scenario 29 and the supply chain: nothing runs that is not what was published."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from app.engine.bundle import FILES, GRAPH, WEIGHTS, load_bundle
from app.errors import BundleError
from tests.running import PATIENCE_S, REAL, serves, serving

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "models" / "wbc-resnet18"
MODULES = sorted(path for folder in ("app", "training") for path in (ROOT / folder).rglob("*.py"))
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Versions before these have holes that are known.
FLOORS = {"pillow": "13.0", "python-multipart": "0.0.32", "starlette": "1.6", "h11": "0.16", "torch": "2.10"}
UNPICKLERS = {"_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve"}
SAFE = {"allow_pickle": "False", "weights_only": "True"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The shipped bundle, whose files can be replaced."""
    path = tmp_path / "bundle"
    path.mkdir()
    for name in ("config.json", *FILES):
        (path / name).symlink_to(SHIPPED / name)
    return path


def replace(bundle: Path, name: str, data: bytes) -> None:
    (bundle / name).unlink()
    (bundle / name).write_bytes(data)


def flip(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    replace(bundle, name, bytes(content))


def vouch(bundle: Path, name: str) -> None:
    """Makes the manifest agree with the file, as whoever can write the one can the other."""
    config = json.loads((bundle / "config.json").read_bytes())
    config["files"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    replace(bundle, "config.json", json.dumps(config).encode())


def start(bundle: Path, engine: str) -> tuple[int, str]:
    """Exit status and log of a service that should not start."""
    environ = {"LEUKO_BUNDLE": str(bundle), "LEUKO_ENGINE": engine}
    with serving(REAL, environ=environ) as process:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            assert not serves(line)
        return process.wait(PATIENCE_S), "".join(log)


class Trap:
    """Pickled, it touches a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mknod, (str(self.marker),)


@pytest.mark.parametrize("name", [WEIGHTS, GRAPH])
def test_29_one_flipped_byte_refuses_to_start_and_names_the_file(bundle: Path, name: str) -> None:
    flip(bundle, name)
    status, log = start(bundle, "openvino")
    assert status == 1
    assert f"{name} has sha256" in log


@pytest.mark.parametrize("vouched", [False, True], ids=["manifest kept", "manifest corrected"])
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_29_a_pickle_in_place_of_the_weights_refuses_to_start_and_is_never_run(
    bundle: Path, tmp_path: Path, engine: str, vouched: bool
) -> None:
    marker = tmp_path / "run"
    trap = pickle.dumps(Trap(marker))
    pickle.loads(trap)
    assert marker.exists()
    marker.unlink()
    replace(bundle, WEIGHTS, trap)
    if vouched:
        vouch(bundle, WEIGHTS)
    status, log = start(bundle, engine)
    assert status == 1
    assert WEIGHTS in log
    assert not marker.exists()


@pytest.mark.parametrize("name", sorted(json.loads((SHIPPED / "config.json").read_bytes())["files"]))
def test_29_every_file_of_the_shipped_manifest_is_held_to_it(bundle: Path, name: str) -> None:
    load_bundle(bundle)
    flip(bundle, name)
    with pytest.raises(BundleError, match=f"{re.escape(name)} has sha256"):
        load_bundle(bundle)


def test_29_nothing_of_ours_can_run_what_it_reads() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {what}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        for what in dangers(node)
    }
    assert found == set()


def dangers(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (one.name for one in node.names if one.name.partition(".")[0] in UNPICKLERS)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from [node.module] if node.module.partition(".")[0] in UNPICKLERS else []
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        given = {str(keyword.arg): ast.unparse(keyword.value) for keyword in node.keywords}
        yield from [called] if called in {"eval", "exec", "compile", "__import__"} else []
        yield from [called] if called == "torch.load" and "weights_only" not in given else []
        yield from (f"{key}={given[key]}" for key, safe in SAFE.items() if given.get(key, safe) != safe)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_29_what_can_run_what_it_reads_is_seen(source: str) -> None:
    assert [what for node in ast.walk(ast.parse(source)) for what in dangers(node)]


def entries() -> dict[str, str]:
    """Package → version, marker and hashes, as the lock has them."""
    return dict(re.findall(r"^([\w.-]+)==((?:.*\\\n)*.*)", LOCK, re.MULTILINE))


def test_every_pin_has_hashes() -> None:
    assert len(entries()) > 100
    bare = [name for name, rest in entries().items() if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", rest)]
    assert bare == []
    assert [line for line in LOCK.splitlines() if line[:1].isalnum() and not line.endswith(" \\")] == []


def test_every_installation_checks_the_hashes() -> None:
    # VENV: as on a machine that has nothing yet.
    command = ["make", "--dry-run", "VENV=absent", "setup", "serve", "audit", "absent/.quick"]
    dry = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    made = [line for line in joined(dry.stdout) if "pip install " in line]
    assert len(made) == 8
    image = [part for line in joined((ROOT / "Dockerfile").read_text()) for part in line.split(" && ")]
    built = [line for line in image if re.search(r"(pip install|uv build) ", line)]
    assert len(built) == 6
    assert [line for line in made + built if not is_checked(line)] == []


def joined(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith(("#", "FROM"))]


def is_checked(command: str) -> bool:
    """What --no-deps leaves is our own code."""
    own = "--editable ." in command and "--build-constraint requirements.lock" in command
    wheel = "/wheel/*.whl" in command
    return "--require-hashes" in command or ("--no-deps" in command and (own or wheel))


def test_what_builds_the_wheel_is_pinned() -> None:
    group = {Requirement(line).name for line in PROJECT["dependency-groups"]["build"]}
    assert {Requirement(line).name for line in PROJECT["build-system"]["requires"]} <= group <= set(entries())


@pytest.mark.parametrize("name", FLOORS)
def test_versions_with_known_holes_are_excluded(name: str) -> None:
    project = PROJECT["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["torch"]]
    [required] = [r for r in map(Requirement, lines) if r.name == name]
    [least] = [one.version for one in required.specifier if one.operator == ">="]
    assert Version(least) >= Version(FLOORS[name])
    assert Version(entries()[name].split()[0]) >= Version(least)


def inventory(environment: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci/sbom.py"), str(environment), str(environment / "sbom.json")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def install(environment: Path, name: str, version: str) -> None:
    [packages] = environment.glob("lib/python*/site-packages")
    metadata = packages / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(
        f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n"
        "Project-URL: Home, https://example.org/\n"
    )


def test_the_inventory_names_packages_and_bundle_but_no_address(tmp_path: Path) -> None:
    venv.create(tmp_path)
    install(tmp_path, "h11", entries()["h11"].split()[0])
    done = inventory(tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "sbom.json").read_text()
    h11, bundle = json.loads(text)["components"]
    assert (h11["purl"], h11["licenses"][0]["license"]["id"]) == ("pkg:pypi/h11@0.16.0", "MIT")
    assert bundle["type"] == "machine-learning-model"
    assert bundle["hashes"][0]["content"] == load_bundle(SHIPPED).sha256
    assert {one["name"] for one in bundle["components"]} == set(FILES)
    assert "example.org" not in text


def test_the_inventory_of_what_is_not_pinned_is_refused(tmp_path: Path) -> None:
    venv.create(tmp_path)
    install(tmp_path, "stranger", "1.0")
    done = inventory(tmp_path)
    assert done.returncode == 1
    assert "stranger==1.0" in done.stderr


def test_57_one_argument_pins_the_base_of_every_stage_of_the_image() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for _, name in stages}
    assert {base for base, _ in stages} - names == {"python:${BASE_TAG}"}
