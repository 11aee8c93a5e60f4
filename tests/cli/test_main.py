from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from app import __version__
from app.cli.main import LOCAL, build_parser, flag, main, read_settings
from app.engine.bundle import CLASSES
from app.engine.classifier import Classifier
from app.imaging.decode import decode
from app.printable import printable
from app.settings import Settings, variable
from tests.disk import full_beyond
from tests.fake_classifier import load, png
from tests.fakes import GREYS

ROOT = Path(__file__).parents[2]


def assert_one_line(capsys: pytest.CaptureFixture[str], complaint: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("leuko: ")
    assert complaint in err
    assert err.count("\n") == 1


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"leuko {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    heavy = "numpy PIL openvino uvicorn sklearn fastapi pydantic rich"
    script = f"""
import sys
from app.cli.main import main
try:
    main(["--help"])
finally:
    assert not [name for name in "{heavy}".split() if name in sys.modules]
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_bundle_that_does_not_load_is_one_line(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "x", "--bundle", "broken"], load=load) == 1
    assert_one_line(capsys, "model.safetensors was changed")


def test_an_interruption_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: Settings) -> Classifier:
        raise KeyboardInterrupt

    assert main(["predict", "x"], load=interrupt) == 130
    assert_one_line(capsys, "interrupted")


def test_every_setting_is_a_flag_of_serve_with_its_default_and_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # so that no line is broken within a word
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for setting in fields(Settings):
        about = f"{setting.metadata['help']} [{setting.default}; {variable(setting)}]"
        assert re.search(rf"{flag(setting)} \S+ {re.escape(about)}", text)


def test_the_help_of_score_says_what_has_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit, match="0"):
        main(["score", "--help"])
    assert "one row for each image, or with --cells all for each leukocyte" in capsys.readouterr().out


def test_settings_of_the_service_alone_are_not_offered_elsewhere() -> None:
    assert set(LOCAL) < {setting.name for setting in fields(Settings)}
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(["predict", "x", "--port", "1"])


def test_flags_beat_the_environment_which_beats_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKO_MAX_BATCH", "5")
    monkeypatch.setenv("LEUKO_MAX_QUEUE", "50")
    monkeypatch.setenv("LEUKO_PORT", "nonsense, but beaten")
    arguments = build_parser().parse_args(["serve", "--max-batch", "6", "--port", "0", "--bundle", "b"])
    expected = Settings(bundle="b", max_batch=6, max_queue=50, port=0)
    assert read_settings(arguments) == expected


def test_a_variable_that_is_no_setting_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cell.png").write_bytes(png(GREYS[0]))
    monkeypatch.setenv("LEUKO_MAX_IMAGES_MIB", "secret")
    assert main(["predict", str(tmp_path / "cell.png")], load=load) == 0
    meant = "is not a setting and has no effect: did you mean LEUKO_MAX_IMAGE_MIB?"
    assert capsys.readouterr().err == f"leuko: warning: LEUKO_MAX_IMAGES_MIB {meant}\n"


def test_a_wrong_flag_names_the_flag_and_a_wrong_variable_the_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["serve", "--max-batch", "many"], load=load) == 2
    assert_one_line(capsys, "--max-batch")
    monkeypatch.setenv("LEUKO_MAX_BATCH", "many")
    assert main(["serve"], load=load) == 2
    assert_one_line(capsys, "LEUKO_MAX_BATCH")


@pytest.mark.parametrize("label", CLASSES)
def test_sample_draws_one_class(tmp_path: Path, label: str) -> None:
    target = tmp_path / "new/cell.png"
    assert main(["sample", label.upper(), "-o", str(target), "--size", "64x48"]) == 0
    with Image.open(target) as image:
        assert (image.format, image.size) == ("PNG", (64, 48))


def test_sample_writes_the_format_that_the_name_asks_for(tmp_path: Path) -> None:
    assert main(["sample", "monocyte", "-o", str(tmp_path / "cell.jpg"), "--size", "64x48"]) == 0
    with Image.open(tmp_path / "cell.jpg") as image:
        assert image.format == "JPEG"


def test_a_sample_in_dicom_is_the_same_image(tmp_path: Path) -> None:
    for name in ("cell.dcm", "cell.png"):
        assert main(["sample", "monocyte", "-o", str(tmp_path / name), "--size", "64x48"]) == 0
    dicom, png = (decode((tmp_path / name).read_bytes()) for name in ("cell.dcm", "cell.png"))
    assert dicom.tobytes() == png.tobytes()


def test_sample_draws_all_classes_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "all", "-o", str(tmp_path / "cells"), "--size", "64x48"]) == 0
    paths = [tmp_path / f"cells/{label}.png" for label in CLASSES]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize("name", ["a\x1b[2J.png", "a\udcff.png"])
def test_sample_prints_no_control_characters_of_a_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["sample", "monocyte", "-o", str(tmp_path / name), "--size", "64x48"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / printable(name)}\n"
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["cell.png", "cell.jpg", "cell.dcm"])
def test_a_sample_that_cannot_be_written_is_named_and_not_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with full_beyond(100):
        assert main(["sample", "monocyte", "-o", str(tmp_path / name), "--size", "64x48"]) == 1
    assert capsys.readouterr().err == f"leuko: {tmp_path / name}: File too large\n"
    assert [*tmp_path.iterdir()] == []


def test_a_key_on_a_full_disk_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.txt"
    with full_beyond(20):
        assert main(["key", "lab-1", str(path)]) == 1
    assert capsys.readouterr() == ("", f"leuko: {path}: File too large\n")
    assert not path.exists()


def test_sample_names_the_file_after_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "monocyte", "--size", "64x48"]) == 0
    assert Path("monocyte.png").exists()


def test_sample_draws_another_cell_with_another_seed(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, seed in zip(paths, "112", strict=True):
        main(["sample", "monocyte", "-o", str(path), "--seed", seed, "--size", "64x48"])
    a, b, c = (path.read_bytes() for path in paths)
    assert a == b != c


def test_a_sample_can_be_piped_into_predict(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    assert main(["sample", "neutrophil", "-o", "-", "--size", "64x48"]) == 0
    stdin = io.BytesIO(capsysbinary.readouterr().out)
    assert main(["predict", "-"], load=load, stdin=stdin) == 0


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("--size", "1x1", "from 8 to 9999"),
        ("--size", "320x7", "from 8 to 9999"),
        ("--size", "0x0", "from 8 to 9999"),
        ("--size", "-8x8", "from 8 to 9999"),
        ("--size", "big", "from 8 to 9999"),
        ("--seed", "-1", "integer from 0"),
        ("--seed", "1.5", "integer from 0"),
    ],
)
def test_a_size_or_seed_that_cannot_be_drawn_is_explained(
    option: str, value: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sample", "monocyte", "-o", "-", f"{option}={value}"])
    assert ended.value.code == 2
    assert wanted in capsys.readouterr().err


def test_sample_knows_only_its_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "basophil"]) == 1
    assert_one_line(capsys, "basophil")


def test_python_m_app_is_leuko() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"leuko {__version__}\n"
