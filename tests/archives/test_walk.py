"""Folders and files that cannot be read are errors, never images that are missing without a word."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from app.archives.image_files import Kind
from app.archives.walk import list_images, walk
from app.cli.main import main
from app.engine.bundle import CLASSES
from tests.fake_classifier import load, png
from training.cli import main as train

CLOSED = "monocyte/closed"  # a folder
SHUT = ("neutrophil/shut.png", "neutrophil/shut")  # files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image of each class, and one in each place that `closed` closes."""
    names = [*(f"{label}/1.png" for label in CLASSES), f"{CLOSED}/2.png", *SHUT]
    for grey, name in enumerate(names):
        path = tmp_path / "cells" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(grey))
    (tmp_path / "cells/eosinophil/gone.png").symlink_to(tmp_path / "nowhere.png")
    return tmp_path / "cells"


@pytest.fixture
def closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, of which parts may not be read. Root may read all, so the system's answers are replaced."""
    scandir, access = os.scandir, os.access

    def may(place: Any) -> bool:
        return not str(place).startswith(tuple(str(folder / name) for name in (CLOSED, *SHUT)))

    def refuse(place: Any) -> Any:
        if may(place):
            return scandir(place)
        raise PermissionError(13, "Permission denied", place)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "access", lambda place, mode, **more: may(place) and access(place, mode, **more))
    return folder


UNREAD = sorted(["eosinophil/gone.png", CLOSED, *SHUT])


def test_a_walk_lists_what_cannot_be_read(closed: Path) -> None:
    files = list_images(closed)
    assert [*files.stamps] == [f"{label}/1.png" for label in CLASSES]
    assert files.closed == {CLOSED}
    assert files.unread == dict.fromkeys((CLOSED, *SHUT), "Permission denied") | {
        "eosinophil/gone.png": "No such file or directory"
    }


def test_what_a_system_left_behind_is_not_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lost+found/a.png", ".Trash-1000/files/a.png", "@eaDir/b/c.jpg"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(png(1))
    scandir = os.scandir

    def refuse(place: Any) -> Any:
        if str(place).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    files = walk(folder)
    assert files.left_out == {Kind.SYSTEM: 3}
    assert [*files.unread] == ["eosinophil/gone.png"]


def test_a_folder_that_cannot_be_read_itself_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        walk(tmp_path / "nowhere")


def test_predict_fails_for_what_cannot_be_read(closed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(closed)], load=load) == 1
    document = json.loads(capsys.readouterr().out)
    assert len(document["predictions"]) == len(CLASSES)
    assert [error["filename"] for error in document["errors"]] == [str(closed / name) for name in UNREAD]
    assert {error["code"] for error in document["errors"]} == {"unusable"}
    assert "cannot be read: Permission denied" in document["errors"][1]["detail"]


@pytest.mark.parametrize("groups", [[], ["--group-pattern", "(.)[.]png"]])
def test_evaluate_says_what_cannot_be_read_and_exits_with_1(
    closed: Path, capsys: pytest.CaptureFixture[str], groups: list[str]
) -> None:
    assert main(["evaluate", str(closed), *groups], load=load) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["n"] == len(CLASSES)
    assert [error["filename"] for error in document["errors"]] == UNREAD
    assert printed.err == "leuko: 4 files or folders cannot be read and are not in the report\n"


def test_training_refuses_what_cannot_be_read_and_names_all(
    closed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "manifest.csv"
    assert train(["data", str(closed), "--out", str(out)]) == 1
    printed = capsys.readouterr().err
    assert all(f"{name} (" in printed for name in UNREAD)
    assert printed.count("\n") == 1
    assert not out.exists()


def test_score_plans_what_cannot_be_read_as_rows_and_parts_left_out(closed: Path) -> None:
    pytest.importorskip("pyarrow")
    from app.bulk.location import Location
    from app.bulk.plan import plan

    planned = plan(Location.of(str(closed)))
    assert sorted(planned.unread) == UNREAD
    images, unread = planned.parts
    assert set(UNREAD) - set(images.images) == {CLOSED}
    assert (unread.kind, unread.name, unread.flaw) == ("unread", CLOSED, "Permission denied")
