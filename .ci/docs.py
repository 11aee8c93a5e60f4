"""Write the tables of the documentation that the code knows: `make docs`. With --check, only compare them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from app.evaluation.cell_types import SPELLINGS
from app.evaluation.differential_count import wilson
from app.observability.metrics import Telemetry
from app.reports.loinc import CODES
from app.reports.verification_page import PUBLISHED
from app.settings import Settings, variable
from app.wire.problems import MEANINGS, status_of

ROOT = Path(__file__).parents[1]


def settings() -> str:
    rows = []
    for setting in fields(Settings):
        unit, choices = setting.metadata["unit"], setting.metadata["choices"]
        values = ", ".join(map(code, choices)) or unit or "–"
        rows.append((code(variable(setting)), code(setting.default), values, setting.metadata["help"]))
    return table(("Variable", "Default", "Unit or values", "Meaning"), rows)


def errors() -> str:
    codes = sorted(MEANINGS, key=lambda name: (status_of(name), name))
    rows = [(code(name), str(status_of(name)), MEANINGS[name]) for name in codes]
    return table(("Code", "Status", "Meaning"), rows)


def metrics() -> str:
    rows = []
    for metric in vars(Telemetry()).values():
        if isinstance(metric, MetricWrapperBase):
            [family] = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = ", ".join(map(code, metric._labelnames)) or "–"
            rows.append((code(name), family.type, labels, family.documentation))
    return table(("Metric", "Type", "Labels", "Meaning"), rows)


def labels() -> str:
    rows = []
    for cell_type, spellings in SPELLINGS.items():
        codes = [CODES[method].get(cell_type.key, "–") for method in ("none", "manual", "automated")]
        rows.append((code(cell_type.key), spellings or "–", cell_type.role.value, *codes))
    head = ("Label", "Other spellings", "Reported", "LOINC", "manual", "automated")
    return table(head, rows)


def folders() -> str:
    """The packages of `app` in the order of the import contract, which names all of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    names = [name.strip() for layer in layers for name in re.split("[:|]", layer)]
    packages = [ROOT / "app" / name for name in names if (ROOT / "app" / name).is_dir()]
    rows = [(code(f"{folder.name}/"), purpose(folder), ", ".join(modules(folder))) for folder in packages]
    return table(("Folder of `app/`", "What it holds", "Modules"), rows)


def purpose(folder: Path) -> str:
    return ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""


def modules(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("_"):
            yield code(f"{path.name}/")
        elif path.suffix == ".py" and path.stem != "__init__":
            yield code(path.stem)


def cells() -> str:
    """What a share is worth that was found on so many cells."""
    rows = [
        (str(n), *(known(round(share * n), n) for share in (0.85, 0.95, 1)))
        for n in (10, 20, 50, 100, 200, 400)
    ]
    return table(("Cells", "of which 85 % are right", "95 %", "all"), rows)


def known(right: int, n: int) -> str:
    low, high = (f"{bound / 100:.2f}" for bound in wilson(right, n))
    return f"{right}: {low} to {high}"


def agreement() -> str:
    return "".join(f"- {text}. {source}\n" for text, source in PUBLISHED)


def code(text: object) -> str:
    return f"`{text}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = "|---" * len(head) + "|\n"
    first, *lines = (f"| {' | '.join(cells)} |\n" for cells in (head, *rows))
    return first + rule + "".join(lines)


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/settings.md": {"settings": settings},
    "docs/errors.md": {"errors": errors},
    "docs/operations.md": {"metrics": metrics},
    "docs/own-laboratory.md": {"cells": cells, "agreement": agreement},
    "docs/labels.md": {"labels": labels},
    "CONTRIBUTING.md": {"folders": folders},
}


def fill(page: str, text: str) -> str:
    """Return the page's text with its tables made anew. Exits if the markers of a table are missing."""
    for name, make in TABLES[page].items():
        begin, end = f"<!-- {name}: made by make docs -->", "<!-- end -->"
        before, opening, rest = text.partition(begin)
        _, closing, after = rest.partition(end)
        if not opening or not closing:
            sys.exit(f"{page}: no markers for the table: expected {begin} … {end}")
        text = f"{before}{begin}\n\n{make()}\n{end}{after}"
    return text


def main(*arguments: str) -> None:
    stale = []
    for page in TABLES:
        text = (ROOT / page).read_text()
        if (current := fill(page, text)) != text:
            stale.append(page)
            if "--check" not in arguments:
                (ROOT / page).write_text(current)
                print(f"{page}: written")
    if stale and "--check" in arguments:
        sys.exit(f"stale tables in {', '.join(stale)}: run `make docs`")


if __name__ == "__main__":
    main(*sys.argv[1:])
