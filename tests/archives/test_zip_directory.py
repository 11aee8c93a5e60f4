from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable
from zipfile import ZIP_BZIP2, ZIP_LZMA, ZIP_STORED, ZipInfo

import numpy as np
import pytest

from app.archives.labelled_archive import open_archive
from app.archives.zip_directory import ArchiveLimits, list_directory, read_directory
from app.errors import BadArchive, RequestError, TooLarge
from tests.pictures import real
from tests.zips import DIRECTORY, LABELS, LOCAL, declare, pack, pack_one, patch, rename

LIMITS = ArchiveLimits()
NAME = "monocyte/a.png"


def refuse(data: bytes, error: type[RequestError], limits: ArchiveLimits = LIMITS) -> str:
    """Return the detail of the error with which the archive is refused."""
    with pytest.raises(error) as caught:
        read_directory(io.BytesIO(data), limits)
    return caught.value.detail


def test_files_are_listed_and_folders_are_not() -> None:
    entries = read_directory(io.BytesIO(pack({"a/": b"", "a/b.png": b"12", "c": b""})), LIMITS)
    assert [(entry.name, entry.size) for entry in entries] == [("a/b.png", 2), ("c", 0)]


def names(data: bytes) -> list[str]:
    """Return the paths, of which those checked and those not checked are the same."""
    checked = [entry.name for entry in read_directory(io.BytesIO(data), LIMITS)]
    assert [entry.name for entry in list_directory(io.BytesIO(data), LIMITS)] == checked
    return checked


def unflagged(name: bytes, extra: bytes = b"") -> bytes:
    """Return a ZIP of one entry whose name has no flag that says how it is encoded."""
    info = ZipInfo("x" * len(name))
    info.extra = extra
    return rename(pack_one(info), info.filename.encode(), name)


@pytest.mark.parametrize("name", ["Müller.png", "Mu\u0308ller.png", "細胞/😀.png", "a.png"])
def test_names_in_utf_8_are_read_with_and_without_their_flag(name: str) -> None:
    assert names(unflagged(name.encode())) == names(pack({name: b"1"})) == [name]


def test_other_names_without_a_flag_are_in_code_page_437() -> None:
    assert names(unflagged("Müller.png".encode("cp437"))) == ["Müller.png"]
    assert names(unflagged("Müller.png".encode("latin-1"))) == ["Mⁿller.png"]


def unicode_path(name: str, of: bytes) -> bytes:
    content = b"\1" + struct.pack("<L", zlib.crc32(of)) + name.encode()
    return struct.pack("<HH", 0x7075, len(content)) + content


def test_an_extra_field_with_the_name_in_utf_8_is_believed_if_it_belongs_to_the_name() -> None:
    stored = b"M_ller.png"
    assert names(unflagged(stored, unicode_path("Müller.png", stored))) == ["Müller.png"]
    assert names(unflagged(stored, unicode_path("Müller.png", b"other"))) == ["M_ller.png"]
    assert "absolute" in refuse(unflagged(stored, unicode_path("../a.png", stored)), BadArchive)


def test_an_archive_after_other_bytes_is_read() -> None:
    (entry,) = read_directory(io.BytesIO(b"#!/bin/sh\n" + pack({NAME: b"12"})), LIMITS)
    assert entry.header == 10


# --- 413 --------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_by_its_ratio() -> None:
    data = pack({NAME: bytes(2**20)})
    assert "200 times" in refuse(data, TooLarge)
    assert read_directory(io.BytesIO(data), ArchiveLimits(max_ratio=2000))


@pytest.mark.parametrize("size", [230_454, 921_654, 999_999])
def test_a_uniform_bitmap_is_no_bomb(size: int) -> None:
    data = pack({NAME: bytes(size)})
    assert len(data) < size / 200
    assert read_directory(io.BytesIO(data), LIMITS)
    assert "entry 1" in refuse(data, TooLarge, ArchiveLimits(ratio_floor=size))


