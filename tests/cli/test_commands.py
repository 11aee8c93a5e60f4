from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from app.cli.commands import evaluate, predict
from app.cli.main import load_from, main
from app.engine.bundle import CLASSES
from app.settings import Settings
from app.wire.schemas import Evaluation, Predictions
from tests.fake_classifier import NAN, load, png
from tests.fields import field_png, load_fields
from tests.own_bundles import cell, write_bundle
from tests.own_labels import FIVE, THIRTY_TWO


def write(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def labelled_folder(folder: Path) -> Path:
    """Three images of each of two classes; one eosinophil looks like a monocyte, one file is corrupt."""
    for name, grey in (("1-a", 10), ("1-b", 20), ("2-a", 140)):
        write(folder / f"set/EOSINOPHIL/{name}.png", png(grey))
    for name, grey in (("3-a", 200), ("4-a", 210)):
        write(folder / f"set/Neutrophil/{name}.png", png(grey))
    write(folder / "set/Neutrophil/5-a.png", b"\x89PNG\r\n\x1a\n broken")
    write(folder / "readme.txt", b"about these images")
    return folder


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


def printed_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=400, color_system=None)


def shown(console: Console) -> str:
    return cast(io.StringIO, console.file).getvalue()


# predict


def test_predict_prints_what_the_route_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / "a.png", png(10)), write(tmp_path / "b.png", png(200))]
    assert main(["predict", *files], load=load) == 0
    document = printed_json(capsys)
    Predictions.model_validate({"request_id": "x", **document}, extra="forbid")
    assert document["model"] == {"name": "fake", "version": "1.2", "sha256": "f" * 64}
    assert [prediction["label"] for prediction in document["predictions"]] == ["eosinophil", "neutrophil"]
    assert [prediction["filename"] for prediction in document["predictions"]] == files
    assert document["predictions"][0]["probabilities"] == dict(
        zip(CLASSES, (0.7, 0.1, 0.1, 0.1), strict=True)
    )
    assert document["predictions"][0]["review"] is True
    assert document["errors"] == []


def test_predict_lists_every_cell_of_a_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / "a.png", field_png()), write(tmp_path / "b.png", field_png(()))]
    assert main(["predict", "--cells", "all", *files], load=load_fields) == 0
    document = printed_json(capsys)
    Predictions.model_validate({"request_id": "x", **document}, extra="forbid")
    assert [(cell["index"], cell["cell"]) for cell in document["predictions"]] == [(0, n) for n in range(4)]
    assert document["empty"] == [{"index": 1, "filename": files[1]}]


def test_the_table_has_a_row_for_each_cell(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.png", field_png()), write(tmp_path / "b.png", field_png(()))]
    console = terminal()
    assert predict(files, Settings(), load_fields, stdin=io.BytesIO(), all_cells=True, console=console) == 0
    assert [f"a.png #{number}" in shown(console) for number in range(5)] == [True] * 4 + [False]
    assert "no cell" in shown(console)


def test_predict_refuses_more_cells_than_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.png", field_png())
    assert main(["predict", "--cells", "all", "--max-cells", "3", file], load=load_fields) == 1
    assert "4 leukocytes; at most 3" in printed_json(capsys)["errors"][0]["detail"]


def test_predict_lists_what_fails_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [
        write(tmp_path / "a.png", b"plain text"),
        write(tmp_path / "b.png", png(10)[:40]),
        str(tmp_path / "absent.png"),
        write(tmp_path / "c.png", png(NAN)),
        write(tmp_path / "large.png", b"\x89PNG\r\n\x1a\n" + bytes(2**20)),
    ]
    good = write(tmp_path / "d.png", png(100))
    assert main(["predict", *bad, good, "--max-image-mib", "1"], load=load) == 1
    document = printed_json(capsys)
    Predictions.model_validate({"request_id": "x", **document}, extra="forbid")
    codes = ["unsupported_format", "undecodable_image", "unusable", "engine_error", "too_large"]
    assert [error["code"] for error in document["errors"]] == codes
    assert [error["index"] for error in document["errors"]] == [0, 1, 2, 3, 4]
    assert [(prediction["index"], prediction["label"]) for prediction in document["predictions"]] == [
        (5, "lymphocyte")
    ]


def test_predict_takes_every_picture_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{number:02}.png" for number in range(70)]  # more than two batches
    for number, name in enumerate(names):
        write(tmp_path / "sub" / name, png(number))
    write(tmp_path / "sub/notes.txt", b"no picture")
    write(tmp_path / "sub/.hidden.png", b"no picture")
    assert main(["predict", str(tmp_path)], load=load) == 0
    assert [Path(prediction["filename"]).name for prediction in printed_json(capsys)["predictions"]] == names


def test_predict_says_that_a_folder_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path)], load=load) == 1
    assert "no images" in printed_json(capsys)["errors"][0]["detail"]


def test_predict_reads_standard_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "-"], load=load, stdin=io.BytesIO(png(150))) == 0
    [only] = printed_json(capsys)["predictions"]
    assert (only["filename"], only["label"]) == ("-", "monocyte")


