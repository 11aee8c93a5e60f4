"""One table of files, and every command and the service that has to find the same images in it."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.archives.image_files import Kind, LeftOut, left_out_line
from app.archives.images import find_images
from app.cli.main import main
from tests.fake_classifier import load, png
from tests.zips import pack
from training.data import check_files, list_files

IMAGES = [
    "eosinophil/a.png",
    "eosinophil/A 2.PNG",
    "lymphocyte/b.JFIF",
    "lymphocyte/c.jpe",
    "monocyte/d.gif",
    "monocyte/e.dcm",
    "neutrophil/f.dib",
    "neutrophil/without suffix",
    "neutrophil/IM0001.dat",
    "neutrophil/scan.2024-11",
    "neutrophil/wrong.txt",
]
OTHERS = {
    "labels.csv": Kind.OTHER,
    "README": Kind.OTHER,
    "eosinophil/a.xml": Kind.OTHER,
    "eosinophil/a.json": Kind.OTHER,
    "monocyte/notes.txt": Kind.OTHER,
    "monocyte/table.csv": Kind.OTHER,
    "monocyte/empty": Kind.OTHER,
    ".DS_Store": Kind.SYSTEM,
    "._a.png": Kind.SYSTEM,
    ".git/a.png": Kind.SYSTEM,
    "eosinophil/.hidden.png": Kind.SYSTEM,
    "eosinophil/.ipynb_checkpoints/a-checkpoint.png": Kind.SYSTEM,
    "eosinophil/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg": Kind.SYSTEM,
    "eosinophil/@eaDir/a.png@SynoEAStream": Kind.SYSTEM,
    "__MACOSX/eosinophil/._a.png": Kind.SYSTEM,
    "$RECYCLE.BIN/S-1-5/$R1.png": Kind.SYSTEM,
    "System Volume Information/a.png": Kind.SYSTEM,
    "#recycle/monocyte/a.jpg": Kind.SYSTEM,
    "lost+found/#1.png": Kind.SYSTEM,
    "monocyte/Thumbs.db": Kind.SYSTEM,
    "monocyte/desktop.ini": Kind.SYSTEM,
    "monocyte/~$table.xlsx": Kind.SYSTEM,
}
LEFT_OUT = LeftOut(OTHERS.values())
OURS = {"cells.csv": b"cell,label\n"}  # the page puts it into labelled ZIPs: it is no image, and not counted
LINE = left_out_line(LEFT_OUT)
TEXTS = {"monocyte/table.csv": b"BMI,age\n21,40\n", "monocyte/empty": b"", "eosinophil/a.xml": b"<?xml?>"}


def contents() -> dict[str, bytes]:
    """Return path → content of all files; no two images are equal."""
    images = {name: png(20 * number) for number, name in enumerate(IMAGES)}
    litter = {name: png(250) if kind is Kind.SYSTEM else b"a text" for name, kind in OTHERS.items()}
    return images | litter | TEXTS | OURS


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar(path: Path, mode: Any) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in contents().items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "cells", contents())


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    path = tmp_path / "cells.zip"
    path.write_bytes(pack(contents()))
    return path


def names(document: dict[str, Any], below: Path | str = "") -> list[str]:
    found = [one["filename"] for one in (*document["predictions"], *document["errors"])]
    return [os.path.relpath(name, below) if below else name for name in found]


def test_predict_finds_the_images_of_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(folder)], load=load) == 0
    printed = capsys.readouterr()
    assert sorted(names(json.loads(printed.out), folder)) == sorted(IMAGES)
    assert printed.err == f"leuko: {LINE}\n"


@pytest.mark.parametrize("kind", ["folder", "zipped"])
def test_evaluate_finds_the_images(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(request.getfixturevalue(kind))], load=load) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["n"], report["errors"]) == (len(IMAGES), [])
    assert report["warnings"] == [{"code": "files_left_out", "detail": f"{LINE}."}]
    assert printed.err == f"leuko: {LINE}\n"


def test_the_service_finds_the_images(client: TestClient) -> None:
    report = client.post("/evaluate", files={"archive": ("cells.zip", pack(contents()))}).json()
    assert (report["n"], report["errors"]) == (len(IMAGES), [])
    assert report["warnings"] == [{"code": "files_left_out", "detail": f"{LINE}."}]
    whole = {name: data for name, data in contents().items() if name in IMAGES}
    assert client.post("/evaluate", files={"archive": ("a.zip", pack(whole))}).json()["warnings"] == []


@pytest.mark.parametrize("kind", ["folder", "zipped"])
def test_training_finds_the_images(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    rows, notes = list_files([("", path)])
    assert sorted(row.path for row in check_files(rows)) == sorted(IMAGES)
    assert notes == [f"{path}: {LINE}"]


@pytest.mark.parametrize("suffix", ["", ".zip", ".tar", ".tgz", ".tar.bz2", ".tbz2", ".txz"])
def test_score_finds_the_images(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    from app.bulk.location import Location
    from app.bulk.plan import plan
    from app.bulk.reading import open_part

    source = tmp_path / f"cells{suffix}"
    if not suffix:
        write(source, contents())
    elif suffix == ".zip":
        source.write_bytes(pack(contents()))
    else:
        tar(source, {"z": "w:gz", "2": "w:bz2"}.get(suffix[-1], "w:xz") if suffix != ".tar" else "w")
    planned, found = plan(Location.of(str(source))), []
    for part in planned.parts:
        with open_part(Location.of(str(source)), part, 2**20, planned.left_out) as images:
            found += [(image.name.removeprefix(f"{source.name}/"), image.read()) for image in images]
    assert dict(found) == {name: data for name, data in contents().items() if name in IMAGES}
    assert len(found) == len(IMAGES)
    assert planned.left_out == LEFT_OUT


def images_of(folder: Path) -> tuple[list[str], LeftOut]:
    found = find_images([str(folder)], io.BytesIO(), 2**20)
    return [os.path.relpath(image.name, folder) for image in found.found], found.left_out


def test_links_are_followed_and_nothing_is_found_twice(tmp_path: Path) -> None:
    folder = write(tmp_path / "cells", {"b/1.png": png(1)})
    write(tmp_path, {"other/2.png": png(2), "3.png": png(3)})
    (folder / "a").symlink_to(folder / "b")  # sorts before the folder that it leads to
    (folder / "b/up").symlink_to(folder)
    (folder / "beyond").symlink_to(tmp_path)  # holds the folder
    (folder / "c").symlink_to(tmp_path / "other")
    (folder / "d.png").symlink_to(tmp_path / "3.png")
    (folder / "e").symlink_to(tmp_path / "3.png")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe.png")
    found, left_out = images_of(folder)
    assert sorted(found) == ["b/1.png", "c/2.png", "d.png", "e", "loop"]  # the last one fails
    assert left_out == {Kind.REPEATED: 3, Kind.SPECIAL: 1}


def test_archives_in_a_folder_are_left_out_by_name(tmp_path: Path) -> None:
    archives = {
        f"a{suffix}": b"" for suffix in (".zip", ".tar", ".tar.gz", ".TXZ", ".tar.zst", ".7z", ".rar")
    }
    found, left_out = images_of(write(tmp_path / "cells", archives | {"1.png": png(1)}))
    assert (found, left_out) == (["1.png"], {Kind.ARCHIVE: 7})


def test_images_of_formats_that_are_not_read_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unread = {"a.heic": b"?", "b.jp2": b"?", "IM1": b"\0\0\0\x18ftypheic", "slide.svs": b"?"}
    folder = write(tmp_path / "cells", unread | {"c.png": png(1)})
    assert main(["predict", str(folder)], load=load) == 1
    assert sorted(names(json.loads(capsys.readouterr().out), folder)) == sorted([*unread, "c.png"])


def test_a_line_says_how_many_files_were_left_out_and_why() -> None:
    assert left_out_line(Counter()) == ""
    assert left_out_line(LeftOut([Kind.OTHER])) == "1 file was left out: not an image (1)"
    assert left_out_line(LeftOut([Kind.OTHER, Kind.SYSTEM, Kind.OTHER])) == (
        "3 files were left out: hidden or left by a system (1), not an image (2)"
    )
