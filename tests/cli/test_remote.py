"""`leuko predict --url` prints what `leuko predict` prints."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from app.cli.main import main
from app.edge.keys import add_key
from tests.fake_classifier import load, png
from tests.fakes import CUT, GREYS
from tests.running import FAKE, Running, running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cells").mkdir()
    for number, grey in enumerate(GREYS * 20):
        (tmp_path / f"cells/{number:02}.png").write_bytes(png(grey))
    (tmp_path / "cells/cut.png").write_bytes(CUT)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, **options: Any) -> tuple[int, Any]:
    code = main(["predict", *arguments], **options)
    return code, json.loads(capsys.readouterr().out)


def test_a_service_says_what_this_machine_says(
    service: Running, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = (str(folder / "cells"), str(folder / "absent.png"), "-")
    here = said(capsys, *paths, stdin=io.BytesIO(png(GREYS[1])), load=load)
    there = said(capsys, "--url", service.address, *paths, stdin=io.BytesIO(png(GREYS[1])))
    assert there == here
    code, document = there
    assert (code, len(document["predictions"]), len(document["errors"])) == (1, 81, 2)


def test_a_service_says_what_this_machine_says_of_all_cells(
    service: Running, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = said(capsys, "--cells", "all", str(folder / "cells"), load=load)
    there = said(capsys, "--cells", "all", "--url", service.address, str(folder / "cells"))
    assert there == here
    assert {cell["cell"] for cell in there[1]["predictions"]} == {0}


def test_a_key_comes_from_the_environment(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = add_key(tmp_path / "keys", "lab", ["predict"])
    image = str(folder / "cells/00.png")
    with running(FAKE, "--keys", str(tmp_path / "keys")) as service:
        assert main(["predict", "--url", service.address, image]) == 1
        assert "Valid key required (401)" in capsys.readouterr().err
        monkeypatch.setitem(os.environ, "LEUKO_KEY", secret)
        code, document = said(capsys, "--url", service.address, image)
    assert (code, document["predictions"][0]["label"]) == (0, "eosinophil")


def test_a_service_that_is_no_leuko_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["predict", "--url", "ftp://127.0.0.1", str(folder / "cells/00.png")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("leuko: ")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://127.0.0.1:9", "hidden\n"),
        ("http://127.0.0.1:9", "hiddené"),
        ("http://hidden:secret@127.0.0.1:9", None),
        ("http://hidden:sec/ret@127.0.0.1:9", None),
        ("hidden:secret@127.0.0.1:9", None),
    ],
)
def test_neither_key_nor_user_is_printed(
    url: str,
    key: str | None,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if key is not None:
        monkeypatch.setitem(os.environ, "LEUKO_KEY", key)
    assert main(["predict", "--url", url, str(folder / "cells/00.png")]) in (1, 2)
    message = capsys.readouterr().err
    assert message.startswith("leuko: ")
    assert message.count("\n") == 1
    assert "hidden" not in message
    assert "sec" not in message
