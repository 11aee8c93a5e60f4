"""Damaged and unusual archives: cut, joined, linked, changed. No image goes missing silently."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from pyarrow import ArrowException, fs, parquet

from app.archives.image_files import Kind, LeftOut
from app.bulk.cluster import _scored, _Worker
from app.bulk.destination import ABOUT, ATTEMPTS, Destination, ScoredPart
from app.bulk.location import Local, Location, Remote, without_credentials
from app.bulk.plan import Part, dump, fingerprint, parse, plan
from app.bulk.reading import ROWS, open_part
from app.bulk.worker import Scorer
from app.errors import EngineError, StartupError, Unusable
from tests.bulk.archives import rows, score, scorer
from tests.fake_classifier import png
from tests.running import ROOT

BLOCK = tarfile.BLOCKSIZE
LOST = """
import os, sys
from app.bulk.destination import Destination
from app.bulk.location import Location
with Destination(Location.of(sys.argv[1])).attempt(0):
    os._exit(9)
"""


def tar(*greys: int) -> bytes:
    """Return a tar file in which each image is one header and one block."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for grey in greys:
            data = png(grey)
            assert len(data) <= BLOCK
            member = tarfile.TarInfo(f"{grey}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def cut(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at]


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def errors_in(source: Path, destination: Path) -> dict[str, str | None]:
    """Score a source. Return the error of each path; None: no error."""
    score(str(source), str(destination))
    return {row["path"]: row["error"] for row in rows(str(destination))}


@pytest.mark.parametrize(
    "damage",
    [cut(2 * 2 * BLOCK), cut(2 * 2 * BLOCK + 100), cut(5 * BLOCK + 9), flip(2 * 2 * BLOCK + 3)],
    ids=["cut before a header", "cut within a header", "cut within an image", "one bit of a header"],
)
def test_a_shard_that_ends_too_early_says_so(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "a.tar").write_bytes(damage(tar(0, 1, 2, 3, 4)))
    errors = errors_in(tmp_path / "a.tar", tmp_path / "out")
    assert errors.pop("a.tar/0.png") is errors.pop("a.tar/1.png") is None
    rest = str(errors.pop("a.tar"))
    assert rest.startswith("bad_archive: the rest of this archive cannot be read: ")
    assert errors == {}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_shards_that_were_joined_are_read_to_the_end(
    tmp_path: Path, pack: Callable[[bytes], bytes], suffix: str
) -> None:
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(pack(tar(0, 1)) + pack(tar(2)) + pack(tar(3, 4)))
    assert errors_in(file, tmp_path / "out") == {f"{file.name}/{grey}.png": None for grey in range(5)}


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_compressed_shard_that_is_cut_says_so(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(tar(*range(200)))
    (tmp_path / "a.tgz").write_bytes(packed[: len(packed) // 2])
    errors = errors_in(tmp_path / "a.tgz", tmp_path / "out")
    assert "cannot be read" in str(errors["a.tgz"])


def test_a_shard_that_is_empty_says_so_and_one_of_nothing_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/empty.tar").touch()
    (tmp_path / "in/nothing.tar").write_bytes(tar())
    assert [*errors_in(tmp_path / "in", tmp_path / "out")] == ["empty.tar"]


def test_links_within_a_shard_are_rows(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("hard.png", tarfile.LNKTYPE), ("soft.png", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "1.png"
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo("folder.png/x.txt"))
    refused = "bad_archive: the entry is a link or a special file"
    errors = errors_in(tmp_path / "a.tar", tmp_path / "out")
    assert errors == {"a.tar/hard.png": refused, "a.tar/soft.png": refused}


def test_links_of_a_folder_neither_double_images_nor_hide_them(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (source / "a/1.png").write_bytes(png(1))
    (tmp_path / "elsewhere/2.png").write_bytes(png(2))
    (source / "b").symlink_to(tmp_path / "elsewhere")
    (source / "b/parent").symlink_to(source)
    (source / "c").symlink_to(source / "a")
    (source / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(source / "pipe.png")
    missing = "unusable: the file cannot be read: No such file or directory"
    assert errors_in(source, tmp_path / "out") == {"a/1.png": None, "b/2.png": None, "gone.png": missing}


def test_a_name_outside_utf_8_is_scored_and_written_with_escapes(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9.PNG")).write_bytes(png(1))
    parts = plan(Location.of(str(source))).parts
    assert parse(dump(parts[0])) == parts[0]
    assert errors_in(source, tmp_path / "out") == {"caf\\udce9.PNG": None}


def test_a_zip_is_read_entry_by_entry_whatever_else_it_has(tmp_path: Path) -> None:
    big = b"BM" + bytes(17 * 2**20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("1.png", "windows\\2.png", "../3.png"):
            archive.writestr(name, png(1))
        archive.writestr("notes.csv", bytes(10**6))
        archive.writestr("meta.tar.gz", b"within")
        archive.writestr("big.bmp", big)
        archive.writestr("other.png", png(1), zipfile.ZIP_BZIP2)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, b"1.png")
        archive.writestr("last.png", png(1))
    assert errors_in(tmp_path / "a.zip", tmp_path / "out") == {
        "1.png": None,
        "windows\\2.png": None,
        "../3.png": None,
        "last.png": None,
        "big.bmp": f"too_large: the image has more than {2**24} bytes",
        "other.png": "bad_archive: the entry is compressed by a method other than store and deflate",
        "link.png": "bad_archive: the entry is a link or a special file",
    }


def test_an_entry_that_is_not_where_the_directory_says_is_a_row(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for grey in range(3):
            archive.writestr(f"{grey}.png", png(grey))
    data = file.getvalue()
    (tmp_path / "a.zip").write_bytes(b"XX" + data[2:])
    errors = errors_in(tmp_path / "a.zip", tmp_path / "out")
    assert "does not start where the central directory says" in str(errors.pop("0.png"))
    assert errors == {"1.png": None, "2.png": None}


def test_an_archive_that_cannot_be_used_is_a_row_beside_the_others(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "1.png").write_bytes(png(1))
    (source / "bad.parquet").write_bytes(b"PAR1")
    (source / "bad.zip").write_bytes(b"PK")
    parquet.write_table(pa.table({"a": [1]}), source / "numbers.parquet")
    errors = errors_in(source, tmp_path / "out")
    assert errors.pop("1.png") is None
    assert [*errors] == ["bad.parquet", "bad.zip", "numbers.parquet"]
    assert all(str(error).startswith("bad_archive: ") for error in errors.values())


def test_an_archive_that_cannot_be_opened_is_left_out_and_the_others_scored(tmp_path: Path) -> None:
    source, destination = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "1.png").write_bytes(png(1))
    unread = ["gone.parquet", "gone.zip", "gone.tar"]
    for name in unread:
        (source / name).symlink_to(tmp_path / "nowhere")
    parts = plan(Location.of(str(source))).parts
    assert parts == plan(Location.of(str(source))).parts
    with scorer(source, destination) as worker:
        called = object.__new__(_Worker)
        called._scorer = worker
        results = [called({"index": index, "part": dump(part)}) for index, part in enumerate(parts)]
    left_out = {
        part.name: result["why"] for part, result in zip(parts, results, strict=True) if result["why"]
    }
    assert sorted(left_out) == sorted(unread)
    assert all(why.startswith(f"{name} on ") for name, why in left_out.items())
    assert all("No such file" in why for why in left_out.values())
    assert {row["path"]: row["error"] for row in rows(str(destination))}["1.png"] is None
    assert not [path for path in destination.iterdir() if path.name.startswith("_tried")]


def test_a_network_error_while_archives_are_listed_is_not_part_of_the_plan(tmp_path: Path) -> None:
    class Network(Remote):
        def open(self) -> Any:
            raise OSError("the connection was lost")

    (tmp_path / "a.zip").touch()
    with pytest.raises(OSError, match="lost"):
        plan(Network(str(tmp_path), fs.LocalFileSystem()))
    (tmp_path / "a.zip").rename(tmp_path / "unclear")
    with pytest.raises(Unusable, match="unclear cannot be read now: the connection was lost"):
        plan(Network(str(tmp_path), fs.LocalFileSystem()))


def test_what_a_worker_has_scored_arrives_whole() -> None:
    done = ScoredPart(5, 1, LeftOut([Kind.OTHER, Kind.SYSTEM, Kind.OTHER]))

    class Done:
        def score(self, *_: object) -> ScoredPart:
            return done

    worker = object.__new__(_Worker)
    worker._scorer = cast(Scorer, Done())
    assert _scored(worker({"index": 0, "part": dump(Part("tar", "a.tar"))})) == done


def test_a_defect_costs_one_part() -> None:
    class Broken:
        def score(self, *_: object) -> ScoredPart:
            raise KeyError("x")

    worker = object.__new__(_Worker)
    worker._scorer = cast(Scorer, Broken())
    result = worker({"index": 0, "part": dump(Part("tar", "a.tar"))})
    assert result["why"].startswith("a.tar on ")
    assert result["why"].endswith(": KeyError: 'x'")


@pytest.mark.parametrize("other", [pa.array([png(1)]), pa.array([1])], ids=["images", "numbers"])
@pytest.mark.parametrize("first", [True, False])
def test_two_columns_of_the_images_name_are_a_row_with_an_error(
    tmp_path: Path, other: pa.Array, first: bool
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    arrays = [pa.array([png(2)]), other]
    arrays = arrays if first else arrays[::-1]
    parquet.write_table(pa.Table.from_arrays(arrays, names=["image", "image"]), source / "a.parquet")
    (source / "1.png").write_bytes(png(1))
    errors = errors_in(source, tmp_path / "out")
    assert errors.pop("1.png") is None
    assert str(errors.pop("a.parquet")).endswith("a.parquet has several columns named image")
    assert errors == {}


def test_a_column_whose_name_is_not_utf_8_is_a_row_with_an_error(tmp_path: Path) -> None:
    table = io.BytesIO()
    parquet.write_table(pa.table({"imagé": [png(1)]}), table, store_schema=False)
    (tmp_path / "a.parquet").write_bytes(table.getvalue().replace("imagé".encode(), b"imag\xff\xfe"))
    [part] = plan(Location.of(str(tmp_path))).parts
    assert (part.kind, "cannot be read as Parquet" in part.flaw) == ("flawed", True)


def test_paths_that_are_no_text_do_not_cost_their_images(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    paths = {
        "early": pa.array([-(2**31)], pa.date32()),
        "late": pa.array([2**31 - 1], pa.date32()),
        "later": pa.array([2**62], pa.timestamp("ms")),
        "nowhere": pa.array([1], pa.timestamp("us", tz="Nowhere/Bad")),
    }
    for name, path in paths.items():
        parquet.write_table(pa.table({"image": [png(1)], "path": path}), source / f"{name}.parquet")
    twice = pa.Table.from_arrays(
        [pa.array([png(1)]), pa.array(["a"]), pa.array(["b"])], ["image", "path", "path"]
    )
    parquet.write_table(twice, source / "twice.parquet")
    errors = errors_in(source, tmp_path / "out")
    assert errors == dict.fromkeys([f"{name}.parquet#0" for name in [*sorted(paths), "twice"]])


@pytest.mark.parametrize("about", [b"", b"{", b"3", b"null", b"[1]", b"\xff", b"[" * 100_000])
def test_a_broken_description_of_the_run_is_refused_in_words(tmp_path: Path, about: bytes) -> None:
    (tmp_path / ABOUT).write_bytes(about)
    with pytest.raises(Unusable, match=r"_leuko\.json is empty or broken"):
        Destination(Location.of(str(tmp_path))).begin({"source": "a"})


@pytest.mark.parametrize("column", ["bytes", "of.slide"])
def test_a_row_group_is_read_in_batches(tmp_path: Path, column: str) -> None:
    count = 2 * ROWS + 3
    images: list[bytes | None] = [png(index) for index in range(count)]
    images[ROWS] = None
    table = pa.table({column: images, "path": [None, *(f"{index}.png" for index in range(1, count))]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=count - 1)
    errors = errors_in(tmp_path / "a.parquet", tmp_path / "out")
    assert [*errors] == ["a.parquet#0", *(f"{index}.png" for index in range(1, count))]
    assert [path for path, error in errors.items() if error] == [f"{ROWS}.png"]


def test_another_content_under_the_same_name_is_another_source(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    makers: dict[str, Any] = {"1.png": png(1), "a.tar": tar(1)[: 2 * BLOCK]}
    for name, data in makers.items():
        (tmp_path / "in" / name).write_bytes(data)
    before = fingerprint(plan(Location.of(str(tmp_path / "in"))).parts)
    alone = fingerprint(plan(Location.of(str(tmp_path / "in/a.tar"))).parts)
    (tmp_path / "in/a.tar").write_bytes(tar(1, 2))
    assert fingerprint(plan(Location.of(str(tmp_path / "in/a.tar"))).parts) != alone
    between = fingerprint(plan(Location.of(str(tmp_path / "in"))).parts)
    (tmp_path / "in/1.png").write_bytes(png(200) + b" ")
    assert len({before, between, fingerprint(plan(Location.of(str(tmp_path / "in"))).parts)}) == 3


def test_a_source_that_is_not_there_on_a_worker_writes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for grey in range(3):
        (source / f"{grey}.png").write_bytes(png(grey))
    [part] = plan(Location.of(str(source))).parts
    source.rename(tmp_path / "unmounted")
    with (
        scorer(source, tmp_path / "out") as worker,
        pytest.raises(FileNotFoundError, match="none of the 3 files"),
    ):
        worker.score(0, part)
    assert Destination(Location.of(str(tmp_path / "out"))).parts() == []


def test_a_worker_that_does_not_see_the_destination_does_not_begin(tmp_path: Path) -> None:
    with (
        pytest.raises(StartupError, match="has no access"),
        scorer(tmp_path, tmp_path / "out", begin=False),
    ):
        pass
    assert not (tmp_path / "out").exists()


def test_a_table_whose_bytes_are_damaged_is_no_part(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"bytes": [png(grey) for grey in range(50)]}), file, use_dictionary=False)
    data = bytearray(file.read_bytes())
    data[4:40] = b"\xff" * 36
    [part] = plan(Location.of(str(file))).parts
    file.write_bytes(data)
    with scorer(file, tmp_path / "out") as worker, pytest.raises((OSError, ArrowException)):
        worker.score(0, part)


def test_a_row_group_without_rows_is_a_part_without_rows(tmp_path: Path) -> None:
    cells = pa.table({"bytes": pa.array([png(1)], pa.binary())})
    for compression in ("NONE", "GZIP"):
        file = tmp_path / f"{compression}.parquet"
        with parquet.ParquetWriter(file, cells.schema, compression=compression) as writer:
            for table in (cells[:0], cells, cells[:0]):
                writer.write_table(table)
        assert parquet.read_metadata(file).num_row_groups == 3
        assert errors_in(file, tmp_path / f"out of {compression}") == {f"{file.name}#0": None}


def test_a_part_that_was_cut_is_scored_again(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(1, 2))
    score(str(tmp_path / "a.tar"), str(tmp_path / "out"))
    whole = (tmp_path / "out/part-000000.parquet").read_bytes()
    for size in (0, 10, len(whole) // 2):
        (tmp_path / "out/part-000000.parquet").write_bytes(whole[:size])
        assert Destination(Location.of(str(tmp_path / "out"))).begin({}) == {}
        score(str(tmp_path / "a.tar"), str(tmp_path / "out"))
        assert (tmp_path / "out/part-000000.parquet").read_bytes() == whole


def test_a_part_that_ends_its_workers_is_given_up_until_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(1, 2))
    [part] = plan(Location.of(str(tmp_path / "a.tar"))).parts
    with scorer(tmp_path / "a.tar", tmp_path / "out") as worker:
        for _ in range(ATTEMPTS):
            assert subprocess.run([sys.executable, "-c", LOST, tmp_path / "out"], cwd=ROOT).returncode == 9
        with pytest.raises(EngineError, match=f"{ATTEMPTS} workers were lost"):
            worker.score(0, part)
        assert worker.score(0, part) == ScoredPart(2, 0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {ABOUT, "part-000000.parquet"}


def test_leftovers_of_a_killed_worker_are_ignored(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    (destination / "_0123.draft").write_bytes(b"half")
    Destination(Location.of(str(destination))).begin({})
    (tmp_path / "a.tar").write_bytes(tar(1, 2))
    score(str(tmp_path / "a.tar"), str(destination))
    assert pa.dataset.dataset(destination, format="parquet").count_rows() == 2
    assert {path.name for path in destination.iterdir()} == {"_0123.draft", ABOUT, "part-000000.parquet"}


def test_drafts_of_killed_workers_are_deleted_by_the_next_run(tmp_path: Path) -> None:
    destination = Destination(Location.of(str(tmp_path)))
    foreign = tmp_path / f"_{'0' * 32}.draft"
    foreign.touch()
    destination.begin({})
    assert foreign.exists()  # the folder held no run before
    (tmp_path / f"_{'1' * 32}.draft").write_bytes(b"half")
    destination.begin({})
    assert [path.name for path in tmp_path.iterdir()] == [ABOUT]


def test_a_file_that_cannot_be_written_as_a_whole_leaves_nothing(tmp_path: Path) -> None:
    limited = f"""
import resource, signal
from app.bulk.location import Location
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
Location.of({str(tmp_path / "a")!r}).write(bytes(10_000))
"""
    ran = subprocess.run([sys.executable, "-c", limited], cwd=ROOT, capture_output=True, text=True)
    assert "File too large" in ran.stderr
    assert [*tmp_path.iterdir()] == []


def test_files_are_read_ahead_and_their_errors_stay_theirs(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    names = tuple(f"{index:02d}.png" for index in range(60))
    for name in names:
        (source / name).write_bytes(name.encode())
    (source / names[30]).unlink()
    with open_part(Location.of(str(source)), Part("images", images=names), 100) as images:
        for name, image in zip(names, images, strict=True):
            assert image.name == name
            if name == names[30]:
                with pytest.raises(Unusable):
                    image.read()
            else:
                assert image.read() == name.encode()


def test_a_place_holds_itself_and_what_is_below() -> None:
    place = Location.of("/data/slides")
    for path, held in (("/data/slides", 1), ("/data/slides/rows", 1), ("/data/slides2", 0), ("/data", 0)):
        assert place.holds(Location.of(path)) == bool(held), path
    assert Location.of("/").holds(place)
    assert isinstance(Location.of("file:///data/slides"), Local)
    bucket = Location.of("s3://slides/in?region=eu-west-1")
    assert bucket.holds(Location.of("s3://slides/in/rows?region=eu-west-1"))
    assert not bucket.holds(place)
    assert not place.holds(bucket)


def test_credentials_are_not_shown() -> None:
    assert without_credentials("s3://KEY:SECRET@slides/a@b") == "s3://slides/a@b"
    assert without_credentials("s3://slides/a@b") == "s3://slides/a@b"
    assert without_credentials("/data/a@b") == "/data/a@b"
