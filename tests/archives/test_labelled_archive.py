from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from zipfile import ZIP_DEFLATED, ZIP_STORED

import pytest

from app.archives.file_labels import assign_groups, parse_mapping
from app.archives.image_files import Kind
from app.archives.labelled_archive import ArchiveEntry, ArchiveLimits, LabelledArchive, open_archive
from app.errors import BadArchive, TooLarge, UndecodableImage
from tests.fake_classifier import png
from tests.pictures import case, real
from tests.zips import DIRECTORY, LABELS, declare, pack, patch

CONTENT = b"the bytes of an image " * 20


def opened(files: dict[str, bytes], method: int = ZIP_DEFLATED) -> LabelledArchive:
    return open_archive(io.BytesIO(pack(files, method)), LABELS)


def labels(*names: str) -> dict[str, str]:
    """Return path → class of the entries of an archive with these paths."""
    return {entry.name: LABELS[entry.label] for entry in opened(dict.fromkeys(names, b"1")).entries}


def test_the_class_is_the_nearest_folder_named_after_one_in_any_case() -> None:
    classes = labels("a/b/EOSINOPHIL/1.jpeg", "Lymphocyte/2.png", "monocyte/neutrophil/deep/3.tif")
    assert list(classes.values()) == ["eosinophil", "lymphocyte", "neutrophil"]


def test_a_class_folder_may_have_blanks_around_its_name_and_a_plural_s() -> None:
    classes = labels("Eosinophils/1.png", " lymphocyte /2.png", "set/MONOCYTES /3.png", "neutrophils/x/4.png")
    assert list(classes.values()) == list(LABELS)


def test_a_misspelled_class_folder_is_asked_about() -> None:
    with pytest.raises(BadArchive, match=r"2 images .* at any depth; did you mean lymphocyte, neutrophil\?$"):
        labels("monocyte/a.png", "Neutrofil/b.png", "lymfocyte/c.jpg")
    with pytest.raises(BadArchive, match=r"at any depth$"):
        labels("monocyte/a.png", "basophil/c.jpg")


@pytest.mark.parametrize("name", ["mac-utf8.zip", "nfd.zip"])
def test_the_archives_that_users_sent_fit_their_groups(name: str) -> None:
    with open_archive(case(name).open("rb"), LABELS) as archive:
        names = [entry.name for entry in archive.entries]
    assert assign_groups(names, parse_mapping(case("groups-nfc.csv").read_bytes())) == [
        str(number).encode() for number in range(8)
    ]


def test_a_file_named_after_a_class_has_no_class_by_it() -> None:
    (entry,) = opened({"neutrophil/monocyte": png(1)}).entries
    assert (entry.name, LABELS[entry.label]) == ("neutrophil/monocyte", "neutrophil")


def test_an_image_by_its_content_is_one_in_and_outside_class_folders() -> None:
    archive = opened({"monocyte/a": png(1), "monocyte/b.txt": b"text"})
    assert [entry.name for entry in archive.entries] == ["monocyte/a"]
    assert archive.left_out == {Kind.OTHER: 1}
    with pytest.raises(BadArchive, match=r"1 images .* outside"):
        opened({"monocyte/a.png": png(1), "stray": png(2)})


def test_an_entry_whose_start_is_corrupt_fails_instead_of_being_left_out() -> None:
    data = pack({"monocyte/a": png(1)})
    place = data.index(b"monocyte/a") + len("monocyte/a")
    archive = open_archive(io.BytesIO(data[:place] + b"\xff" * 8 + data[place + 8 :]), LABELS)
    with pytest.raises(UndecodableImage):
        archive.read(0)


def test_an_archive_of_other_files_says_what_it_left_out() -> None:
    with pytest.raises(BadArchive, match=r"2 files were left out: hidden .* \(1\), not an image \(1\)"):
        opened({"monocyte/a.txt": b"text", ".cache/monocyte/a.png": png(1)})


def test_files_of_operating_systems_are_ignored() -> None:
    litter = [
        "__MACOSX/monocyte/._a.png",
        "monocyte/.DS_Store",
        "monocyte/Thumbs.db",
        "monocyte/desktop.ini",
        ".git/monocyte/a.png",
    ]
    assert set(labels("monocyte/a.png", *litter)) == {"monocyte/a.png"}


def test_other_files_outside_the_class_folders_are_ignored() -> None:
    assert set(labels("set/labels.csv", "README", "set/monocyte/a.png")) == {"set/monocyte/a.png"}


