"""Explain in words why data is invalid, field by field, from pydantic's errors."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable

from pydantic_core import ErrorDetails

Place = tuple[int | str, ...]


def dotted(place: Place) -> str:
    return ".".join(map(str, place)) or "the document"


def explain(errors: Iterable[ErrorDetails], name: Callable[[Place], str] = dotted) -> str:
    """Name every invalid field, what is allowed there, and its value. name: renders a field's place."""
    return "; ".join(_explain(error, name(error["loc"])) for error in errors)


def _explain(error: ErrorDetails, field: str) -> str:
    message = error["msg"]
    match error["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"{field} is unknown"
        case "value_error":
            return f"{field} {error['ctx']['error']}"
        case "json_invalid":
            return message
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{field} must be an object, not {reprlib.repr(error['input'])}"
        case "string_too_short" | "too_short":
            return f"{field} must not be empty"
    if message.startswith("Input should be"):
        return f"{field} {message.replace('Input should', 'must')}, not {reprlib.repr(error['input'])}"
    return f"{field}: {message}"
