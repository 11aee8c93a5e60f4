from __future__ import annotations

import os
import re
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from app.engine.bundle import CLASSES
from tests.pictures import real
from tests.zips import DIRECTORY, pack, patch, rename
from training.data import (
    KAGGLE_COUNTS,
    Row,
    build_manifest,
    check_files,
    download,
    fingerprint,
    kaggle_row,
    list_files,
    read_manifest,
    read_sources,
    refuse_copies,
    titles,
    with_kaggle_sources,
    write_manifest,
)
from training.errors import DataError


def kaggle_names() -> list[str]:
    """Return every name in the Kaggle archive, from the CSV of sources; TEST_SIMPLE's are invented."""
    simple = [
        f"TEST_SIMPLE/{label}/_{i}.jpeg"
        for label, n in zip(
            ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL"), (13, 6, 4, 48), strict=True
        )
        for i in range(n)
    ]
    return [f"dataset2-master/dataset2-master/images/{name}" for name in [*read_sources(), *simple]]


def kaggle_rows(names: list[str]) -> list[Row]:
    return [row for name in names if (row := kaggle_row(Path("blood-cells.zip"), name))]


def test_a_manifest_has_a_row_for_each_image_with_its_class_and_source(rows: list[Row]) -> None:
    assert Counter(row.label for row in rows) == dict.fromkeys(
        ("eosinophil", "lymphocyte", "monocyte", "neutrophil"), 8
    )
    assert len({row.source for row in rows}) == 16
    assert all(len(row.sha256) == 64 for row in rows)


def test_a_manifest_reads_back_as_it_was_written(rows: list[Row], tmp_path: Path) -> None:
    write_manifest(rows, tmp_path / "deep" / "manifest.csv")
    assert read_manifest(tmp_path / "deep" / "manifest.csv") == rows


def test_an_unpacked_archive_gives_the_same_classes_and_hashes(
    archive: Path, sources: dict[str, str], rows: list[Row], tmp_path: Path
) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    unpacked = build_manifest(tmp_path, sources=sources)
    assert fingerprint(unpacked) == fingerprint(rows)


def test_kaggles_files_get_their_photo_from_the_table() -> None:
    rows = with_kaggle_sources(kaggle_rows(kaggle_names()))
    assert len(rows) == 9957 + 2487
    train = {row.source for row in rows if row.split == "train" and row.certain}
    test = {row.source for row in rows if row.split == "test"}
    assert len(test) == 71
    assert not train & test


def test_a_kaggle_archive_with_a_file_missing_is_refused_by_name() -> None:
    names = [name for name in kaggle_names() if not name.endswith("TRAIN/MONOCYTE/_0_1173.jpeg")]
    with pytest.raises(DataError, match=r"TRAIN/MONOCYTE has 2477 images instead of 2478.*download"):
        with_kaggle_sources(kaggle_rows(names))


def test_test_simple_is_left_out_because_it_repeats_test() -> None:
    assert all("TEST_SIMPLE" not in row.path for row in with_kaggle_sources(kaggle_rows(kaggle_names())))


def test_an_image_that_does_not_decode_is_named(archive: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(archive.read_bytes())
    with zipfile.ZipFile(broken, "a") as file:
        file.writestr("slides/MONOCYTE/bad.jpg", b"\xff\xd8\xff\xe0 no image")
    with pytest.raises(DataError, match=r"slides/MONOCYTE/bad\.jpg does not decode"):
        build_manifest(broken)


def drawn(folder: Path, files: dict[str, int]) -> Path:
    """Write a small image of a red value for each path."""
    for name, red in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (red, 0, 0)).save(folder / name, "PNG")
    return folder


def one_of_each(start: int = 0) -> dict[str, int]:
    return {f"{label}/{n}.png": start + 10 * i + n for i, label in enumerate(CLASSES) for n in range(2)}


def test_all_broken_files_are_named_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        drawn(tmp_path / name, one_of_each(100 * (name == "two")))
        (tmp_path / name / "monocyte/text.jpg").write_bytes(b"a text")
        (tmp_path / name / "neutrophil/empty.png").write_bytes(b"")
    rows, _ = list_files([("", tmp_path / "one"), ("", tmp_path / "two")])
    with pytest.raises(DataError) as caught:
        check_files(rows)
    for name in ("one", "two"):
        assert f"{tmp_path / name}: monocyte/text.jpg does not decode" in str(caught.value)
        assert f"{tmp_path / name}: neutrophil/empty.png does not decode" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_file_in_two_classes_is_refused_with_both_paths(tmp_path: Path) -> None:
    drawn(tmp_path, one_of_each() | {"monocyte/also.png": 0, "basophil/x.png": 11})
    with pytest.raises(DataError) as caught:
        build_manifest(tmp_path, others=["basophil"])
    for pair in (
        ("eosinophil/0.png (eosinophil)", "monocyte/also.png (monocyte)"),
        ("basophil/x.png (basophil)", "lymphocyte/1.png (lymphocyte)"),
    ):
        assert all(path in str(caught.value) for path in pair)


