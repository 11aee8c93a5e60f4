"""docs/safety.md is the promise: each of its scenarios has the tests that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.running import ROOT

ROWS = re.findall(r"^\| (\d+) \|.*\| (.+?) \|$", (ROOT / "docs/safety.md").read_text(), re.M)


def test_the_scenarios_are_promised_in_order_and_once() -> None:
    numbers = [int(number) for number, _ in ROWS]
    assert numbers == [*range(1, 59)]


@pytest.mark.parametrize(("number", "shown_by"), ROWS, ids=[number for number, _ in ROWS])
def test_each_scenario_has_the_tests_that_are_named(number: str, shown_by: str) -> None:
    named = re.findall(r"`([^`]+)`", shown_by)
    assert named
    for name in named:
        if name.startswith("test_") and name != "test_fuzz.py":
            text = (Path(__file__).parent / name).read_text()
            assert re.search(rf"^def test_{int(number):02}_", text, re.M), name
        elif name.startswith("make "):
            assert f"\n{name.removeprefix('make ')}:" in (ROOT / "Makefile").read_text()
        else:
            assert (ROOT / name if "/" in name else Path(__file__).parent / name).is_file()
