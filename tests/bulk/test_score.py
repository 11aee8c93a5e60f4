"""Parts of every kind of source, their rows, and going on; Ray is in test_ray.py."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.dataset
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import parquet

import app.bulk.plan
from app.bulk.destination import ABOUT, Destination, Written
from app.bulk.location import Location
from app.bulk.plan import Part, fingerprint, plan
from app.bulk.worker import Scorer
from app.errors import BadArchive, Unusable
from app.vision.bundle import CLASSES
from app.vision.classifier import Classifier
from app.vision.limits import ImageLimits
from tests.fake_classifier import FakeClassifier, png

NAMES = [f"{grey:03d}.png" for grey in range(0, 250, 10)]
CUT = png(9)[:40]
COLUMNS = ["path", "label", "confidence", *CLASSES, "ood_score", "review", "error"]

Make = Callable[[Path], Path]


def contents() -> dict[str, bytes]:
    """25 images of known greys, one cut short, one empty."""
    return {name: png(int(name[:3])) for name in NAMES} | {"cut.png": CUT, "empty.png": b""}


def folder(at: Path) -> Path:
    for name, data in contents().items():
        path = at / "images/deep" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (at / "images/readme.txt").write_text("no image")
    (at / "images/.hidden.png").write_bytes(png(1))
    return at / "images"


def zip_file(at: Path) -> Path:
    with zipfile.ZipFile(at / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents().items():
            archive.writestr(f"a/{name}", data)
        archive.writestr("__MACOSX/a.png", b"litter")
        archive.writestr("a/notes.csv", b"")
    return at / "all.zip"


def shards(at: Path) -> Path:
    (at / "shards").mkdir()
    items = list(contents().items())
    for number, suffix in enumerate(("tar", "tar.gz")):
        mode: Any = "w:gz" if suffix.endswith("gz") else "w"
        with tarfile.open(at / f"shards/{number}.{suffix}", mode) as archive:
            for name, data in items[number::2]:
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            archive.addfile(tarfile.TarInfo("000.json"), io.BytesIO())
    return at / "shards"


def table(at: Path) -> Path:
    found = contents()
    columns = {"path": [*found], "bytes": [*found.values()], "id": range(len(found))}
    parquet.write_table(pa.table(columns), at / "all.parquet", row_group_size=10)
    return at / "all.parquet"


def hugging_face(at: Path) -> Path:
    (at / "rows").mkdir()
    found = contents()
    images = [{"bytes": data, "path": name} for name, data in found.items()]
    parquet.write_table(pa.table({"image": images, "label": range(len(found))}), at / "rows/0.parquet")
    return at / "rows"


MAKERS = {"folder": folder, "zip": zip_file, "tar": shards, "parquet": table, "hugging face": hugging_face}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.bulk.plan, "IMAGES", 7)


def score(source: str, destination: str, indices: Any = None) -> tuple[list[Part], list[Written]]:
    """All parts, or some, in this process."""
    parts = plan(Location.of(source))
    classifier = cast(Classifier, FakeClassifier())
    scorer = Scorer(classifier, source, destination, ImageLimits(), 10)
    try:
        return parts, [scorer.score(index, parts[index]) for index in indices or range(len(parts))]
    finally:
        scorer.close()


def rows(destination: str) -> list[dict[str, Any]]:
    place = Location.of(destination)
    found = pyarrow.dataset.dataset(place.path, filesystem=place.filesystem, format="parquet").to_table()
    assert found.schema.names == COLUMNS
    return cast(list[dict[str, Any]], found.to_pylist())


def check(found: list[dict[str, Any]]) -> None:
    assert len(found) == len({row["path"] for row in found}) == len(contents())
    bad = [row for row in found if row["error"] is not None]
    assert len(bad) == 2
    assert all(row["label"] is row["confidence"] is row["review"] is None for row in bad)
    labels = [row["label"] for row in found if row["error"] is None]
    assert sorted(labels) == sorted(CLASSES[int(name[:3]) // 64] for name in NAMES)
    good = next(row for row in found if row["label"] == "monocyte")
    assert (good["confidence"], good["monocyte"], good["ood_score"], good["review"]) == (0.7, 0.7, 1.5, True)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_image_is_one_row_whatever_holds_it(tmp_path: Path, kind: str) -> None:
    source, destination = str(MAKERS[kind](tmp_path)), str(tmp_path / "out")
    parts, written = score(source, destination)
    check(rows(destination))
    assert sum(one.rows for one in written) == len(contents())
    assert sum(one.errors for one in written) == 2
    assert len(parts) > 1 or kind == "hugging face"


def test_names_of_rows_say_where_the_image_is(tmp_path: Path) -> None:
    for maker, name in ((folder, "deep/010.png"), (zip_file, "a/010.png"), (shards, "0.tar/./000.png")):
        at = tmp_path / maker.__name__
        at.mkdir()
        score(str(maker(at)), str(at / "out"))
        assert name in {row["path"] for row in rows(str(at / "out"))}


def test_a_folder_may_hold_archives_of_several_kinds(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    folder(tmp_path / "all")
    zip_file(tmp_path / "all")
    table(tmp_path / "all")
    score(str(tmp_path / "all"), str(tmp_path / "out"))
    assert len(rows(str(tmp_path / "out"))) == 3 * len(contents())


def test_a_part_that_is_there_is_not_scored_again(tmp_path: Path) -> None:
    source, destination = str(folder(tmp_path)), str(tmp_path / "out")
    score(source, destination, [0, 2])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    score(source, destination)
    check(rows(destination))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_destination_of_something_else_is_refused(tmp_path: Path) -> None:
    destination = Destination(Location.of(str(tmp_path / "out")))
    assert destination.begin({"source": "a", "parts": "b"}) == {}
    assert destination.begin({"source": "a", "parts": "b"}) == {}
    with pytest.raises(Unusable, match="another parts"):
        destination.begin({"source": "a", "parts": "c"})
    (tmp_path / "out" / ABOUT).unlink()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(Unusable, match="not empty"):
        destination.begin({"source": "a", "parts": "b"})


def test_parts_of_the_same_files_are_the_same_and_of_others_are_not(tmp_path: Path) -> None:
    source = Location.of(str(folder(tmp_path)))
    before = fingerprint(plan(source))
    assert fingerprint(plan(source)) == before
    (tmp_path / "images/new.png").touch()
    assert fingerprint(plan(source)) != before


def test_a_shard_that_is_cut_gives_its_images_and_one_row_for_the_rest(tmp_path: Path) -> None:
    shard = shards(tmp_path) / "0.tar"
    shard.write_bytes(shard.read_bytes()[:6000])
    score(str(shard), str(tmp_path / "out"))
    found = rows(str(tmp_path / "out"))
    assert (found[-1]["path"], found[-1]["error"][:12]) == ("0.tar", "bad_archive:")
    assert found[0]["label"] == "eosinophil"


def test_a_file_that_went_away_meanwhile_is_a_row_with_its_error(tmp_path: Path) -> None:
    source = folder(tmp_path)
    parts = plan(Location.of(str(source)))
    (source / "deep/000.png").unlink()
    scorer = Scorer(cast(Classifier, FakeClassifier()), str(source), str(tmp_path / "out"), ImageLimits(), 10)
    assert scorer.score(0, parts[0]) == Written(7, 1)
    scorer.close()
    assert rows(str(tmp_path / "out"))[0]["error"] == "unusable: the file is gone"


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.txt", b"text", "no folder"),
        ("a.parquet", b"PAR1", "Parquet"),
        ("a.zip", b"PK", "ZIP"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises((Unusable, BadArchive), match=match):
        plan(Location.of(str(tmp_path / name)))


def test_an_empty_or_absent_source_or_table_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "numbers.parquet")
    cases = {"empty": "no images", "absent": "does not exist", "numbers.parquet": "no column"}
    for name, match in cases.items():
        with pytest.raises(Unusable, match=match):
            plan(Location.of(str(tmp_path / name)))


@pytest.mark.parametrize("address", ["gopher://x/y", "s3:///"])
def test_an_address_of_no_known_kind_is_refused(address: str) -> None:
    with pytest.raises(Unusable, match="cannot be used"):
        Location.of(address)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket of an S3 on loopback, with the query that says where that is."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        query = f"?endpoint_override={host}:{port}&scheme=http&allow_bucket_creation=true"
        place = Location.of(f"s3://slides{query}")
        place.filesystem.create_dir("slides")
        yield query
    finally:
        server.stop()


def test_a_bucket_is_a_source_and_a_destination(tmp_path: Path, bucket: str) -> None:
    source, destination = f"s3://slides/in{bucket}", f"s3://slides/out{bucket}"
    place = Location.of(source)
    for path in (zip_file(tmp_path), table(tmp_path)):
        (place / path.name).write(path.read_bytes())
    for name, data in contents().items():
        (place / name).write(data)
    parts, _ = score(source, destination, [0, 1])
    begun = Destination(Location.of(destination))
    about = {"source": source, "parts": fingerprint(parts)}
    (Location.of(destination) / ABOUT).write(json.dumps(about).encode())
    assert [*begun.begin(about)] == [0, 1]
    score(source, destination)
    assert len(rows(destination)) == 3 * len(contents())
