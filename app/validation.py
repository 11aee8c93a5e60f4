"""Explain in words why data is invalid, field by field, from pydantic's errors."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic_core import ErrorDetails

# A schema with lists must have `fail_fast=True` there: pydantic else keeps an error for each of millions.
MOST_ERRORS = 20  # that are named
MOST_CHARACTERS = 200  # of a field's place, a value or a message, which can repeat the input

_OURS = "Value error, "  # what pydantic puts before the text of a ValueError of ours

Place = tuple[int | str, ...]


@dataclass(frozen=True)
class Fault:
    """An invalid field, as a response names it. code: pydantic's type of the error."""

    field: str
    detail: str
    code: str


def dotted(place: Place) -> str:
    return shorten(".".join(map(str, place))) or "the document"


def shorten(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"


def faults(errors: Iterable[Any]) -> list[Fault]:
    """Return the first MOST_ERRORS errors, without the values: they may name a patient."""
    return [
        Fault(dotted(error["loc"]), shorten(error["msg"].removeprefix(_OURS)), error["type"])
        for error in islice(errors, MOST_ERRORS)
    ]


def explain(errors: Iterable[ErrorDetails], name: Callable[[Place], str] = dotted) -> str:
    """Name invalid fields, what is allowed there, and their values. name: renders a field's place."""
    return "; ".join(_explain(error, shorten(name(error["loc"]))) for error in islice(errors, MOST_ERRORS))


def _explain(error: ErrorDetails, field: str) -> str:
    message = shorten(error["msg"])
    match error["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"{field} is unknown"
        case "value_error":
            return f"{field} {shorten(str(error['ctx']['error']))}"
        case "json_invalid":
            return message
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{field} must be an object, not {_value(error)}"
        case "string_too_short" | "too_short":
            return f"{field} must not be empty"
    if message.startswith("Input should be"):
        return f"{field} {message.replace('Input should', 'must')}, not {_value(error)}"
    return f"{field}: {message}"


def _value(error: ErrorDetails) -> str:
    return shorten(reprlib.repr(error["input"]))