@pytest.mark.parametrize("labels", [FIVE, THIRTY_TWO], ids=["5 labels", "32 labels"])
def test_tables_of_any_labels_fit_a_terminal(tmp_path: Path, labels: tuple[str, ...]) -> None:
    bundle = write_bundle(tmp_path / "bundle", labels)
    for label in labels:
        write(tmp_path / "cells" / label / "1.png", cell(label, labels))
    settings = Settings(bundle=str(bundle), engine="openvino", threads=1)
    files = [str(tmp_path / "cells" / label / "1.png") for label in labels[:2]]
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    assert predict(files, settings, load_from, stdin=io.BytesIO(), console=console) == 0
    assert evaluate(tmp_path / "cells", settings, load_from, console=console) == 0
    text = shown(console)
    assert max(map(len, text.splitlines())) <= 80
    assert "1.000" in text
    assert "1 of 1" in text or labels == FIVE
    assert all(label.split()[0] in text for label in labels)


def test_predict_shows_a_table_on_a_terminal(tmp_path: Path) -> None:
    files = [write(tmp_path / "a[red].png", png(10)), write(tmp_path / "b\x1b[2J.png", b"broken")]
    console = terminal()
    assert predict(files, Settings(), load, stdin=io.BytesIO(), console=console) == 1
    text = shown(console)
    assert "a[red].png" in text
    assert "\x1b[2J" not in text
    assert "out of distribution" in text
    assert "0.700" in text
    assert "error" in text


def test_predict_prints_json_on_a_terminal_when_asked(tmp_path: Path) -> None:
    console = terminal()
    file = write(tmp_path / "a.png", png(10))
    assert predict([file], Settings(), load, stdin=io.BytesIO(), as_json=True, console=console) == 0
    assert json.loads(shown(console))["predictions"][0]["label"] == "eosinophil"


# evaluate


@pytest.mark.parametrize("pack", [lambda folder: folder, zipped])
def test_evaluate_prints_what_the_route_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pack: Any
) -> None:
    archive = pack(labelled_folder(tmp_path / "cells"))
    assert main(["evaluate", str(archive)], load=load) == 0
    document = printed_json(capsys)
    Evaluation.model_validate({"request_id": "x", **document}, extra="forbid")
    assert document["n"] == 5
    assert document["accuracy"] == pytest.approx(0.8)
    assert document["confusion_matrix"][0] == [2, 0, 1, 0]
    wrong = {"filename": "set/EOSINOPHIL/2-a.png", "label": "eosinophil", "predicted": "monocyte"}
    assert document["misclassified"] == [{**wrong, "confidence": 0.7}]
    assert [error["filename"] for error in document["errors"]] == ["set/Neutrophil/5-a.png"]
    assert document["confidence_intervals"]["unit"] == "image"
    assert document["groups"] is None


def test_evaluate_takes_sources_from_a_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labelled_folder(tmp_path)
    assert main(["evaluate", str(folder), "--group-pattern", r"/(\d)-"], load=load) == 0
    document = printed_json(capsys)
    assert document["groups"]["n"] == 4
    assert document["confidence_intervals"]["unit"] == "group"


def test_evaluate_takes_sources_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labelled_folder(tmp_path / "cells")
    rows = [f"{file.relative_to(folder).as_posix()},{file.name[0]}" for file in folder.rglob("*.png")]
    groups = write(tmp_path / "groups.csv", "\r\n".join(["filename,source", *rows]).encode())
    assert main(["evaluate", str(folder), "--groups", groups], load=load) == 0
    assert printed_json(capsys)["groups"]["n"] == 4


def test_a_line_that_contradicts_another_is_named_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = labelled_folder(tmp_path / "cells")
    groups = write(tmp_path / "groups.csv", "\ufefffile;source\na.png;1\na.png;2\n".encode())
    assert main(["evaluate", str(folder), "--groups", groups], load=load) == 1
    assert_one_line(capsys, "groups.csv: line 3 repeats a file name with a different value")


def test_evaluate_shows_tables_on_a_terminal(tmp_path: Path) -> None:
    console = terminal()
    assert evaluate(labelled_folder(tmp_path), Settings(), load, groups=r"/(\d)-", console=console) == 0
    text = shown(console)
    for expected in (
        *CLASSES,
        "macro average",
        "confusion matrix",
        "Cohen's kappa",
        "95% interval",
        "share sent to review",
        "accuracy of the kept",
        "5-a.png",
    ):
        assert expected in text
    assert "4 whole sources" in text
    assert "1 of 6 images could not be classified" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["absent.zip"], "absent.zip"),
        (["EMPTY"], "no images"),
        (["STRAY"], "outside"),
        (["MISSPELT"], "did you mean neutrophil?"),
        (["CELLS", "--group-pattern", "x"], "no group"),
        (["CELLS", "--group-pattern", "(x)"], "6 of 6"),
        (["CELLS", "--groups", "absent.csv"], "absent.csv"),
    ],
)
def test_evaluate_says_what_it_cannot_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "stray/a.png", png(1))
    write(tmp_path / "misspelt/Neutrophiles/a.png", png(1))
    folders = {word: tmp_path / word.lower() for word in ("EMPTY", "STRAY", "MISSPELT")}
    folders["CELLS"] = labelled_folder(tmp_path / "cells")
    assert main(["evaluate", *(str(folders.get(word, word)) for word in arguments)], load=load) == 1
    assert_one_line(capsys, complaint)


def test_evaluate_says_that_nothing_could_be_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "monocyte/a.png", b"broken")
    assert main(["evaluate", str(tmp_path)], load=load) == 1
    assert_one_line(capsys, "nothing to evaluate")


def assert_one_line(capsys: pytest.CaptureFixture[str], complaint: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("leuko: ")
    assert complaint in err
    assert err.count("\n") == 1
