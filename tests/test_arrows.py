"""The arrows of the architecture, read off the syntax trees: who may import whom."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("app", "training") for path in (ROOT / folder).rglob("*.py"))
ROUTES = [path for path in MODULES if "routes" in path.parts]

# module or folder → what it may import beyond the standard library and itself; most specific first
MAY: dict[str, set[str]] = {
    "app": set(),
    "app.errors": set(),
    "app.schemas": {"pydantic"},
    "app.telemetry": {"prometheus_client", "app.vision.reference"},
    "app.drift": {"app.errors", "app.vision"},
    "app.watched": set(),
    "app.keys": {"app.errors", "app.watched"},
    "app.protocols": set(),
    "app.access": {"starlette", "app.errors", "app.keys", "app.protocols"},
    "app.audit": {"app.errors"},
    "app.threads": set(),
    "app.limits": set(),
    "app.connection": {"starlette", "uvicorn", "app.errors"},
    "app.runs": {"app.errors", "app.threads"},
    "app.batching": {"app.errors", "app.runs", "app.threads"},
    "app.stages": set(),
    "app.pipeline": {"app.errors", "app.stages", "app.threads", "app.vision"},
    "app.decoder": {"numpy", "PIL", "app.errors", "app.vision"},
    "app.decoders": {"numpy", "app.decoder", "app.errors", "app.threads", "app.vision"},
    "app.exchange": {"starlette", "app.errors", "app.stages"},
    "app.compression": {"app.errors"},
    "app.oip": {"numpy", "pydantic", "app.errors", "app.vision"},
    "app.admission": {
        "starlette",
        "app.compression",
        "app.errors",
        "app.exchange",
        "app.keys",
        "app.protocols",
    },
    "app.settings": {"app.errors"},
    "app.logs": {"app.settings"},
    "app.tracing": {
        "opentelemetry",
        "app.__version__",
        "app.errors",
        "app.exchange",
        "app.stages",
        "app.telemetry",
    },
    "app.problems": {"fastapi", "starlette", "app.errors", "app.protocols", "app.schemas"},
    "app.uploads": {"fastapi", "starlette", "pydantic", "python_multipart", "app.errors"},
    "app.vision": {"cykooz_resizer", "numpy", "PIL", "safetensors", "sklearn", "threadpoolctl", "app.errors"},
    "app.vision.resnet18": {"torch", "safetensors", "app.errors", "app.vision"},
    "app.vision.torch": {"numpy", "torch", "app.vision"},
    "app.vision.openvino": {"numpy", "openvino", "app.errors", "app.vision"},
}
# module or folder → what it may never import
NEVER: dict[str, set[str]] = {
    "app": {"training", "torch", "torchvision", "openvino", "lightning", "tests"},
    "app.vision.resnet18": {"training", "torchvision", "openvino"},
    "app.vision.torch": {"training", "torchvision", "openvino"},
    "app.vision.openvino": {"training", "torch"},
    "app.bulk": {
        "training",
        "torch",
        "torchvision",
        "openvino",
        "lightning",
        "tests",
        "fastapi",
        "starlette",
    },
    "training": {"fastapi", "starlette", "tests"},
}
TRAINING_MAY = {"app.__version__", "app.errors", "app.vision"}
ENGINES = {"app.vision.torch", "app.vision.resnet18", "app.vision.openvino"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names; of `from a import b` both a and a.b, for b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def eager(tree: ast.Module) -> Iterator[str]:
    """What is imported as soon as the module is; not inside functions, nor for type checkers only."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If):
            yield from imports(node)


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def rule(name: str, rules: dict[str, set[str]]) -> set[str]:
    """That of the nearest place; nothing where there is none."""
    places = [place for place in rules if within(name, {place})]
    return rules[max(places, key=len)] if places else set()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def ids(path: Path) -> str:
    return name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_a_module_imports_nothing_that_it_must_not_know(path: Path) -> None:
    forbidden = rule(name_of(path), NEVER)
    found = list(eager(parse(path))) if name_of(path).startswith("app.vision") else imports(parse(path))
    assert [name for name in found if within(name, forbidden)] == []


@pytest.mark.parametrize("place", sorted(MAY))
def test_a_module_with_narrow_arrows_keeps_to_them(place: str) -> None:
    checked = 0
    for path in MODULES:
        name = name_of(path)
        nearest = max((rule for rule in MAY if within(name, {rule})), key=len, default="")
        if nearest != place or (place == "app" and name != "app"):
            continue
        checked += 1
        allowed = MAY[place] | {place} | set(sys.stdlib_module_names)
        strangers = [found for found in eager(parse(path)) if not within(found, allowed)]
        assert strangers == [], name
    assert checked


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_engines_are_imported_only_when_they_are_chosen(path: Path) -> None:
    if name_of(path) in ENGINES or name_of(path).startswith("training"):
        return
    assert [name for name in eager(parse(path)) if within(name, ENGINES)] == []


@pytest.mark.parametrize("path", [path for path in MODULES if "training" in path.parts], ids=ids)
def test_training_knows_of_the_service_only_its_vision_and_errors(path: Path) -> None:
    ours = [name for name in imports(parse(path)) if within(name, {"app"})]
    assert [
        name for name in ours if name != "app.__version__" and not within(name, TRAINING_MAY - {"app"})
    ] == []


@pytest.mark.parametrize("path", ROUTES, ids=ids)
def test_routes_leave_errors_to_the_one_table(path: Path) -> None:
    assert not [node for node in ast.walk(parse(path)) if isinstance(node, ast.Try | ast.TryStar)]


@pytest.mark.parametrize("path", [path for path in MODULES if path not in ROUTES], ids=ids)
def test_only_the_application_itself_knows_the_routes(path: Path) -> None:
    known = [name for name in imports(parse(path)) if within(name, {"app.routes"})]
    assert not known or name_of(path) == "app.main"


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_no_handler_catches_everything_unseen(path: Path) -> None:
    handlers = [node for node in ast.walk(parse(path)) if isinstance(node, ast.ExceptHandler)]
    assert not [node.lineno for node in handlers if node.type is None]


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_a_module_opens_with_a_docstring_and_stays_below_300_lines(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 300


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_no_module_has_a_name_that_says_nothing(path: Path) -> None:
    assert not {"utils", "helpers", "core", "common", "manager"} & set(name_of(path).split("."))
