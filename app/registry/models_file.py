"""Which bundles are served: LEUKO_MODELS, a file that is read again when it changes."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import SettingsError


@dataclass(frozen=True)
class ModelEntry:
    """shadow: the share of images that it is tried on without answering anybody; 0, and it answers."""

    bundle: str
    shadow: float = 0.0


def parse_models(text: str) -> tuple[ModelEntry, ...]:
    """The first entry is the default. Raises SettingsError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"it is no TOML: {error}") from None
    tables = document.pop("models", None)
    if document:
        raise SettingsError(f"{next(iter(document))!r} is not known: it holds [[models]] only")
    if not isinstance(tables, list) or not tables:
        raise SettingsError("it has no [[models]]")
    entries = tuple(_entry(number, table) for number, table in enumerate(tables, 1))
    _check(entries)
    return entries


def _entry(number: int, table: Any) -> ModelEntry:
    if not isinstance(table, dict) or not isinstance(table.get("bundle"), str) or not table["bundle"].strip():
        raise SettingsError(f'model {number} needs bundle = "…"')
    if unknown := table.keys() - {"bundle", "shadow"}:
        raise SettingsError(f"model {number}: {sorted(unknown)[0]!r} is not known, only bundle and shadow")
    shadow = table.get("shadow", False)
    if not isinstance(shadow, bool | int | float) or not 0 <= shadow <= 1:
        raise SettingsError(f"model {number}: shadow is true, or a share of images from 0 to 1")
    return ModelEntry(table["bundle"].strip(), float(shadow))


def _check(entries: Sequence[ModelEntry]) -> None:
    if entries[0].shadow:
        raise SettingsError("model 1 is the default, and no shadow")
    bundles = [entry.bundle for entry in entries]
    if len(set(bundles)) < len(bundles):
        raise SettingsError("a bundle is named twice")