def test_the_same_file_in_two_splits_is_refused_with_both_paths(tmp_path: Path) -> None:
    rows = build_manifest(drawn(tmp_path, one_of_each()))
    copy = replace(rows[0], path="copy.png", split="test")
    with pytest.raises(DataError, match=r"more than one split: .*0\.png \(train\) and .*copy\.png \(test\)"):
        refuse_copies([*rows, copy], "split", lambda row: row.split)


def test_copies_without_sources_are_one_source(tmp_path: Path) -> None:
    rows = build_manifest(drawn(tmp_path, one_of_each() | {"monocyte/9.png": 20, "monocyte/8.png": 20}))
    copies = {row.path: row.source for row in rows if row.sha256 == rows[4].sha256}
    assert [*copies] == ["monocyte/0.png", "monocyte/8.png", "monocyte/9.png"]
    assert len(set(copies.values())) == 1
    given = {row.path: row.path[-5] for row in rows}
    assert [row.source for row in build_manifest(tmp_path, sources=given)] == [*given.values()]


def test_archives_of_one_name_share_neither_sources_nor_laboratory(tmp_path: Path) -> None:
    paths = [tmp_path / "a/cells", tmp_path / "b/cells", tmp_path / "set.v1", tmp_path / "set.v2"]
    for number, path in enumerate(paths):
        drawn(path, one_of_each(40 * number))
    rows, _ = list_files([("", path) for path in paths])
    assert len({row.source for row in rows}) == len(rows)
    assert {row.laboratory for row in rows} == {"a/cells", "b/cells", "set.v1", "set.v2"}
    assert titles([tmp_path / "a/cells", tmp_path / "other.zip"]) == ["cells", "other"]
    with pytest.raises(DataError, match="more than once"):
        titles([tmp_path / "a/cells", tmp_path / "b/../a/cells"])


