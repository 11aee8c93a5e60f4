"""Accept headers (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.negotiation import accepts_events, choose
from app.errors import NotAcceptable

OFFERED = ("application/json", "application/fhir+json", "application/hl7-v2")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/fhir+json", "application/fhir+json"),
        ("Application/FHIR+JSON; fhirVersion=4.0", "application/fhir+json"),
        ("application/json;q=0.5, application/hl7-v2", "application/hl7-v2"),
        ("text/html, application/hl7-v2;q=0.1", "application/hl7-v2"),
        ("*/*;q=0.1, application/fhir+json;q=0.2", "application/fhir+json"),
        ("*/*, application/json;q=0", "application/fhir+json"),
        ("application/fhir+json, application/json", "application/json"),
        ("application/json; q = 0.1, application/hl7-v2; q=0.3", "application/hl7-v2"),
        (" , ,application/hl7-v2,", "application/hl7-v2"),
    ],
)
def test_the_preferred_offered_type_is_chosen(accept: str, chosen: str) -> None:
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize(
    "accept", ["text/html", "application/json;q=0", "*/*;q=0", "application", "application/json;q=best"]
)
def test_a_type_that_is_not_offered_is_not_acceptable(accept: str) -> None:
    with pytest.raises(NotAcceptable, match=r"application/fhir\+json"):
        choose(accept, OFFERED)


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ("text/event-stream", True),
        ("application/json, Text/Event-Stream;q=0.5", True),
        ("text/event-stream;q=0", False),
        ("*/*", False),
        ("", False),
        ("text/event-streams", False),
    ],
)
def test_events_are_accepted_only_if_the_header_names_them(accept: str, events: bool) -> None:
    assert accepts_events(accept) == events


@given(st.text(alphabet='aplicton/*jsfhr+;q=.01, "nan') | st.text())
def test_any_header_chooses_an_offered_type_or_is_refused(accept: str) -> None:
    with suppress(NotAcceptable):
        assert choose(accept, OFFERED) in OFFERED
