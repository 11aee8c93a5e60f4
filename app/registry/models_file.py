"""Parse the file of LEUKO_MODELS, which lists the bundles to serve."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from app.errors import SettingsError
from app.validation import Place, dotted, explain

MOST_DOTS = 100  # in a line; tomllib's time grows with the square of the parts of a dotted key


@dataclass(frozen=True)
class ModelEntry:
    """shadow: share of the images on which the model runs as a shadow; 0: it answers requests."""

    bundle: str
    shadow: float = 0.0


def _check_share(value: Any) -> float:
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    raise ValueError("must be true, or a share of images from 0 to 1")


def _check_bundle(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a null character")
    return value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bundle: Annotated[
        str,
        StringConstraints(strict=True, strip_whitespace=True, min_length=1),
        AfterValidator(_check_bundle),
    ]
    shadow: Annotated[float, BeforeValidator(_check_share)] = 0.0


class _ModelsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: list[_Model] = Field(min_length=1)


def parse_models(text: str) -> tuple[ModelEntry, ...]:
    """Parse the file; the first entry is the default model. A byte order mark at the start is skipped.

    Raise SettingsError, which names every error.
    """
    try:
        models = _parse(text.removeprefix("\ufeff"))
    except RecursionError:
        raise SettingsError("not valid TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError; a number of thousands of digits
        raise SettingsError(f"not valid TOML: {error}") from None
    entries = tuple(ModelEntry(model.bundle, model.shadow) for model in models)
    _check(entries)
    return entries


def _parse(text: str) -> list[_Model]:
    """Raise SettingsError, ValueError or RecursionError."""
    if any(line.count(".") > MOST_DOTS for line in text.split("\n") if not line.lstrip().startswith("#")):
        raise SettingsError(f"more than {MOST_DOTS} dots in a line")
    document = tomllib.loads(text)
    try:
        return _ModelsFile.model_validate(document).models
    except ValidationError as error:
        raise SettingsError(explain(error.errors(), _name)) from None


def _name(place: Place) -> str:
    """Name a field; models are counted from 1, as a person counts tables."""
    if len(place) < 2:
        return dotted(place)
    _, index, *rest = place
    return " ".join([f"model {int(index) + 1}", *map(str, rest)])


def _check(entries: Sequence[ModelEntry]) -> None:
    if entries[0].shadow:
        raise SettingsError("model 1 is the default and cannot be a shadow")
    bundles = [entry.bundle for entry in entries]
    if len(set(bundles)) < len(bundles):
        raise SettingsError("a bundle is listed twice")