def test_sources_of_a_path_in_two_archives_need_the_archives_name(tmp_path: Path) -> None:
    archives = [("", drawn(tmp_path / name, one_of_each())) for name in ("one", "two")]
    sources = dict.fromkeys(one_of_each(), "slide")
    with pytest.raises(DataError, match=r"in .*one and in .*two: begin its lines .* two/eosinophil"):
        list_files(archives, sources)
    own = {f"two/{name}": "slide 2" for name in sources}
    rows, _ = list_files(archives, sources | own)
    assert Counter(row.source for row in rows) == {"slide": 8, "slide 2": 8}
    assert {row.source.partition("/")[0] for row in list_files(archives, own)[0]} == {"one", "slide 2"}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda _: pack(dict.fromkeys(one_of_each(), b"1"), zipfile.ZIP_LZMA), "method"),
        (
            lambda data: patch(data, DIRECTORY, 10, struct.pack("<H", 9)),
            "method other than store and deflate",
        ),
        (lambda data: patch(data, DIRECTORY, 8, struct.pack("<H", 1)), "encrypted"),
        (lambda data: rename(data, b"eosinophil/0.png", b"eosinophil\\0.png"), "does not use /"),
        (lambda data: rename(data, b"eosinophil/0.png", b"../sinophil/0.png"[:16]), "contains .."),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:-10], "truncated"),
        (lambda _: b"", "truncated"),
        (lambda data: data.replace(b"PK\x03\x04", b"PK\x03\x05"), "does not start where"),
    ],
    ids=["lzma", "deflate64", "encrypted", "backslash", "above", "half", "cut", "empty", "headers"],
)
def test_a_zip_that_the_service_refuses_is_refused_in_words(
    tmp_path: Path, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    path = tmp_path / "cells.zip"
    path.write_bytes(spoil(pack({name: bytes([red]) for name, red in one_of_each().items()})))
    with pytest.raises(DataError, match=rf"cells\.zip is not a readable ZIP: .*{re.escape(reason)}"):
        build_manifest(path)


def test_entries_of_a_zip_that_do_not_unpack_are_named_at_once(tmp_path: Path) -> None:
    drawn(tmp_path / "in", one_of_each())
    data = pack({name: (tmp_path / "in" / name).read_bytes() for name in one_of_each()})
    for name in (b"lymphocyte/0.png", b"neutrophil/1.png"):
        place = data.index(name) + len(name)
        data = data[:place] + b"\xff" * 8 + data[place + 8 :]
    (tmp_path / "cells.zip").write_bytes(data)
    with pytest.raises(DataError) as caught:
        build_manifest(tmp_path / "cells.zip")
    assert str(caught.value).count("cannot be read (the archive entry is corrupt)") == 2
    assert "lymphocyte/0.png" in str(caught.value)


def test_what_is_left_out_of_an_archive_is_said(tmp_path: Path) -> None:
    files = one_of_each() | {"basophil/1.png": 1, "eosinophil/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg": 5}
    drawn(tmp_path, files)
    (tmp_path / "notes.txt").write_text("text")
    rows, notes = list_files([("", tmp_path)], leave_out=["basophil"])
    assert len(rows) == 8
    assert notes == [
        f"{tmp_path}: 2 files were left out: hidden or left by a system (1), not an image (1)",
        f"{tmp_path}: images left out by --leave-out: 1",
    ]


def test_a_name_outside_utf_8_is_written_and_read_again(tmp_path: Path) -> None:
    drawn(tmp_path / "in", one_of_each() | {os.fsdecode(b"monocyte/caf\xe9.png"): 99})
    rows = build_manifest(tmp_path / "in")
    write_manifest(rows, tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv") == rows


def test_a_manifest_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_manifest([], tmp_path / "file/manifest.csv")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder-dup.zip", r"monocyte/also\.jpg.* and .*neutrophil/c0\.jpg"),
        ("folder-bad3.zip", r"eosinophil/broken.*lymphocyte/broken.*monocyte/broken"),
        ("deflate64.zip", "a method other than store and deflate"),
    ],
)
def test_the_reported_archives_are_refused_in_words(name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        build_manifest(real(f"../cases/files/{name}"))


@pytest.mark.parametrize("name", ["folder-jfif.zip", "folder-eadir.zip"])
def test_the_reported_folders_have_eight_images(name: str) -> None:
    assert len(build_manifest(real(f"../cases/files/{name}"))) == 8


def test_a_missing_class_is_named(tmp_path: Path) -> None:
    (tmp_path / "monocyte").mkdir()
    (tmp_path / "monocyte" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="no images of eosinophil, lymphocyte, neutrophil"):
        build_manifest(tmp_path)


def test_an_image_outside_the_class_folders_is_named(tmp_path: Path) -> None:
    (tmp_path / "slide.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"slide\.png is in no folder named after a class"):
        build_manifest(tmp_path)


def test_class_folders_are_found_as_people_spell_them(tmp_path: Path) -> None:
    for shade, folder in enumerate(("Eosinophils", " lymphocyte", "MONOCYTES ", "neutrophil", "Basophils")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / folder / "a.png")
    rows = build_manifest(tmp_path, others=["Basophil"])
    assert sorted(row.label for row in rows) == ["basophil", *CLASSES]
    (tmp_path / "neutrophil").rename(tmp_path / "neutrophill")
    with pytest.raises(
        DataError, match=r"neutrophill/a\.png .* did you mean neutrophil\? Else skip .* --leave-out"
    ):
        build_manifest(tmp_path, others=["basophil"])


def test_folders_of_other_classes_and_hidden_files_are_skipped(
    archive: Path, sources: dict[str, str], rows: list[Row], tmp_path: Path
) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    for name in ("basophil/a.png", "monocyte/.DS_1.png", "__MACOSX/monocyte/._1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    kept = build_manifest(tmp_path, sources=sources, leave_out=["basophil"])
    assert fingerprint(kept) == fingerprint(rows)
    with pytest.raises(DataError, match=r"basophil/a\.png .* --leave-out"):
        build_manifest(tmp_path, sources=sources)


def test_cells_of_no_class_are_kept_for_training_and_testing_by_their_source(
    archive: Path, sources: dict[str, str], tmp_path: Path
) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "pbc")
    folder = tmp_path / "pbc" / "Basophil"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    names = {f"Basophil/{i}.png": f"slide {i // 2}" for i in range(40)}
    rows = build_manifest(
        tmp_path / "pbc", sources=sources | names, others=["basophil"], laboratory="Barcelona"
    )
    others = [row for row in rows if not row.known]
    assert {row.label for row in others} == {"basophil"}
    assert {row.laboratory for row in rows} == {"Barcelona"}
    splits = {row.source: row.split for row in others}
    assert all(row.split == splits[row.source] for row in others)
    assert 4 < list(splits.values()).count("train") < 16
    assert set(splits.values()) == {"train", "test"}

    alone = build_manifest(folder.parent, sources={"another archive's": "slide"}, others=["basophil"])
    assert {row.source for row in alone if not row.known} == {f"pbc/Basophil/{i}.png" for i in range(40)}


def test_an_archive_may_hold_cells_of_no_class_alone(tmp_path: Path) -> None:
    (tmp_path / "platelet").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "platelet" / "a.png")
    assert [row.label for row in build_manifest(tmp_path, others=["platelet"])] == ["platelet"]


def test_an_older_manifest_has_its_archives_for_laboratories(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest(rows, path)
    lines = [line.rpartition(",")[0] for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    assert read_manifest(path) == rows


def test_a_download_gets_the_name_that_recipes_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = tmp_path / "cache" / "versions" / "6"
    fetched.mkdir(parents=True)
    kagglehub = Mock(dataset_download=Mock(return_value=str(fetched)))
    monkeypatch.setitem(sys.modules, "kagglehub", kagglehub)
    for _ in range(2):  # the second download replaces the link
        link = download(tmp_path / "data")
    kagglehub.dataset_download.assert_called_with("paultimothymooney/blood-cells")
    assert link == tmp_path / "data" / "blood-cells"
    assert link.resolve() == fetched.resolve()


def test_a_file_that_is_not_a_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"x\.zip is not a readable ZIP"):
        build_manifest(tmp_path / "x.zip")


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.zip does not exist"):
        build_manifest(tmp_path / "nowhere.zip")


def test_a_manifest_that_an_editor_gave_a_byte_order_mark_is_read(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest(rows, path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_manifest(path) == rows


def test_a_manifest_that_is_cut_anywhere_is_refused(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest(rows[:2], path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if whole[:length].count(b"\n") == 2 and whole[length - 1 : length] == b"\n":
            continue  # the first of the two images alone is a whole manifest
        with pytest.raises(DataError, match=r"manifest\.csv is not a whole manifest: .*leuko-train data"):
            read_manifest(path)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        (b"archive,", b"archive;", "it lacks the columns archive, path"),
        (b"certain", b"sure", "it lacks the columns certain"),
        (b",laboratory", b",lab", "it has the unknown columns lab"),
        (b",1,", b",yes,", "line 2 has 'yes' in the column certain"),
        (b",train,", b",,", "line 2 has no split"),
        (b",train,", b",train,train,", "line 2 does not have as many columns"),
        (b",train,", b",", "line 2 does not have as many columns"),
        (b",1,", b",1,0", "line 2 has no SHA-256"),
        (b"\r\n", b"\r\n\x00\r\n", "line 2"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said_with_its_line(
    rows: list[Row], tmp_path: Path, before: bytes, after: bytes, complaint: str
) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest(rows[:2], path)
    path.write_bytes(path.read_bytes().replace(before, after, 1))
    with pytest.raises(DataError, match=complaint):
        read_manifest(path)


def test_other_files_are_no_manifests(tmp_path: Path, rows: list[Row]) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest([rows[0], rows[0]], path)
    with pytest.raises(DataError, match="line 3 repeats an image"):
        read_manifest(path)
    write_manifest([], path)
    with pytest.raises(DataError, match="it has no images"):
        read_manifest(path)
    for content in (
        b"",
        b"\x89PNG\r\n\x1a\n\x00\xff",
        "path,label\n".encode("utf-16"),
        b'"' + b"x" * 200_000,
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not a whole manifest"):
            read_manifest(path)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leuko-train data"):
        read_manifest(tmp_path / "manifest.csv")


def test_the_fingerprint_depends_on_pixels_classes_and_splits_but_not_on_order(rows: list[Row]) -> None:
    assert fingerprint(rows[::-1]) == fingerprint(rows)
    assert fingerprint([replace(rows[0], label="monocyte"), *rows[1:]]) != fingerprint(rows)


def test_the_real_archive_is_whole() -> None:
    path = Path(os.environ.get("LEUKO_DATA", "../shared/data")) / "blood-cells.zip"
    if not path.is_file():
        pytest.skip("LEUKO_DATA is absent: the real archive is not checked")
    rows = build_manifest(path)
    counts = Counter((row.split.upper(), row.label) for row in rows)
    assert [counts["TRAIN", label] for label in sorted({r.label for r in rows})] == list(
        KAGGLE_COUNTS["TRAIN"]
    )
    assert len({row.source for row in rows if row.split == "test"}) == 71
