"""The files around the code agree with the code and with each other."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prometheus_client import CollectorRegistry

import app
from app.cli.main import build_parser as app_parser
from app.observability.metrics import Telemetry
from app.registry.fetch import SHIPPED
from training.cli import build_parser as training_parser

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
# What only training and bulk scoring need, by the names of imports.
HEAVY = (
    "kagglehub",
    "lightning",
    "matplotlib",
    "nncf",
    "onnxruntime",
    "pyarrow",
    "ray",
    "torch",
    "torchvision",
    "tqdm",
)
SUFFIXES = ("", "_total", "_bucket", "_sum", "_count", "_info")


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    groups = [*project["optional-dependencies"].values(), *PROJECT["dependency-groups"].values()]
    named = [*project["dependencies"], *(line for group in groups for line in group if isinstance(line, str))]
    return [r for r in map(Requirement, named) if r.name != project["name"]]


def pins() -> dict[str, str]:
    lock = (ROOT / "requirements.lock").read_text()
    return dict(re.findall(r"^([\w.-]+)==([^ \n]+)", lock, re.MULTILINE))


def expressions(node: Any) -> Iterator[str]:
    """Yield every PromQL expression under a node of the dashboard."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in {"expr", "definition"})
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from expressions(child)


def test_the_quick_tests_import_nothing_that_their_environment_lacks() -> None:
    """Those of another Python: `.ci/run`, and `QUICK` in the Makefile."""
    absent = f"""
import sys
import pytest

class Absent:
    def find_spec(self, name, *_):
        if name in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.exit(pytest.main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", absent, "--collect-only", "-q", "-m", "quick", "-p", "no:xdist"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    "name",
    [
        "requirements.lock",
        "pyproject.toml",
        "Makefile",
        "Dockerfile",
        ".ci/run",
        ".ci/base-image",
        ".ci/image",
    ],
)
def test_no_build_file_names_a_host_an_index_or_a_path_of_one_machine(name: str) -> None:
    text = (ROOT / name).read_text().replace("http://127.0.0.1", "")
    assert not re.findall(r"\w+://|\b[\w-]+\.(?:com|dev|io|net|org)\b", text)
    assert not re.findall(
        r"--(?:index|extra-index|default-index|find-links)|file:|^-e |/(?:home|root|tmp|work)/", text, re.M
    )


def test_the_lock_pins_every_dependency_to_a_version_that_pyproject_allows() -> None:
    locked = pins()
    wrong = [
        str(r) for r in requirements() if not r.specifier.contains(locked.get(canonicalize_name(r.name), "0"))
    ]
    assert wrong == []


def test_the_version_is_written_once_and_has_a_changelog_entry() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert ROOT / PROJECT["tool"]["hatch"]["version"]["path"] == Path(app.__file__)
    assert re.search(rf"^## \[?{re.escape(app.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_the_readme_names_every_make_target() -> None:
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    readme = (ROOT / "README.md").read_text()
    assert "serve" in targets
    assert [name for name in targets if f"make {name}" not in readme] == []


def commands(text: str) -> list[list[str]]:
    """Return the words of each command in the shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [
        words
        for block in blocks
        for line in block.splitlines()
        if (words := shlex.split(line, comments=True))
    ]


def test_the_readme_s_commands_need_no_activated_environment() -> None:
    parsers = {".venv/bin/leuko": app_parser(), ".venv/bin/leuko-train": training_parser()}
    used = commands((ROOT / "README.md").read_text())
    assert {words[0] for words in used} == {"make", "curl", *parsers}
    for program, *arguments in used:
        if program in parsers and "--help" not in arguments:
            parsers[program].parse_args(arguments)


def test_every_extra_is_installed_by_a_command_of_its_own() -> None:
    extras = {*PROJECT["project"]["optional-dependencies"]}
    readme = (ROOT / "README.md").read_text()
    assert {*re.findall(r"^\| `(\w+)` \| [^|]+ \|$", readme.partition("| Extra |")[2], re.M)} == extras
    assert "make install EXTRAS=client" in readme
    command = ["make", "--dry-run", "VENV=absent", "install", f"EXTRAS={' '.join(sorted(extras))}"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {*re.findall(r"--extra (\w+)", made)} == extras
    assert "leuko serve" not in made


def test_no_document_installs_what_no_index_has() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    wrong = re.compile(r"""(?:pip install|uvx|uv tool \w+|uv add|pip install -U) +['"]?leuko""")
    assert [page.name for page in documents if wrong.search(page.read_text())] == []


def test_help_fits_a_terminal_of_80_columns() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("  make ") for line in lines) >= 15


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Failed to establish a new connection: [Errno 111]", "the network: uv could not be downloaded"),
        ("Temporary failure in name resolution", "the network: uv could not be downloaded"),
        ("Cannot connect to proxy. Tunnel connection failed: 407", "behind a proxy HTTPS_PROXY"),
        ("Read timed out.", "the network"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", "THESE PACKAGES DO NOT MATCH THE HASHES"),
    ],
)
def test_an_installation_without_the_network_says_so(tmp_path: Path, said: str, expected: str) -> None:
    python = tmp_path / "python"  # makes an environment whose pip fails
    python.write_text(
        "#!/bin/sh\n"
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
        f'if [ "$2" = pip ]; then cat > /dev/null; echo "{said}" >&2; exit 1; fi\n'
    )
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/bin/uv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert expected in done.stderr


def test_a_stale_table_is_named_with_what_to_run(tmp_path: Path) -> None:
    for name in (".ci/docs.py", "pyproject.toml", "CONTRIBUTING.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in ("app", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    page = tmp_path / "docs/errors.md"
    made = page.read_text()
    page.write_text(made.replace("| 429 |", "| 529 |"))
    command = [sys.executable, str(tmp_path / ".ci/docs.py")]
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (1, "stale tables in docs/errors.md: run `make docs`\n")
    subprocess.run(command, check=True)
    assert page.read_text() == made


def test_the_dashboard_shows_only_metrics_that_the_service_has() -> None:
    dashboard = json.loads((ROOT / "ops/grafana/dashboards/leuko.json").read_text())
    shown = {name for text in expressions(dashboard) for name in re.findall(r"\bleuko_\w+", text)}
    registry: CollectorRegistry = Telemetry().registry
    known = {family.name + suffix for family in registry.collect() for suffix in SUFFIXES}
    assert len(shown) > 10
    assert shown - known == set()


def test_compose_publishes_every_port_on_loopback_only() -> None:
    published = re.findall(r'ports: \["([^"]+)', (ROOT / "docker-compose.yml").read_text())
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_wheel_holds_the_bundle_that_is_served_by_default() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert SHIPPED in wheel["only-include"]
    assert wheel["sources"] == {str(Path(SHIPPED).parent): "app/shipped"}
