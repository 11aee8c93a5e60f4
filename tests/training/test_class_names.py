"""Which classes a manifest has, and which class each file gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from app.archives.file_labels import parse_mapping
from app.engine.bundle import CLASSES
from training.class_names import FileLabels, parse_classes
from training.cli import main
from training.data import build_manifest, classes_of, list_files, read_manifest, write_manifest
from training.errors import DataError

FIVE = ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")


def drawn(folder: Path, *names: str) -> Path:
    """Write an image of another shade at each path."""
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(folder / name, "PNG")
    return folder


def one_of_each(*classes: str) -> list[str]:
    return [f"{label}/{n}.png" for label in classes for n in range(2)]


def test_classes_keep_the_order_that_they_are_given_in() -> None:
    assert parse_classes("neutrophil,band,immature granulocyte") == (
        "neutrophil",
        "band",
        "immature granulocyte",
    )
    assert parse_classes(" Basophil, EOSINOPHIL ") == ("basophil", "eosinophil")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("basophil", "a list of 2 to 32 class names"),
        (",".join(f"type{n}" for n in range(33)), "a list of 2 to 32 class names"),
        ("basophil,", "has an empty name"),
        ("", "has an empty name"),
        ("basophil,,band", "has an empty name"),
        ("basophil,basophil", "repeat basophil"),
        ("Basophil,basophil", "repeat basophil"),
        ("basophil,basophils", "basophil and basophils are one class"),
        ("basophils,basophil", "basophils and basophil are one class"),
        ("basophil,1st", "begin with a small letter"),
        ("basophil,ba\x1bnd", "begin with a small letter"),
        ("basophil,a/b", "begin with a small letter"),
        ("basophil,grün", "begin with a small letter"),
        ("basophil," + "x" * 65, "at most 64 characters"),
        ("basophil,unidentified", "of no class"),
    ],
)
def test_classes_that_a_bundle_cannot_have_are_refused(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_classes(text)


def test_thirty_two_classes_are_not_too_many() -> None:
    assert len(parse_classes(",".join(f"type {n}" for n in range(32)))) == 32


def test_a_manifest_keeps_its_classes_and_their_order(tmp_path: Path) -> None:
    classes = FIVE[::-1]
    rows = build_manifest(drawn(tmp_path / "cells", *one_of_each(*FIVE)), classes=classes)
    path = tmp_path / "manifest.csv"
    write_manifest(rows, path)
    assert path.read_text().startswith("# classes: neutrophil,monocyte,lymphocyte,eosinophil,basophil\n")
    assert read_manifest(path) == rows
    assert classes_of(read_manifest(path)) == classes
    assert all(row.known for row in rows)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"not a whole manifest: line 12 .*"):
        read_manifest(path)


def test_a_manifest_without_classes_has_the_four(tmp_path: Path) -> None:
    rows = build_manifest(drawn(tmp_path / "cells", *one_of_each(*CLASSES)))
    write_manifest(rows, tmp_path / "manifest.csv")
    assert (tmp_path / "manifest.csv").read_text().startswith("archive,path,label,split,source,certain,")
    assert classes_of(read_manifest(tmp_path / "manifest.csv")) == CLASSES


@pytest.mark.parametrize("head", ["# classes: basophil", "# classes:", "# classes: a,a", "# classes: B,c"])
def test_a_manifest_with_impossible_classes_is_refused(tmp_path: Path, head: str) -> None:
    rows = build_manifest(drawn(tmp_path / "cells", *one_of_each(*CLASSES)))
    path = tmp_path / "manifest.csv"
    write_manifest(rows, path)
    path.write_text(f"{head}\n{path.read_text()}")
    with pytest.raises(DataError, match="not a whole manifest: line 1: the classes must"):
        read_manifest(path)


def test_a_class_of_the_four_may_be_a_cell_of_no_class(tmp_path: Path) -> None:
    cells = drawn(tmp_path, *one_of_each("basophil", "neutrophil", "monocyte"))
    rows = build_manifest(cells, classes=("basophil", "neutrophil"), others=["Monocytes"])
    assert {row.label for row in rows if not row.known} == {"monocytes"}
    with pytest.raises(DataError, match=r"neutrophil is a class: leave it out of --others"):
        build_manifest(cells, classes=("basophil", "neutrophil"), others=["neutrophils", "monocyte"])


def test_a_folder_that_is_no_class_is_named_with_what_to_do(tmp_path: Path) -> None:
    cells = drawn(tmp_path, *one_of_each(*FIVE))
    with pytest.raises(
        DataError, match=r"basophil/0\.png is in no folder .*--leave-out.*--others.*--classes"
    ):
        build_manifest(cells)
    with pytest.raises(DataError, match="did you mean basophil"):
        build_manifest(cells, classes=("basophill", *CLASSES))


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    cells = drawn(tmp_path, *one_of_each(*FIVE))
    with pytest.raises(DataError, match=r"no images of band, blast; each class needs a folder"):
        build_manifest(cells, classes=(*FIVE, "band", "blast"))


def test_several_archives_may_have_the_classes_together(tmp_path: Path) -> None:
    first, second = (
        drawn(tmp_path / "first", *one_of_each(*CLASSES)),
        drawn(tmp_path / "second", *one_of_each("basophil")),
    )
    rows, notes = list_files([("pbc", first), ("pbc", second)], classes=FIVE)
    assert {row.label for row in rows} == set(FIVE)
    assert notes == [
        f"{first}: no images of basophil",
        f"{second}: no images of eosinophil, lymphocyte, monocyte, neutrophil",
    ]


TABLE = """file,class
*/ig/*,immature granulocyte
BNE_*,band
neutrophil/BNE_7.png,segmented
NEUTROPHIL_*,unspecified
nowhere/*.png,band
"""


def test_a_table_of_labels_goes_before_the_folders(tmp_path: Path) -> None:
    names = ["BNE_1.png", "BNE_7.png", "SNE_1.png", "NEUTROPHIL_1.png"]
    cells = drawn(tmp_path / "pbc", *(f"neutrophil/{name}" for name in names), "x/ig/1.png")
    labels = parse_mapping(f"{TABLE}pbc/neutrophil/SNE_1.png,Segmented\n".encode())
    rows, notes = list_files(
        [("", cells)],
        leave_out=["unspecified"],
        classes=("segmented", "band", "immature granulocyte"),
        labels=labels,
    )
    assert {row.path: row.label for row in rows} == {
        "neutrophil/BNE_1.png": "band",
        "neutrophil/BNE_7.png": "segmented",
        "neutrophil/SNE_1.png": "segmented",
        "x/ig/1.png": "immature granulocyte",
    }
    assert notes == [
        f"{cells}: images left out by --labels and --leave-out: 1",
        "lines of --labels that name no image: nowhere/*.png",
    ]


def test_a_label_that_is_no_class_is_named(tmp_path: Path) -> None:
    cells = drawn(tmp_path, *one_of_each(*FIVE))
    with pytest.raises(
        DataError, match=r"basophil/1\.png has the label 'bassophil' .* did you mean basophil"
    ):
        build_manifest(cells, classes=FIVE, labels={"basophil/1.png": "bassophil"})


def test_brackets_in_a_pattern_are_themselves() -> None:
    labels = FileLabels({"a[1]*.png": "band"})
    assert labels.find("cells", "x/a[1]_2.png") == "band"
    assert labels.find("cells", "x/a1_2.png") is None


def test_files_without_folders_get_their_classes_from_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = drawn(tmp_path / "cells", "1.png", "2.png", "3.png", "4.png")
    table, out = tmp_path / "labels.csv", tmp_path / "manifest.csv"
    table.write_text("image;label\n1.png;band\n2.png;Blasts\n3.png;band\n4.png;blast\n")
    arguments = ["data", str(cells), "--classes", "blast,band", "--labels", str(table), "--out", str(out)]
    assert main([*arguments, "--split", "50:50"]) == 0
    assert [row.label for row in read_manifest(out)] == ["band", "blast", "band", "blast"]
    assert "classes in the order of their indices: blast, band" in capsys.readouterr().out
    assert main([*arguments[:2], "--classes", "blast"]) == 1
    assert "a list of 2 to 32 class names" in capsys.readouterr().err


def test_a_folder_called_test_is_not_taken_for_kaggles(tmp_path: Path) -> None:
    names = [f"{split}/{label}/{n}.png" for split in ("TRAIN", "TEST") for label in CLASSES for n in range(2)]
    cells = drawn(tmp_path / "cells", *names)
    rows, notes = list_files([("", cells)])
    assert {row.split for row in rows} == {"train"}
    assert len(rows) == 16
    assert notes == [f"{cells}: folders that are not taken for splits: TEST, TRAIN; see --split"]


def test_kaggles_archive_is_still_refused_where_files_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"TRAIN/MONOCYTE has 1 images instead of 2478"):
        list_files([("", drawn(tmp_path, "TRAIN/MONOCYTE/_0_1173.jpeg", "TEST/NEUTROPHIL/a.jpeg"))])
