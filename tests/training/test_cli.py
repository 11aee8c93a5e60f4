from __future__ import annotations

import csv
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from training.cli import main, told
from training.data import Row, read_manifest, write_manifest
from training.errors import DataError, ExportError
from training.export import check_replaceable
from training.report import report

ROOT = Path(__file__).parents[2]


def write_sources(path: Path, sources: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(sources.items())
    return path


def test_data_writes_a_manifest_and_says_what_is_in_it(
    archive: Path, sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_sources(tmp_path / "sources.csv", sources)
    out = tmp_path / "manifest.csv"
    assert main(["data", str(archive), "--sources", str(table), "--split", "50:50", "--out", str(out)]) == 0
    assert {row.split for row in read_manifest(out)} == {"train", "test"}
    printed = capsys.readouterr().out
    assert "train  monocyte         4 files from     2 sources" in printed


def test_sources_are_read_as_the_service_reads_groups(
    archive: Path, sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = tmp_path / "sources.csv", tmp_path / "manifest.csv"
    arguments = ["data", str(archive), "--sources", str(table), "--out", str(out)]
    rows = [f"{name.replace('/', chr(92))};{source}" for name, source in sources.items()]
    table.write_text("\n".join(["path;source", *rows, ";", ""]), encoding="utf-16")
    assert main(arguments) == 0
    assert {row.path: row.source for row in read_manifest(out)} == sources
    capsys.readouterr()
    table.write_text("\ufeffa.png\ts1\na.png\ts2\n")
    assert main(arguments) == 1
    assert "sources.csv: line 2 repeats a file name with a different value" in capsys.readouterr().err


def test_a_package_that_is_not_installed_is_named_with_what_to_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "lightning.pytorch.utilities", raising=False)
    monkeypatch.delitem(sys.modules, "lightning.pytorch", raising=False)
    assert main(["fit"]) == 1
    expected = "leuko-train: lightning is missing: run `make install EXTRAS=train` in Leuko's checkout\n"
    assert capsys.readouterr().err == expected


def test_data_refuses_the_same_file_in_train_and_test(
    archive: Path, sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = tmp_path / "twice.zip"
    with zipfile.ZipFile(archive) as original, zipfile.ZipFile(twice, "w") as file:
        given = dict(sources)
        for name in sources:
            file.writestr(name, original.read(name))
            copy = name.replace(".jpg", "-copy.jpg")
            file.writestr(copy, original.read(name))
            given[copy] = f"{sources[name]}, copied"
    table = write_sources(tmp_path / "sources.csv", given)
    arguments = ["data", str(twice), "--sources", str(table), "--out", str(tmp_path / "manifest.csv")]
    assert main([*arguments, "--split", "50:50"]) == 1
    printed = capsys.readouterr().err
    assert "the same file has more than one split" in printed
    assert "(train) and " in printed
    assert not (tmp_path / "manifest.csv").exists()
    assert main([*arguments, "--split-by-file-leaking", "50:50"]) == 0


def test_what_is_too_few_for_a_split_is_said_before_an_image_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("eosinophil", "lymphocyte", "monocyte", "neutrophil"):
        (tmp_path / "cells" / label).mkdir(parents=True)
        (tmp_path / "cells" / label / "broken.png").write_bytes(b"")
    assert main(["data", str(tmp_path / "cells"), "--split", "80:20"]) == 1
    assert "has 1 source photos, too few for 2 splits" in capsys.readouterr().err


def test_the_split_that_leaks_has_a_name_that_says_so(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "manifest.csv"
    assert main(["data", str(archive), "--split-by-file-leaking", "80:20", "--out", str(out)]) == 0
    assert {row.split for row in read_manifest(out)} == {"train", "test"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data"], "no archive given: name one, or use --download"),
        (["data", "nowhere.zip"], "nowhere.zip does not exist"),
        (["data", "nowhere.zip", "--split", "nan:1"], "split 'nan:1' is not a ratio"),
        (["data", "nowhere.zip", "--split-by-file-leaking", "1:0"], "split '1:0' is not a ratio"),
        (["fit", "--manifest", "nowhere.csv"], "nowhere.csv does not exist; create it with"),
        (["fit", "--recipe", "nonsense"], "no recipe 'nonsense'"),
        (["fit", "--set", "epocs=3"], "unknown setting epocs"),
        (["export", "--manifest", "nowhere.csv"], "nowhere.csv does not exist"),
        (["report", "--bundle", "b", "--manifest", "nowhere.csv"], "nowhere.csv does not exist"),
    ],
)
def test_what_is_wrong_is_one_line_on_standard_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("leuko-train: ")
    assert message in error
    assert error.count("\n") == 1


def test_nothing_is_printed_with_the_control_characters_of_a_name(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\x1b[2J\n"
    stray = tmp_path / "stray.zip"
    with zipfile.ZipFile(stray, "w") as file:
        file.writestr(f"{name}.png", b"")
    assert main(["data", str(stray)]) == 1
    with pytest.raises(SystemExit):
        main(["data", f"--{name}"])
    assert main(["data", str(archive), "--split", "50:50", "--out", str(tmp_path / name)]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("a�[2J�") == 2
    assert f"wrote {tmp_path}/a�[2J�, " in printed.out
    assert "\x1b" not in printed.err + printed.out


def test_a_split_with_too_few_photos_names_the_class(
    archive: Path, sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_sources(tmp_path / "sources.csv", dict.fromkeys(sources, "one"))
    assert main(["data", str(archive), "--sources", str(table), "--split", "80:20"]) == 1
    assert "has 1 source photos, too few" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["--help", "data", "data 2>&1", "data nowhere.zip 2>&1", "fit --x 2>&1"])
def test_a_reader_that_wants_no_more_ends_the_command_without_a_traceback(
    archive: Path, tmp_path: Path, command: str
) -> None:
    run = [sys.executable, "-c", "import sys; from training.cli import main; sys.exit(main())"]
    words = [word for word in command.split() if word != "2>&1"]
    if words == ["data"]:
        words += [str(archive), "--out", str(tmp_path / "manifest.csv")]
    reading, writing = os.pipe()
    os.close(reading)
    errors = writing if "2>&1" in command else subprocess.PIPE
    done = subprocess.run([*run, *words], stdout=writing, stderr=errors, text=True, cwd=ROOT, check=False)
    os.close(writing)
    assert done.returncode in ((1,) if words[0] == "data" else (0, 1, 2))  # argparse ignores a broken pipe
    assert not done.stderr
    assert (tmp_path / "manifest.csv").is_file() == (str(archive) in words)


@pytest.mark.parametrize(
    "command",
    ["fit", "laboratories", "export", "report --bundle bundle", "fit --resume", "laboratories --resume"],
)
def test_a_manifest_that_is_cut_is_an_error_of_one_line_in_every_command(
    rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest(rows, path)
    path.write_bytes(path.read_bytes()[:-40])
    assert main([*command.split(), "--manifest", str(path)]) == 1
    error = capsys.readouterr().err
    assert f"leuko-train: {path} is not a whole manifest: line {len(rows) + 1}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_a_small_folder_of_ones_own_is_told_what_it_lacks_before_work_starts(
    rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    path = tmp_path / "manifest.csv"
    eight = [row for row in rows if row.source.endswith("0")]
    write_manifest([*eight, *(replace(row, split="test") for row in rows if row not in eight)], path)
    arguments = ["fit", "--recipe", recipe, "--manifest", str(path), "--run", str(tmp_path / "run")]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "--set " in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (tmp_path / "run").exists()


def test_an_error_of_a_process_that_loads_data_is_told_without_its_traceback() -> None:
    text = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    assert (
        told(DataError(f"{text}  File x\ntraining.errors.DataError: a.zip: b.png: gone\n"))
        == "a.zip: b.png: gone"
    )


def test_a_bundle_is_not_written_over_unless_that_is_asked_for(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text("mine")
    with pytest.raises(ExportError, match="add --replace"):
        check_replaceable(bundle, replace=False)
    check_replaceable(bundle, replace=True)
    (bundle / "report.json").write_text("mine")
    with pytest.raises(DataError, match="add --replace"):
        report(bundle, [], split="test", run=None)
    assert {path.read_text() for path in bundle.iterdir()} == {"mine"}
