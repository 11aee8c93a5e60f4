"""Pieces of Markdown, and a recipe as TOML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---:") -> str:
    """align: of all columns but the first, which holds names; to the right for numbers, `---` for words."""
    lines = [head, ["---", *[align] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def listed(names: Sequence[str]) -> str:
    """`a, b and c`"""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def number(value: float | None) -> str:
    """A score; a dash where it is undefined."""
    return "–" if value is None else f"{value:.4f}"


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


def toml(values: Mapping[str, Any]) -> str:
    """values: numbers, texts, truths, lists of them (all written as in JSON), and tables of those."""
    plain = [f"{key} = {_value(value)}" for key, value in values.items() if not _is_section(key, value)]
    sections = [
        "\n".join(["", f"[{key}]", toml(value)]) for key, value in values.items() if _is_section(key, value)
    ]
    return "\n".join([*plain, *sections])


def _is_section(key: str, value: Any) -> bool:
    return isinstance(value, Mapping) and key != "mix"  # which is short


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(key)} = {_value(one)}" for key, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return json.dumps(value, ensure_ascii=False)
