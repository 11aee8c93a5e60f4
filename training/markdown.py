"""Markdown elements, and a recipe as TOML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---:") -> str:
    """Return a table; `align` is that of all columns but the first: `---:` for numbers, `---` for text."""
    lines = [head, ["---", *[align] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def listed(names: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def number(value: float | None) -> str:
    """Return a score with four decimals, a dash if it is None."""
    return "–" if value is None else f"{value:.4f}"


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


def toml(values: Mapping[str, Any]) -> str:
    """Write numbers, strings, booleans and lists of them as in JSON, and mappings as TOML tables."""
    plain = [f"{key} = {_value(value)}" for key, value in values.items() if not _is_section(key, value)]
    sections = [
        "\n".join(["", f"[{key}]", toml(value)]) for key, value in values.items() if _is_section(key, value)
    ]
    return "\n".join([*plain, *sections])


def _is_section(key: str, value: Any) -> bool:
    return isinstance(value, Mapping) and key != "mix"  # short enough for one line


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return json.dumps(value, ensure_ascii=False)
