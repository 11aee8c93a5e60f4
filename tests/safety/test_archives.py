"""Scenarios 15 and 16 of the safety plan: archives that are meant to do harm."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from random import Random
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import pytest
from PIL import Image

from app.units import MIB
from tests.fake_classifier import png
from tests.fakes import GREYS
from tests.pictures import encode, real
from tests.safety.memory import growing_less_than
from tests.safety.sandbox import Sandbox, sealed
from tests.zips import DIRECTORY, declare, pack, patch, rename

NAME = "monocyte/a.png"
GOOD = {"neutrophil/good.png": png(GREYS[3])}
END = struct.Struct("<4s4H2LH")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sealed(tmp_path_factory.mktemp("temporary")) as found:
        yield found


def listed(entries: bytes, directory: bytes) -> bytes:
    """A ZIP of these bytes and this directory."""
    count = min(directory.count(DIRECTORY), 0xFFFF)
    return entries + directory + END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), len(entries), 0)


def parts(archive: bytes) -> tuple[bytes, bytes]:
    """The entries and the directory."""
    start = archive.index(DIRECTORY)
    return archive[:start], archive[start : archive.rindex(b"PK\x05\x06")]


def quilt(count: int) -> bytes:
    """Many entries, each with an honest size and a modest ratio, that are all the same bytes."""
    entries, directory = parts(pack({"monocyte/00000": Random(0).randbytes(600) + bytes(99_400)}))
    named = (directory.replace(b"00000", b"%05d" % number) for number in range(count))
    return listed(entries, b"".join(named))


def understated(declared: int, true: int) -> bytes:
    return declare(pack({NAME: bytes(true)} | GOOD), declared)


# --- 15: bombs --------------------------------------------------------------------------------------

BOMBS = {
    "ratio": lambda: pack({NAME: bytes(16 * MIB)}),
    "many": lambda: pack({f"monocyte/{number}.png": bytes(8 * MIB) for number in range(20)}),
    "overlap": lambda: quilt(9_000),
    "two in one": lambda: quilt(2),
    "understated": lambda: understated(90_000, 15 * MIB),
    "overstated": lambda: declare(pack({NAME: Random(0).randbytes(100_000)}), 17 * MIB),
    "entries": lambda: listed(*(part * n for part, n in zip(parts(pack(GOOD)), (1, 200_001), strict=True))),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_15_a_bomb_is_refused_without_unpacking_it(sandbox: Sandbox, kind: str) -> None:
    bomb = BOMBS[kind]()
    sandbox.evaluate(pack(GOOD))
    with growing_less_than(20 + 6 * len(bomb) / MIB, sandbox.service):
        assert sandbox.refusal(bomb) == (413, "too_large")


def test_15_the_bombs_unpack_to_a_thousand_times_their_size() -> None:
    for kind, ratio in (("ratio", 1000), ("many", 1000), ("overlap", 900)):
        bomb = BOMBS[kind]()
        with ZipFile(BytesIO(bomb)) as archive:
            assert sum(info.file_size for info in archive.infolist()) > ratio * len(bomb)


def test_15_an_honest_archive_passes_without_a_byte_on_disk(sandbox: Sandbox) -> None:
    bulky = {f"monocyte/{number}.bmp": encode(Image.new("L", (1000, 900), 160), "BMP") for number in range(4)}
    before = sandbox.temporary.stat().st_mtime_ns
    report = sandbox.evaluate(pack(bulky, ZIP_STORED)).json()
    assert (report["n"], report["accuracy"]) == (4, 1.0)
    assert sandbox.temporary.stat().st_mtime_ns == before


def test_15_an_evaluation_of_thousands_of_images_never_holds_their_pixels(sandbox: Sandbox) -> None:
    # 196 kB each once decoded, 147 kB once framed: 400 MB and 300 MB if all were held.
    image = encode(Image.new("RGB", (256, 256), (160, 160, 160)), "PNG")
    archive = pack({f"monocyte/{number}.png": image for number in range(2000)}, ZIP_STORED)
    sandbox.evaluate(pack(GOOD))
    with growing_less_than(80, sandbox.service):
        report = sandbox.evaluate(archive).json()
    assert (report["n"], report["accuracy"]) == (2000, 1.0)


# --- 16: traps --------------------------------------------------------------------------------------


def linked(mode: int) -> bytes:
    file, info = BytesIO(), ZipInfo(NAME)
    info.external_attr = (mode | 0o777) << 16
    with ZipFile(file, "w") as archive:
        archive.writestr("neutrophil/good.png", png(GREYS[3]))
        archive.writestr(info, b"/etc/passwd")
    return file.getvalue()


def named(path: bytes) -> bytes:
    placeholder = b"~" * len(path)
    return rename(pack(GOOD | {placeholder.decode(): png(1)}), placeholder, path)


TRAPS = {
    "slip": named(b"../../monocyte/escaped.png"),
    "slip within": named(b"monocyte/../../escaped.png"),
    "absolute": named(b"/tmp/monocyte/escaped.png"),
    "drive": named(b"C:/monocyte/escaped.png"),
    "backslash": named(b"monocyte/..\\..\\escaped.png"),
    "nul": named(b"monocyte/a.png\0.exe"),
    "link": linked(stat.S_IFLNK),
    "pipe": linked(stat.S_IFIFO),
    "device": linked(stat.S_IFCHR),
    "encrypted": patch(pack({NAME: png(1)}), DIRECTORY, 8, struct.pack("<H", 1)),
    "nested": pack(GOOD | {"monocyte/inner.zip": pack(GOOD)}),
    "nested tar": pack(GOOD | {"monocyte/inner.tar.gz": b"\x1f\x8b" + bytes(90)}),
    "twice": rename(pack({"monocyte/a.png": png(1), "monocyte/b.png": png(2)}), b"te/b.png", b"te/a.png"),
}


@pytest.mark.parametrize("kind", TRAPS)
def test_16_a_trap_is_refused_whole_and_writes_nothing(sandbox: Sandbox, kind: str) -> None:
    assert sandbox.refusal(TRAPS[kind]) == (422, "bad_archive")


def test_16_an_absolute_path_into_a_folder_that_exists_leaves_it_empty(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    assert sandbox.refusal(named(f"{tmp_path}/monocyte.png".encode())) == (422, "bad_archive")
    assert not list(tmp_path.iterdir())


def test_16_an_archive_named_like_a_picture_is_never_opened(sandbox: Sandbox) -> None:
    report = sandbox.evaluate(pack(GOOD | {NAME: pack({NAME: png(1)})})).json()
    assert report["n"] == 1
    assert [(one["filename"], one["code"]) for one in report["errors"]] == [(NAME, "unsupported_format")]


def test_16_the_hostile_collection_is_refused_and_writes_nothing(sandbox: Sandbox) -> None:
    files = sorted(real("malformed").glob("*zip*/*.zip"))
    assert len(files) > 20
    for file in files:
        assert sandbox.refusal(file.read_bytes()) in {(422, "bad_archive"), (413, "too_large")}
