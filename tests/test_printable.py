from __future__ import annotations

import logging

import pytest

from app.observability.logs import TextFormatter
from app.printable import complain, printable


def test_names_cannot_command_the_terminal() -> None:
    assert printable("a\x1b]0;b\x07\udcff.png\n") == "a�]0;b��.png�"


def test_a_complaint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("a\nleuko: \x1b[2Jb")
    assert capsys.readouterr().err == "leuko: a�leuko: �[2Jb\n"


def test_a_complaint_names_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    complain("\x1b[2J", "leuko-train")
    assert capsys.readouterr().err == "leuko-train: �[2J\n"


def test_a_line_of_the_log_for_people_is_printable() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 1, "%s", ("b\x1b[2J",), None)
    assert TextFormatter().format(record).endswith(" INFO b�[2J")
