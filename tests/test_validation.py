"""Errors of invalid data in words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.validation import MOST_ERRORS, explain, faults


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    share: float = Field(ge=0, le=1)


class Outer(BaseModel):
    inner: Inner
    names: list[str] = Field(["a"], min_length=1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "inner is missing"),
        ({"inner": 3}, "inner must be an object, not 3"),
        ({"inner": {"share": 2}}, "inner.share must be less than or equal to 1, not 2"),
        ({"inner": {"share": 1, "shares": 1}}, "inner.shares is unknown"),
        ({"inner": {"share": 1}, "names": []}, "names must not be empty"),
        ([], "the document must be an object, not []"),
        (
            {"inner": {"share": "x"}, "names": [1]},
            "inner.share must be a valid number, unable to parse string as a number, not 'x'; "
            "names.0 must be a valid string, not 1",
        ),
    ],
)
def test_each_invalid_field_is_named_with_what_is_allowed(value: Any, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    assert explain(caught.value.errors()) == words


def test_only_the_first_errors_are_named_and_no_text_is_long() -> None:
    values = {f"{'x' * 1000}{number}": 1 for number in range(1000)}
    with pytest.raises(ValidationError) as caught:
        Inner.model_validate({"share": "9" * 10_000} | values)
    errors = caught.value.errors()
    assert len(explain(errors)) < MOST_ERRORS * 500
    assert len(found := faults(errors)) == MOST_ERRORS
    assert all(len(fault.field + fault.detail) < 1000 for fault in found)
