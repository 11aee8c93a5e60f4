"""Parse the file of LEUKO_MODELS, which lists the bundles to serve."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from app.errors import SettingsError


@dataclass(frozen=True)
class ModelEntry:
    """shadow: share of the images on which the model runs as a shadow; 0: it answers requests."""

    bundle: str
    shadow: float = 0.0


def _check_share(value: Any) -> float:
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    raise ValueError("must be true, or a share of images from 0 to 1")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bundle: Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1)]
    shadow: Annotated[float, BeforeValidator(_check_share)] = 0.0


class _ModelsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: list[_Model] = Field(min_length=1)


WORDS: dict[str, str] = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "too_short": "must list at least one model",
    "list_type": "must be [[models]] tables",
    "model_type": "must be a table",
}


def parse_models(text: str) -> tuple[ModelEntry, ...]:
    """Parse the file; the first entry is the default model. Raise SettingsError, which names every error."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"not valid TOML: {error}") from None
    try:
        models = _ModelsFile.model_validate(document).models
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(fault) for fault in error.errors())) from None
    entries = tuple(ModelEntry(model.bundle, model.shadow) for model in models)
    _check(entries)
    return entries


def _explain(fault: Any) -> str:
    """Return one error with its place; models are counted from 1, as a person counts tables."""
    name, *rest = fault["loc"]
    if rest:
        name = " ".join([f"model {rest[0] + 1}", *map(str, rest[1:])])
    return f"{name}: {WORDS.get(fault['type']) or fault['msg'].removeprefix('Value error, ')}"


def _check(entries: Sequence[ModelEntry]) -> None:
    if entries[0].shadow:
        raise SettingsError("model 1 is the default and cannot be a shadow")
    bundles = [entry.bundle for entry in entries]
    if len(set(bundles)) < len(bundles):
        raise SettingsError("a bundle is listed twice")
