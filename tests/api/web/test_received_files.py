"""What the page does with ZIPs and folders: which files are images, what a ZIP is for, what is left out."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app import image_signatures
from app.archives import image_files
from tests.browsing import give, give_labelled, names, saved, tiles
from tests.zips import DIRECTORY, LABELS, LOCAL, pack, patch

RULE = """async () => {
    const rule = await import(new URL('page/files.js', document.baseURI));
    return [rule.IMAGE_SUFFIXES, rule.ARCHIVE_SUFFIXES, rule.SYSTEM_NAMES];
}"""
BEGINNINGS = """async (heads) => {
    const { beginsAsImage } = await import(new URL('page/files.js', document.baseURI));
    return Promise.all(heads.map((head) => beginsAsImage(new Blob([new Uint8Array(head)]))));
}"""


@pytest.fixture(scope="module")
def image(folder: Path) -> bytes:
    return (folder / "monocyte.png").read_bytes()


def classified(page: Page, count: int, failed: int = 0) -> None:
    some = f"{count} image{'s' * (count != 1)} classified" + (f", {failed} failed." if failed else ".")
    expect(page.locator("#status")).to_have_text(some, timeout=30_000)


def call(page: Page, module: str, function: str, *arguments: Any) -> Any:
    """Call a function of one of the page's scripts."""
    script = "async ([path, name, given]) => (await import(new URL(path, document.baseURI)))[name](...given)"
    return page.evaluate(script, [f"page/{module}.js", function, [*arguments]])


# --- a ZIP ------------------------------------------------------------------------------------------


def test_a_zip_without_class_folders_is_cells_of_the_specimen(
    page: Page, image: bytes, tmp_path: Path
) -> None:
    (tmp_path / "S-1.zip").write_bytes(pack({"S-1/a.png": image, "S-1/b.png": image, "S-1/": b""}))
    give(page, tmp_path, "S-1.zip")
    classified(page, 2)
    assert names(page) == ["S-1/a.png", "S-1/b.png"]
    expect(page.locator(".crop.unavailable")).to_have_count(0)
    document = json.loads(saved(page, "#save-json"))
    assert [one["filename"] for one in document["predictions"]] == ["S-1/a.png", "S-1/b.png"]
    expect(page.locator("#problems")).to_be_empty()


def test_a_zip_with_class_folders_is_what_the_user_says(page: Page, folder: Path) -> None:
    dialog = page.locator("#ask-purpose")
    give(page, folder, "labelled.zip")
    expect(dialog).to_contain_text("What is labelled.zip?")
    expect(dialog).to_contain_text("eosinophil (3), lymphocyte (3), monocyte (5), neutrophil (3).")
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("labelled.zip was not used.")
    give_labelled(page, folder, "labelled.zip", "Cells of one specimen")
    classified(page, 13, failed=1)
    expect(page.locator("#warnings")).to_contain_text("1 of 14 images could not be classified")
    assert page.locator("#evaluation").is_hidden()


@pytest.mark.parametrize(
    "path",
    ["Monocyte/a.png", "x/MONOCYTES/deep/a.png", "set/ monocyte /a.png", "neutrophil/monocyte/a.png"],
)
def test_class_folders_are_recognised_as_people_write_them(page: Page, path: str) -> None:
    assert call(page, "files", "classOf", path, [*LABELS]) == "monocyte"


@pytest.mark.parametrize("path", ["monocyte.png", "basophil/monocyte.png", "monocyte-2/a.png", "a.png"])
def test_other_names_are_no_class(page: Page, path: str) -> None:
    assert call(page, "files", "classOf", path, [*LABELS]) is None


def test_folders_of_no_class_are_said_to_be_counted_as_one_specimen(
    page: Page, image: bytes, tmp_path: Path
) -> None:
    (tmp_path / "odd.zip").write_bytes(pack({"eos/a.png": image, "mono/b.png": image}))
    give(page, tmp_path, "odd.zip")
    classified(page, 2)
    expect(page.locator(".note")).to_contain_text("None of its folders is named after a class (eosinophil,")