def test_many_small_entries_that_together_are_a_bomb_are_refused() -> None:
    data = pack({f"{n}.png": bytes(900_000) for n in range(20)})
    assert "the archive unpacks to over 200 times" in refuse(data, TooLarge)
    honest = {f"{n}.jpg": os.urandom(10_000) for n in range(10)}
    assert read_directory(io.BytesIO(pack(honest | {f"{n}.png": bytes(900_000) for n in range(20)})), LIMITS)


def test_the_archive_with_a_blank_bitmap_is_read() -> None:
    with real("../cases/files/blank.zip").open("rb") as file:
        assert len(read_directory(file, LIMITS)) == 9


def test_an_entry_of_nothing_that_claims_bytes_is_refused() -> None:
    assert "200 times" in refuse(declare(pack({NAME: b""}, ZIP_STORED), 1), TooLarge)


def test_entries_are_limited_in_bytes_packed_and_unpacked() -> None:
    data = pack({NAME: os.urandom(100)}, ZIP_STORED)
    assert read_directory(io.BytesIO(data), ArchiveLimits(max_entry_bytes=100))
    assert "99 bytes" in refuse(data, TooLarge, ArchiveLimits(max_entry_bytes=99))
    assert "99 bytes" in refuse(declare(data, 1), TooLarge, ArchiveLimits(max_entry_bytes=99))


def test_the_bytes_of_all_entries_are_limited() -> None:
    data = pack({f"{n}.png": bytes(100) for n in range(10)}, ZIP_STORED)
    assert read_directory(io.BytesIO(data), ArchiveLimits(max_total_bytes=1000))
    assert "999 bytes" in refuse(data, TooLarge, ArchiveLimits(max_total_bytes=999))


@pytest.mark.parametrize("comment", [b"", b"a comment"])
def test_entries_are_counted_before_they_are_parsed(comment: bytes) -> None:
    data = pack({f"{n}.png": b"" for n in range(11)})
    data = data[:-2] + struct.pack("<H", len(comment)) + comment
    assert len(read_directory(io.BytesIO(data), ArchiveLimits(max_entries=11))) == 11
    assert "10 entries" in refuse(data, TooLarge, ArchiveLimits(max_entries=10))


def test_a_directory_of_padding_is_never_read_whole() -> None:
    entry = ZipInfo(NAME)
    entry.comment = bytes(60_000)
    data = pack_one(entry)
    start = data.index(DIRECTORY)
    directory = data[start : data.index(b"PK\x05\x06")] * 20
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), start, 0)
    assert "2 entries" in refuse(data[:start] + directory + end, TooLarge, ArchiveLimits(max_entries=2))


def test_paths_are_limited_in_bytes_each_and_in_total() -> None:
    assert read_directory(io.BytesIO(pack({"é" * 512: b""})), LIMITS)
    assert refuse(pack({"a": b"", "é" * 513: b""}), BadArchive).endswith(
        "entry 2 of the archive has a path of over 1024 bytes"
    )
    data = pack({f"{n:01000}": b"" for n in range(1500)})
    assert "1500 entries, or too many bytes" in refuse(data, TooLarge, ArchiveLimits(max_entries=1500))


def test_entries_that_share_bytes_are_refused() -> None:
    data = pack({"a.png": b"1" * 50, "b.png": b"2" * 50}, ZIP_STORED)
    second = data.rindex(DIRECTORY)
    assert "overlap" in refuse(data[: second + 42] + bytes(4) + data[second + 46 :], TooLarge)


def test_an_entry_that_reaches_into_the_directory_is_refused() -> None:
    data = pack({NAME: b"1" * 50}, ZIP_STORED)
    assert "overlap" in refuse(patch(data, DIRECTORY, 20, struct.pack("<LL", 51, 51)), TooLarge)


# --- 422 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        b"../onocyte/a.p",
        b"monocyte/../ab",
        b"/onocyte/a.png",
        b"C:nocyte/a.png",
        b"monocyte\\a.png",
        b"monocyte/a\0png",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(path: bytes) -> None:
    assert "path" in refuse(rename(pack({NAME: b"1"}), NAME.encode(), path), BadArchive)


