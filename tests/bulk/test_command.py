"""`leuko score` apart from Ray: its checks, estimates and messages."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from app.bulk import command
from app.bulk.cluster import FailedPart, divide
from app.bulk.command import Tally
from app.bulk.destination import ScoredPart
from app.cli.main import main
from tests.fake_classifier import png


def test_images_to_come_are_reckoned_from_those_that_were_read() -> None:
    def state() -> tuple[int | None, int, int]:
        return tally.total, tally.images, tally.errors

    tally = Tally(parts=4, expected=None)
    assert state() == (None, 0, 0)
    tally.add(ScoredPart(10, 1))
    assert state() == (40, 10, 1)
    tally.add(FailedPart("a.tar: gone"))
    tally.add(ScoredPart(30, 0))
    assert state() == (80, 40, 1)
    assert tally.unread == ["a.tar: gone"]
    assert Tally(parts=4, expected=7).total == 7


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "expected"),
    [
        ([2], None, 0, (1, 2)),
        ([16], None, 0, (4, 4)),
        ([16, 16, 7], None, 0, (9, 4)),
        ([16], None, 1, (16, 1)),
        ([16], 3, 0, (3, 4)),
        ([2], None, 4, (1, 4)),
        ([], None, 0, (1, 4)),
    ],
)
def test_cores_are_shared_out(
    cores: list[int], workers: int | None, threads: int, expected: tuple[int, int]
) -> None:
    assert divide(cores, workers, threads) == expected


@pytest.mark.parametrize(
    ("destination", "more", "said"),
    [
        ("in/rows", [], "is inside the source"),
        ("in", [], "is inside the source"),
        ("out", ["--address", "ray://head:10001"], "must be HOST:PORT"),
        ("notes", [], "not empty"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], destination: str, more: list[str], said: str
) -> None:
    for name in ("in/1.png", "notes/thesis.tex"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png(1))
    before = sorted(tmp_path.rglob("*"))
    assert main(["score", str(tmp_path / "in"), str(tmp_path / destination), *more]) == 1
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_name_of_a_destination_formats_nothing() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=200, color_system=None)
    command._report(Tally(1, 1), 0, 1.0, "a[/b]:smile:\x1b[2J", console, as_json=False)
    assert file.getvalue() == "0 images, 0 of them with an error, in a[/b]:smile:�[2J\n"


def test_a_destination_is_the_same_for_workers_elsewhere() -> None:
    assert command.absolute("rows") == str(Path.cwd() / "rows")
    assert command.absolute("s3://rows") == "s3://rows"
