"""Scenario 53: headers of archives and cells of tables that claim gigabytes cost a row or a part."""

from __future__ import annotations

import gzip
import io
import lzma
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from app.bulk.location import Location
from app.bulk.plan import plan
from app.bulk.reading import MOST_NAME, MOST_ROWS, open_part
from app.errors import BadArchive
from app.units import GIB, MIB
from tests.fake_classifier import png
from tests.running import PATIENCE_S, ROOT

# Print, for each part of a source, its errors (none: an empty line) and then the peak of memory beyond the
# start, in MiB. The images are not decoded: they are only read.
READ = """
import resource, sys
from pyarrow import ArrowException
from app.bulk.location import Location
from app.bulk.plan import plan
from app.bulk.reading import open_part
from app.errors import LeukoError
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before, source = peak(), Location.of(sys.argv[1])
for part in plan(source).parts:
    try:
        with open_part(source, part, 2 ** 24) as images:
            for image in images:
                try:
                    print(len(image.read()), end=" ")
                except LeukoError as error:
                    print(error.code, error.detail)
    except (OSError, ArrowException) as error:
        print("left out:", error)
print()
print(peak() - before)
"""
MOST_MIB = 1024  # of memory: MOST_PAGE, unpacked and copied into cells, is allowed
BOMB = 2 * GIB


def read(source: Path, most_mib: int = MOST_MIB) -> str:
    """Return what was said of the parts. Fail if the peak of memory was over most_mib."""
    command = [sys.executable, "-c", READ, str(source)]
    # Without its limits it could read for ever.
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.strip().splitlines()
    assert int(peak) < most_mib
    return "\n".join(said)


def header(kind: bytes, size: int, name: str = "a.png") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 512) * 512, b"\0")


def image() -> bytes:
    return header(tarfile.REGTYPE, len(png(1))) + padded(png(1))