def test_two_entries_of_one_path_are_refused() -> None:
    data = pack({"monocyte/a.png": b"1", "monocyte/b.png": b"2"})
    assert "entry 2" in refuse(rename(data, b"te/b.png", b"te/a.png"), BadArchive)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_special_files_are_refused(mode: int) -> None:
    info = ZipInfo(NAME)
    info.external_attr = (mode | 0o777) << 16
    assert "link" in refuse(pack_one(info, b"/etc/passwd"), BadArchive)


@pytest.mark.parametrize("flag", [0x1, 0x41, 0x2001])
def test_encrypted_entries_are_refused(flag: int) -> None:
    data = patch(pack({NAME: b"1"}), DIRECTORY, 8, struct.pack("<H", flag))
    assert "encrypted" in refuse(data, BadArchive)


@pytest.mark.parametrize("method", [ZIP_BZIP2, ZIP_LZMA])
def test_other_compression_is_refused(method: int) -> None:
    assert "method" in refuse(pack({NAME: b"1"}, method), BadArchive)


@pytest.mark.parametrize("name", ["inner.zip", "monocyte/inner.ZIP", "a/b.tar.gz", "x.7z"])
def test_an_archive_within_the_archive_is_refused(name: str) -> None:
    assert "archive itself" in refuse(pack({name: pack({NAME: b"1"})}), BadArchive)


def test_a_folder_may_be_named_like_an_archive() -> None:
    assert read_directory(io.BytesIO(pack({"all.zip/": b"", "all.zip/a.png": b"1"})), LIMITS)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:0],
        lambda data: bytes(len(data)),
        lambda data: data[:-10],
        lambda data: data[40:],
        lambda data: patch(data, DIRECTORY, 0, b"XXXX"),
        lambda data: patch(data, LOCAL, 0, b"XXXX"),
        lambda data: patch(data, DIRECTORY, 42, b"\xff\xff\xff\x7f"),
        lambda data: patch(data, DIRECTORY, 6, b"\xff\x00"),
        lambda data: patch(data, b"PK\x05\x06", 12, b"\xff\xff\xff\x7f"),
        lambda data: rename(
            patch(data, DIRECTORY, 9, b"\x08"), b"monocyte", b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe"
        ),
    ],
    ids=["empty", "zeros", "no end", "no start", "directory", "local", "offset", "version", "size", "utf-8"],
)
def test_broken_structure_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    refuse(spoil(pack({NAME: b"1"})), BadArchive)


def test_an_entry_without_a_name_is_only_a_file() -> None:
    name_to_extra_field = patch(pack({"x": b"1"}), DIRECTORY, 28, struct.pack("<HH", 0, 1))
    (entry,) = read_directory(io.BytesIO(name_to_extra_field), LIMITS)
    assert entry.name == ""


def test_errors_name_no_file() -> None:
    data = pack({"Doe^John.zip": b"1"})
    assert "Doe" not in refuse(data, BadArchive)
    assert "Doe" not in refuse(pack({"Doe^John.png": bytes(10**6)}), TooLarge)


def test_flipped_bytes_give_entries_or_a_named_error() -> None:
    data = pack({f"monocyte/{n}.png": zlib.compress(bytes([n])) for n in range(5)})
    random = np.random.default_rng(0)
    for _ in range(2000):
        broken = bytearray(data)
        for place in random.integers(0, len(data), 3):
            broken[place] = random.integers(256)
        try:
            read_directory(io.BytesIO(bytes(broken)), LIMITS)
        except (TooLarge, BadArchive):
            continue


def test_the_malformed_collection_gives_archives_or_named_errors() -> None:
    paths = list(real("malformed").glob("*zip*/*.zip"))
    for path in paths:
        with path.open("rb") as file:
            try:
                open_archive(file, LABELS)
            except (TooLarge, BadArchive):
                continue
    assert len(paths) > 20
