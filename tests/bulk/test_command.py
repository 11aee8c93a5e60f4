"""`leuko score` apart from Ray: its checks, estimates and messages."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from app.archives.image_files import Kind, LeftOut
from app.archives.images import StoredImage
from app.bulk import command
from app.bulk.cluster import FailedPart, divide
from app.bulk.command import Tally
from app.bulk.destination import Destination, ScoredPart, tabulate
from app.bulk.location import Location
from app.bulk.plan import Part, plan
from app.cli.main import main
from app.engine.classifier import Prediction
from app.errors import Unusable
from app.imaging.framing import Frame
from app.inference.offline import Outcome
from app.inference.pipeline import Answer
from tests.fake_classifier import png
from tests.own_bundles import write_bundle
from tests.own_labels import FIVE, THIRTY_TWO


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


def test_a_class_with_the_name_of_a_column_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "bundle", ("neutrophil", "review"))
    assert main(["score", str(tmp_path), str(tmp_path / "out"), "--bundle", str(bundle)]) == 1
    assert "the model's class review has the name of another column" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("labels", [FIVE, THIRTY_TWO], ids=["5 labels", "32 labels"])
def test_rows_have_a_column_of_each_label(labels: tuple[str, ...]) -> None:
    probabilities = tuple(float(i == 1) for i in range(len(labels)))
    frame = Frame(0, 0, 8, 6, nucleus=False)
    answer = Answer("0" * 64, frame, Prediction(labels[1], 1.0, probabilities, 0.5, ()))
    table = tabulate([Outcome(StoredImage("a.png", lambda: b""), answer)], labels)
    assert table.schema.names[3 : 3 + len(labels)] == list(labels)
    [row] = table.to_pylist()
    assert (row["label"], row[labels[1]], row[labels[0]]) == (labels[1], 1, 0)


def test_the_name_of_a_destination_formats_nothing() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=200, color_system=None)
    command._report(Tally(1, 1), 0, 1.0, "a[/b]:smile:\x1b[2J", console, as_json=False)
    assert file.getvalue() == "0 images, 0 of them with an error, in a[/b]:smile:�[2J\n"


def test_what_cannot_be_read_or_is_no_image_is_said_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "1.png").write_bytes(png(1))
    (source / "notes.txt").write_text("a text")

    def work(remaining: dict[int, Part], *arguments: Any) -> None:
        tally: Tally = arguments[4]
        rows = Destination(Location.of(arguments[2]))
        for index in remaining:
            left_out = LeftOut([Kind.SYSTEM])  # of a tar
            tally.add(rows.write(index, [], (), left_out))
            assert rows.find(index) == ScoredPart(0, 0, left_out)

    monkeypatch.setattr(command, "_work", work)
    line = "leuko: 2 files were left out: hidden or left by a system (1), not an image (1)"
    for _ in range(2):  # the second time, all parts are done
        assert main(["score", str(source), str(tmp_path / "out")]) == 0
        printed = capsys.readouterr()
        assert printed.err.splitlines() == [line]
        assert json.loads(printed.out)["files_left_out"] == 2
    (source / "gone.png").symlink_to(tmp_path / "nowhere")
    assert main(["score", str(source), str(tmp_path / "out 2")]) == 1
    unread = ["leuko: gone.png: cannot be read: No such file or directory"]
    assert capsys.readouterr().err.splitlines()[1:3] == [*unread, "leuko: 1 files or folders cannot be read"]


@pytest.mark.parametrize("suffix", [".tar.zst", ".tzst", ".tar.lzma", ".TAR.LZ", ".7z", ".rar"])
def test_archives_that_are_not_read_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"cells{suffix}"
    archive.write_bytes(b"?")
    with pytest.raises(Unusable, match="is an archive that is not read"):
        plan(Location.of(str(archive)))
    [part] = plan(Location.of(str(tmp_path))).parts
    assert (part.kind, part.name, part.count) == ("flawed", archive.name, 1)


def test_a_destination_is_the_same_for_workers_elsewhere() -> None:
    assert command.absolute("rows") == str(Path.cwd() / "rows")
    assert command.absolute("s3://rows") == "s3://rows"