def test_images_of_a_zip_that_cannot_be_unpacked_are_missing_from_the_report(
    page: Page, image: bytes, tmp_path: Path
) -> None:
    method = b"\x09\0"  # Deflate64
    whole = pack({"a.png": image, "b.png": image})
    (tmp_path / "other.zip").write_bytes(patch(patch(whole, LOCAL, 8, method), DIRECTORY, 10, method))
    (tmp_path / "locked.zip").write_bytes(patch(whole, DIRECTORY, 8, b"\x01\0"))
    (tmp_path / "corrupt.zip").write_bytes(patch(whole, DIRECTORY, 16, b"\0\0\0\0"))
    for count, (name, reason) in enumerate(
        {
            "other.zip": "by a method other than store and deflate",
            "locked.zip": "is encrypted",
            "corrupt.zip": "is corrupt",
        }.items(),
        1,
    ):
        give(page, tmp_path, name)
        classified(page, 1, failed=1)
        expect(page.locator(".failed")).to_have_count(count)
        expect(page.locator(".failed").nth(count - 1)).to_contain_text(reason)
    assert b"3 of 6 images could not be classified" in saved(page, "#save-fhir")
    expect(page.locator("#retry")).to_be_hidden()


def test_what_a_zip_holds_besides_images_is_left_out_and_said(
    page: Page, image: bytes, tmp_path: Path
) -> None:
    others = {"notes.txt": b"hello", ".ipynb_checkpoints/a.png": image, "@eaDir/a.jpg": image, "b.tar": b""}
    (tmp_path / "mixed.zip").write_bytes(pack({"IM0001": image, "a.jfif": image, **others}))
    give(page, tmp_path, "mixed.zip")
    classified(page, 2)
    assert names(page) == ["IM0001", "a.jfif"]
    lines = page.locator(".note p").all_inner_texts()
    assert [line.strip() for line in lines] == [
        "2 files were left out (hidden or left by a system): .ipynb_checkpoints/a.png, @eaDir/a.jpg",
        "1 file was left out (an archive): b.tar",
        "1 file was left out (not an image): notes.txt",
    ]


def test_a_labelled_zip_of_files_without_suffix_is_asked_about(
    page: Page, image: bytes, tmp_path: Path
) -> None:
    (tmp_path / "labelled.zip").write_bytes(
        pack({"monocyte/IM1": image, "neutrophil/IM2": image, "a": b"text"})
    )
    give_labelled(page, tmp_path, "labelled.zip", "Cells of one specimen")
    classified(page, 2)


def test_what_is_given_with_an_unusable_zip_is_used_all_the_same(
    page: Page, folder: Path, image: bytes, tmp_path: Path
) -> None:
    huge = patch(pack({"a.png": image}), DIRECTORY, 24, b"\xff\xff\xff\x7f")
    (tmp_path / "huge.zip").write_bytes(huge)
    (tmp_path / "texts.zip").write_bytes(pack({"notes.txt": b"hello"}))
    page.set_input_files("#files", [tmp_path / "texts.zip", folder / "monocyte.png", tmp_path / "huge.zip"])
    classified(page, 1, failed=1)
    expect(page.locator(".problem")).to_contain_text("texts.zip holds no images.")
    expect(page.locator(".failed")).to_contain_text("has more than")


def test_a_zip_without_images_is_said_to_have_none(page: Page, tmp_path: Path) -> None:
    (tmp_path / "texts.zip").write_bytes(pack({"notes.txt": b"hello"}))
    give(page, tmp_path, "texts.zip")
    expect(page.locator(".problem")).to_contain_text("texts.zip holds no images.")
    expect(tiles(page)).to_have_count(0)


def test_the_curl_command_unpacks_the_zip(page: Page, image: bytes, tmp_path: Path) -> None:
    if shutil.which("curl") is None or shutil.which("unzip") is None:
        pytest.skip("curl or unzip is absent")
    (tmp_path / "S 1.zip").write_bytes(pack({"cells/a.png": image, "cells/b.png": image}))
    give(page, tmp_path, "S 1.zip")
    classified(page, 2)
    page.locator("#summary summary").click()
    page.locator("#copy-curl").click()
    expect(page.locator("#status")).to_have_text("Copied.")
    command = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["n"] == 2