def test_an_image_outside_the_class_folders_is_refused_and_says_how_to_fix_it() -> None:
    with pytest.raises(BadArchive, match=r"2 images .* eosinophil, lymphocyte, monocyte, neutrophil"):
        labels("monocyte/a.png", "b.PNG", "basophil/c.jpg")


@pytest.mark.parametrize("names", [(), ("labels.csv",), ("monocyte/",), ("basophil/notes.txt",)])
def test_an_archive_without_images_is_refused_and_says_which_folders_it_needs(names: tuple[str]) -> None:
    with pytest.raises(BadArchive, match="eosinophil, lymphocyte, monocyte, neutrophil"):
        labels(*names)


@pytest.mark.parametrize("method", [ZIP_STORED, ZIP_DEFLATED])
def test_an_entry_reads_as_the_bytes_that_were_packed(method: int) -> None:
    files = {f"monocyte/{n}.png": CONTENT + bytes([n]) for n in range(3)} | {"monocyte/empty.png": b""}
    with opened(files, method) as archive:
        assert {entry.name: archive.read(index) for index, entry in enumerate(archive.entries)} == files


def test_entries_may_be_read_in_any_order_and_from_several_threads() -> None:
    files = {f"neutrophil/{n}.png": CONTENT + bytes([n]) for n in range(40)}
    with opened(files) as archive, ThreadPoolExecutor(4) as pool:
        entries, backwards = archive.entries, [*reversed(range(40))] * 5
        read = list(pool.map(archive.read, backwards))
    assert read == [files[entries[index].name] for index in backwards]


def test_the_file_is_closed_with_the_archive() -> None:
    file = io.BytesIO(pack({"monocyte/a.png": b"1"}))
    with open_archive(file, LABELS) as archive:
        assert archive.entries == [ArchiveEntry("monocyte/a.png", 2)]
    assert file.closed


def test_a_corrupt_entry_fails_alone() -> None:
    data = bytearray(pack({"monocyte/a.png": CONTENT, "monocyte/b.png": CONTENT}, ZIP_STORED))
    data[data.index(CONTENT) + 5] ^= 1
    archive = open_archive(io.BytesIO(bytes(data)), LABELS)
    with pytest.raises(UndecodableImage):
        archive.read(0)
    assert archive.read(1) == CONTENT


@pytest.mark.parametrize("damage", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"])
def test_a_broken_deflate_stream_is_undecodable(damage: bytes) -> None:
    data = pack({"monocyte/a.png": CONTENT})
    place = data.index(b"a.png") + 5
    archive = open_archive(io.BytesIO(data[:place] + damage + data[place + 4 :]), LABELS)
    with pytest.raises(UndecodableImage):
        archive.read(0)


def test_an_entry_that_unpacks_to_less_than_it_declares_is_undecodable() -> None:
    archive = open_archive(io.BytesIO(declare(pack({"monocyte/a.png": CONTENT}), len(CONTENT) + 1)), LABELS)
    with pytest.raises(UndecodableImage):
        archive.read(0)


@pytest.mark.parametrize("size", [1, len(CONTENT) - 1])
@pytest.mark.parametrize("method", [ZIP_STORED, ZIP_DEFLATED])
def test_an_entry_that_unpacks_to_more_than_it_declares_is_too_large(size: int, method: int) -> None:
    archive = open_archive(io.BytesIO(declare(pack({"monocyte/a.png": CONTENT}, method), size)), LABELS)
    with pytest.raises(TooLarge):
        archive.read(0)


def test_a_wrong_checksum_is_undecodable() -> None:
    data = patch(pack({"monocyte/a.png": CONTENT}), DIRECTORY, 16, struct.pack("<L", 1))
    archive = open_archive(io.BytesIO(data), LABELS)
    with pytest.raises(UndecodableImage):
        archive.read(0)


def test_a_refused_archive_leaves_its_file_open() -> None:
    file = io.BytesIO(pack({"monocyte/a.png": CONTENT}))
    with pytest.raises(TooLarge):
        open_archive(file, LABELS, ArchiveLimits(max_entry_bytes=1))
    assert not file.closed


def test_the_kaggle_archive_is_listed_whole() -> None:
    with open_archive(real("blood-cells.zip").open("rb"), LABELS) as archive:
        tests = {index: entry for index, entry in enumerate(archive.entries) if "/TEST/" in entry.name}
        counts = [sum(entry.label == label for entry in tests.values()) for label in range(4)]
        assert counts == [623, 620, 620, 624]
        assert archive.read(next(iter(tests))).startswith(b"\xff\xd8\xff")
