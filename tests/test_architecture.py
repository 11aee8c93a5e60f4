"""What import-linter's contracts in pyproject.toml cannot say about the code's structure."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("app", "training") for path in (ROOT / folder).rglob("*.py"))
ROUTES = [path for path in MODULES if "routes" in path.parts]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("path", ROUTES, ids=name_of)
def test_routes_leave_errors_to_the_one_table(path: Path) -> None:
    assert not [node for node in ast.walk(parse(path)) if isinstance(node, ast.Try | ast.TryStar)]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_handler_catches_everything_unseen(path: Path) -> None:
    handlers = [node for node in ast.walk(parse(path)) if isinstance(node, ast.ExceptHandler)]
    assert not [node.lineno for node in handlers if node.type is None]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_and_folder_opens_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(parse(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_has_a_name_that_says_nothing(path: Path) -> None:
    assert not {"utils", "helpers", "core", "common", "manager"} & set(name_of(path).split("."))


def test_engines_ray_and_reports_are_imported_only_when_they_are_needed() -> None:
    late = {"torch", "openvino", "ray", "pyarrow", "pydicom"}
    code = f"import sys, app.main, app.cli.main; print({late} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_folder_of_app_is_in_the_layers_of_the_contract() -> None:
    contract = (ROOT / "pyproject.toml").read_text()
    folders = [path.parent.name for path in (ROOT / "app").glob("*/__init__.py")]
    assert [name for name in folders if f"app.{name}" not in contract] == []


def test_every_file_that_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = set(re.findall(r"`([\w-]+/[\w./-]+\.(?:py|md|toml))`", text))
    assert len(names) > 40
    assert [
        name for name in sorted(names) if not any((ROOT / top / name).exists() for top in ("", "app"))
    ] == []