# --- which files are images -------------------------------------------------------------------------


def test_the_page_s_rule_for_names_is_that_of_the_commands(page: Page) -> None:
    rule = image_files
    images, archives, systems = page.evaluate(RULE)
    assert {*images.split()} == rule.IMAGE_SUFFIXES
    assert {*archives.split()} == rule.ARCHIVE_SUFFIXES
    assert {*systems} == rule._SYSTEM
    for path in (
        "a",
        "a.txt",
        "a.JPG",
        ".a.png",
        "~$a.png",
        "x/@eaDir/a.png",
        "../a.png",
        "jpg",
        "a.tar.gz",
        "a.",
    ):
        kind = rule.kind_by_name(PurePosixPath(path))
        assert call(page, "files", "kindByName", path) == (kind and str(kind)), path


def test_the_page_s_rule_for_contents_is_that_of_the_commands(page: Page) -> None:
    rule = image_signatures
    variants = [*rule._DICOM, *rule._UNREAD, *(one for some in rule.SIGNATURES.values() for one in some)]
    heads = [b"", b"BM and so on, a text", b"BM" + bytes(12) + b"\x28\0\0\0", b"hello", bytes(132)]
    for variant in variants:
        head = bytearray(rule.HEAD)
        for offset, mark in variant:
            head[offset : offset + len(mark)] = mark
        heads.append(bytes(head))
    seen = page.evaluate(BEGINNINGS, [[*head] for head in heads])
    assert seen == [rule.begins_as_image(head) for head in heads]


# --- folders ----------------------------------------------------------------------------------------


def test_the_file_dialog_takes_a_folder(page: Page, image: bytes, tmp_path: Path) -> None:
    cells = tmp_path / "S-1"
    for name, data in {"1/a.png": image, "2/a.png": image, "2/scan": image, "2/notes.txt": b"hello"}.items():
        (cells / name).parent.mkdir(parents=True, exist_ok=True)
        (cells / name).write_bytes(data)
    page.set_input_files("#folder", cells)
    classified(page, 3)
    assert names(page) == ["S-1/1/a.png", "S-1/2/a.png", "S-1/2/scan"]
    expect(page.locator(".note")).to_have_count(1)
    expect(page.locator(".note")).to_contain_text("1 file was left out (not an image): S-1/2/notes.txt")


DROP = """async (names) => {
    const { droppedItems } = await import(new URL('page/files.js', document.baseURI));
    const file = (path) => path.includes('bad')
      ? { isFile: true, fullPath: path, file: (_, reject) => reject(new Error('no')) }
      : { isFile: true, fullPath: path, file: (resolve) => resolve(new File(['x'], path.split('/').pop())) };
    const lists = [names.slice(0, 2), names.slice(2), []];  // a browser returns a folder in parts
    const reader = { readEntries: (resolve) => resolve(lists.shift().map((name) => file(`/cells/${name}`))) };
    const closed = { readEntries: (_, reject) => reject(new Error('no')) };
    const folder = { isDirectory: true, fullPath: '/cells', createReader: () => reader };
    const locked = { isDirectory: true, fullPath: '/locked', createReader: () => closed };
    const items = [folder, locked].map((entry) => ({ kind: 'file', webkitGetAsEntry: () => entry }));
    const { items: found, failed } = await droppedItems({ items });
    return [found.map(({ name }) => name), failed];
}"""


def test_what_cannot_be_read_of_a_dropped_folder_is_said(page: Page) -> None:
    found, failed = page.evaluate(DROP, ["a.png", "b.png", "bad.png"])
    assert found == ["cells/a.png", "cells/b.png"]
    assert failed == [{"name": name, "why": "cannot be read"} for name in ("cells/bad.png", "locked")]


def test_folders_named_after_classes_hint_at_the_evaluation(page: Page, image: bytes, tmp_path: Path) -> None:
    (tmp_path / "set/monocyte").mkdir(parents=True)
    (tmp_path / "set/monocyte/a.png").write_bytes(image)
    page.set_input_files("#folder", tmp_path / "set")
    classified(page, 1)
    expect(page.locator(".note")).to_contain_text("To evaluate the model, drop them in a ZIP.")