def octal(size: bytes) -> bytes:
    """Return the header of an image with these bytes as its size, and the checksum that belongs to them."""
    data = bytearray(header(tarfile.REGTYPE, 0))
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def extended(kind: bytes) -> Callable[[Path], None]:
    """An image, then an extended header of gigabytes; the file is sparse."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(image() + header(kind, BOMB))
            file.truncate(BOMB + MIB)

    return write


def written(*data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(b"".join(data))

    return write


def records(*keys: bytes) -> bytes:
    data = b"".join(keys)
    return header(tarfile.XHDTYPE, len(data)) + padded(data)


# Each record begins within the one before, and its key ends at the end of the header: a parser that follows
# the lengths holds half a million keys of half a megabyte.
NESTED = records(b"3 " * 400_000 + b"=\n")
MAP = records(b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.minor=0\n")
TARS = {
    "pax": (extended(tarfile.XHDTYPE), "extended header"),
    "pax for all": (extended(tarfile.XGLTYPE), "extended header"),
    "long name": (extended(tarfile.GNUTYPE_LONGNAME), "extended header"),
    "long link": (extended(tarfile.GNUTYPE_LONGLINK), "extended header"),
    "nested records": (written(image(), NESTED, image()), "extended header"),
    "record beyond its header": (written(image(), records(b"99 path=b.png\n"), image()), "extended header"),
    "record without a line end": (written(image(), records(b"9 path=bb"), image()), "extended header"),
    "chain": (
        written(image(), *[header(tarfile.GNUTYPE_LONGNAME, 1) + b"a" * 512] * 1000, image()),
        "extended header",
    ),
    "sparse": (written(image(), header(tarfile.GNUTYPE_SPARSE, 512)), "sparse"),
    "sparse pax": (written(image(), MAP, header(tarfile.REGTYPE, 512), b"1" * 4096), "sparse"),
    "beyond the end": (
        written(image(), header(tarfile.REGTYPE, 2**60, "a.txt"), b"1" * 4096),
        "truncated",
    ),
    "empty path": (written(image(), records(b"8 path=\n"), image()), "no name"),
    "empty long name": (
        written(image(), header(tarfile.GNUTYPE_LONGNAME, 1) + bytes(512), image()),
        "no name",
    ),
    "size with underscore": (written(image(), records(b"14 size=1_000\n"), image()), "not a number"),
    "size with sign": (written(image(), records(b"11 size=+9\n"), image()), "not a number"),
    "octal size with underscore": (written(image(), octal(b"00000001_00\0")), "not a number"),
    "negative": (written(image(), header(tarfile.REGTYPE, -512), b"1" * 4096), "claims -512 bytes"),
}


@pytest.mark.parametrize("kind", TARS)
def test_53_a_tar_header_that_claims_gigabytes_is_a_row_with_an_error(tmp_path: Path, kind: str) -> None:
    write, said = TARS[kind]
    write(tmp_path / "a.tar")
    answer = read(tmp_path / "a.tar")
    assert answer.startswith(f"{len(png(1))} ")
    assert "bad_archive the rest of this archive cannot be read" in answer
    assert said in answer


def test_53_headers_for_all_entries_and_entries_without_end_take_no_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as file:
        for number in range(400):
            key = b"%d" % number
            file.write(
                header(tarfile.XGLTYPE, MIB) + b"%d %s=\n" % (MIB, key.rjust(MIB - 10, b"k")) + image()
            )
            file.write(records(b"%d path=%s.txt\n" % (MIB, key.rjust(MIB - 18, b"k"))))
            file.write(header(tarfile.REGTYPE, 0))
        for _ in range(100_000):
            file.write(header(tarfile.REGTYPE, 0, "a.txt"))
    assert "cannot be read" in read(tmp_path / "a.tar.gz", most_mib=256)


def test_53_a_header_for_all_entries_renames_none(tmp_path: Path) -> None:
    name = b"14 path=b.txt\n"
    (tmp_path / "a.tar").write_bytes(
        header(tarfile.XGLTYPE, len(name)) + padded(name) + image() + bytes(2 * tarfile.BLOCKSIZE)
    )
    assert read(tmp_path / "a.tar").split() == [str(len(png(1)))]


def tar_of(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(name)
        member.size = len(png(1))
        archive.addfile(member, io.BytesIO(png(1)))
    return file.getvalue()


def test_53_a_name_of_half_a_megabyte_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of("x" * 500_000 + ".png"))
    [part] = plan(Location.of(str(tmp_path / "a.tar"))).parts
    with open_part(Location.of(str(tmp_path / "a.tar")), part, MIB) as images:
        assert [len(image.name) for image in images] == [len("a.tar/") + MOST_NAME]


@pytest.mark.parametrize(("limit", "most"), [("MOST_ROWS", 2), ("MOST_NAMES", 2 * len("a.png"))])
def test_53_images_beyond_the_limits_of_a_part_are_a_row_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(f"app.bulk.reading.{limit}", most)
    (tmp_path / "a.tar").write_bytes(tar_of("a.png") * 4)
    source = Location.of(str(tmp_path / "a.tar"))
    with open_part(source, plan(source).parts[0], MIB) as images:
        first, second, rest = images
        assert first.read() == second.read() == png(1)
        with pytest.raises(BadArchive, match="their names are too long"):
            rest.read()


@pytest.mark.parametrize("before", [b"", lzma.compress(tar_of("b.png"), preset=0)], ids=["alone", "joined"])
def test_53_an_xz_stream_that_wants_gigabytes_is_refused(tmp_path: Path, before: bytes) -> None:
    packed = bytearray(lzma.compress(tar_of("a.png"), preset=0))
    # The byte after the filter's id (0x21) and the length of its properties is the size of the dictionary.
    # The block's header ends with a CRC-32. Source: The .xz File Format, sections 3.1 and 5.3.1.
    end = 12 + (packed[12] + 1) * 4
    packed[packed.index(b"\x21\x01", 12) + 2] = 39  # 3 GiB
    packed[end - 4 : end] = zlib.crc32(packed[12 : end - 4]).to_bytes(4, "little")
    (tmp_path / "a.tar.xz").write_bytes(before + packed)
    assert "Memory usage limit" in read(tmp_path / "a.tar.xz")


def test_53_joined_xz_streams_are_read_to_the_end(tmp_path: Path) -> None:
    packed = [lzma.compress(tar_of(name), preset=0) for name in ("a.png", "b.png")]
    (tmp_path / "a.tar.xz").write_bytes(packed[0] + b"\0" * 8 + packed[1])
    assert read(tmp_path / "a.tar.xz").split() == [str(len(png(1)))] * 2


def write_table(path: Path, cells: list[bytes | None] | pa.Array, **options: Any) -> None:
    column = pa.array(cells, pa.binary()) if isinstance(cells, list) else cells
    parquet.write_table(pa.table({"bytes": column}), path, compression="zstd", **options)


def zeros(count: int, size: int) -> pa.Array:
    """Cells of zeros; untouched memory, of which the kernel keeps no copy."""
    offsets = np.arange(0, (count + 1) * size, size, dtype=np.int32)
    return pa.Array.from_buffers(
        pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(bytes(count * size))]
    )


def test_53_a_cell_that_is_too_large_is_a_row_and_the_others_are_read(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", [png(1), bytes(100 * MIB), png(1)], use_dictionary=False)
    small = str(len(png(1)))
    said = f"{small} too_large the image has more than {16 * MIB} bytes\n{small}"
    assert read(tmp_path / "a.parquet").strip() == said


@pytest.mark.parametrize("encoding", ["dictionary", "delta"])
def test_53_cells_that_share_their_bytes_are_expanded_a_few_at_a_time(tmp_path: Path, encoding: str) -> None:
    if encoding == "dictionary":
        cells = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), zeros(1, 60 * MIB))
        options: dict[str, Any] = {"dictionary_pagesize_limit": GIB, "store_schema": False}
    else:
        cells = zeros(40, 20 * MIB)
        options = {"use_dictionary": False, "column_encoding": {"bytes": "DELTA_BYTE_ARRAY"}}
    write_table(tmp_path / "a.parquet", cells, **options)
    assert (tmp_path / "a.parquet").stat().st_size < MIB
    assert read(tmp_path / "a.parquet").count("the image has more than") == 40


def test_53_a_page_of_gigabytes_and_rows_without_end_are_parts_left_out(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", zeros(1, 520 * MIB), use_dictionary=False)
    write_table(tmp_path / "b.parquet", [None] * (MOST_ROWS + 1), row_group_size=MOST_ROWS + 1)
    answer = read(tmp_path)
    assert "left out: a page of 545" in answer
    assert f"left out: the row group has more than {MOST_ROWS} rows" in answer


def test_53_a_path_of_a_table_is_cut(tmp_path: Path) -> None:
    columns = {"bytes": [png(1)], "path": ["x" * MIB]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = Location.of(str(tmp_path / "a.parquet"))
    with open_part(source, plan(source).parts[0], MIB) as images:
        assert [len(image.name) for image in images] == [MOST_NAME]
