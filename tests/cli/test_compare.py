from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from app.cli.compare import check_labels, compare
from app.cli.main import main
from app.engine.bundle import CLASSES
from app.engine.classifier import Classifier, Prediction
from app.errors import BundleError, EngineError
from app.settings import Settings
from tests.cli.test_commands import shown, terminal, zipped
from tests.cli.test_verify import labelled
from tests.fake_classifier import NAN, FakeClassifier, png
from tests.fakes import CUT


class Sloppy(FakeClassifier):
    """Takes two eosinophils for monocytes."""

    def _predict(self, grey: int) -> Prediction | EngineError:
        found = super()._predict(grey)
        assert isinstance(found, Prediction)
        return (
            replace(found, label="monocyte", probabilities=(0.1, 0.1, 0.7, 0.1)) if grey in (1, 2) else found
        )


def load(settings: Settings) -> Classifier:
    classifier = (Sloppy if settings.bundle == "new" else FakeClassifier)()
    classifier.bundle = replace(classifier.bundle, version=settings.bundle, sha256=settings.bundle * 2)
    if settings.bundle == "five":
        classifier.bundle = replace(classifier.bundle, labels=("basophil", *CLASSES))
    return cast(Classifier, classifier)


@pytest.mark.parametrize("pack", [lambda folder: folder, zipped])
def test_two_bundles_are_compared_with_pictures_of_the_cells_they_differ_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pack: object
) -> None:
    cells, out = labelled(tmp_path / "cells"), tmp_path / "report"
    assert callable(pack)
    command = ["compare", "old", "new", str(pack(cells)), "--out", str(out), "--group-pattern", r"(\d)\.png"]
    assert main(command, load=load) == 0
    printed = capsys.readouterr()
    assert "comparison.html" in printed.err
    document = json.loads(printed.out)
    assert json.loads((out / "comparison.json").read_text()) == document
    assert (document["first"]["version"], document["second"]["version"]) == ("old", "new")
    found = document["comparison"]
    assert (found["cells"], found["groups"], found["unit"]) == (20, 5, "group")
    assert found["rights"] == {"both": 18, "only_first": 2, "only_second": 0, "neither": 0}
    assert found["p_value"] == 0.5
    assert found["accuracy"]["difference"] == pytest.approx(-0.1)
    assert found["by_class"]["eosinophil"]["recall"]["second"] == pytest.approx(0.6)
    assert [one["filename"].split("/")[-1] for one in document["differences"]] == ["1.png", "2.png"]
    assert document["differences"][0]["second"] == {"label": "monocyte", "confidence": 0.7, "review": True}
    page = (out / "comparison.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2
    assert "http" not in page
    assert "The first is right" in page
    assert "oldold" in page
    assert "newnew" in page


def test_a_report_is_only_written_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = labelled(tmp_path / "cells")
    assert main(["compare", "old", "old", str(cells)], load=load) == 0
    assert json.loads(capsys.readouterr().out)["differences"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


def test_an_existing_folder_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = labelled(tmp_path / "cells")
    assert main(["compare", "old", "new", str(cells), "--out", str(tmp_path)], load=load) == 2
    assert "exists already" in capsys.readouterr().err


def test_images_that_fail_are_left_out_of_both_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = labelled(tmp_path / "cells")
    (cells / "monocyte" / "cut.png").write_bytes(CUT)
    (cells / "monocyte" / "odd.png").write_bytes(png(NAN))
    assert main(["compare", "old", "old", str(cells)], load=load) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["comparison"]["cells"], document["data"]["failed"]) == (20, 2)


def test_nothing_but_failures_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "monocyte").mkdir()
    (tmp_path / "monocyte" / "cut.png").write_bytes(CUT)
    assert main(["compare", "old", "old", str(tmp_path)], load=load) == 1
    assert "no image could be classified by both" in capsys.readouterr().err


def test_more_pictures_than_the_page_shows_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.cli.compare.MOST_PICTURES", 1)
    cells, out = labelled(tmp_path / "cells"), tmp_path / "report"
    assert main(["compare", "old", "new", str(cells), "--out", str(out)], load=load) == 0
    page = (out / "comparison.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 1
    assert "Without a picture here: 1." in page


def test_names_of_files_cannot_write_html(tmp_path: Path) -> None:
    cells, out = labelled(tmp_path / "cells"), tmp_path / "report"
    (cells / "eosinophil" / "1.png").rename(cells / "eosinophil" / "<b>.png")
    assert main(["compare", "old", "new", str(cells), "--out", str(out)], load=load) == 0
    page = (out / "comparison.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "&lt;b&gt;.png" in page


def test_bundles_with_different_labels_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = labelled(tmp_path / "cells")
    assert main(["compare", "old", "five", str(cells)], load=load) == 1
    assert "only fake five has basophil" in capsys.readouterr().err
    bundle = FakeClassifier().bundle
    with pytest.raises(BundleError, match="the same labels in another order"):
        check_labels(bundle, replace(bundle, labels=CLASSES[::-1]))


def test_a_terminal_shows_a_table(tmp_path: Path) -> None:
    console = terminal()
    cells = labelled(tmp_path / "cells")
    assert compare(("old", "new"), cells, Settings(), load, console=console) == 0
    text = shown(console)
    for expected in ("balanced accuracy", "recall of eosinophil", "McNemar", "right when kept", "too narrow"):
        assert expected in text


def test_an_archive_that_is_absent_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "old", "new", str(tmp_path / "absent")], load=load) == 1
    assert "absent cannot be read" in capsys.readouterr().err
