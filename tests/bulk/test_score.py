"""Parts of every kind of source, their rows, and continuing a run. Ray is in test_ray.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.dataset
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import parquet

from app.bulk.destination import ABOUT, Destination, ScoredPart
from app.bulk.location import Location, Remote
from app.bulk.plan import fingerprint, plan
from app.bulk.worker import Scorer
from app.engine.classifier import Classifier
from app.errors import BadArchive, Unusable
from app.imaging.limits import ImageLimits
from tests.bulk.archives import (
    COLUMNS,
    CUT,
    MAKERS,
    check,
    contents,
    folder,
    rows,
    score,
    scorer,
    shards,
    table,
    zip_file,
)
from tests.fields import FieldClassifier, field_png


@pytest.mark.parametrize("kind", MAKERS)
def test_every_image_is_one_row_whatever_holds_it(tmp_path: Path, kind: str) -> None:
    source, destination = str(MAKERS[kind](tmp_path)), str(tmp_path / "out")
    parts, written = score(source, destination)
    check(rows(destination))
    assert sum(part.rows for part in written) == len(contents())
    assert sum(part.errors for part in written) == 2
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
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    assert len(before) == 2
    score(source, destination)
    check(rows(destination))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_destination_of_something_else_is_refused(tmp_path: Path) -> None:
    destination = Destination(Location.of(str(tmp_path / "out")))
    assert destination.begin({"source": "a", "parts": "b"}) == {}
    assert destination.begin({"source": "a", "parts": "b"}) == {}
    with pytest.raises(Unusable, match="different parts"):
        destination.begin({"source": "a", "parts": "c"})
    (tmp_path / "out" / ABOUT).unlink()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(Unusable, match="not empty"):
        destination.begin({"source": "a", "parts": "b"})


def test_parts_of_the_same_files_are_the_same_and_of_others_are_not(tmp_path: Path) -> None:
    source = Location.of(str(folder(tmp_path)))
    before = fingerprint(plan(source).parts)
    assert fingerprint(plan(source).parts) == before
    (tmp_path / "images/new.png").touch()
    assert fingerprint(plan(source).parts) != before


def test_a_shard_that_is_cut_gives_its_images_and_one_row_for_the_rest(tmp_path: Path) -> None:
    shard = shards(tmp_path) / "0.tar"
    shard.write_bytes(shard.read_bytes()[:6000])
    score(str(shard), str(tmp_path / "out"))
    table_rows = rows(str(tmp_path / "out"))
    assert (table_rows[-1]["path"], table_rows[-1]["error"][:12]) == ("0.tar", "bad_archive:")
    assert table_rows[0]["label"] == "eosinophil"


def test_a_file_that_went_away_meanwhile_is_a_row_with_its_error(tmp_path: Path) -> None:
    source = folder(tmp_path)
    parts = plan(Location.of(str(source))).parts
    (source / "deep/000.png").unlink()
    with scorer(source, tmp_path / "out") as worker:
        assert worker.score(0, parts[0]) == ScoredPart(7, 1)
    [first, *_] = rows(str(tmp_path / "out"))
    assert first["error"] == "unusable: the file cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.txt", b"text", "not a folder"),
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
    """Serve S3 on loopback with a bucket; yield the query of a URL that leads there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        query = f"?endpoint_override={host}:{port}&scheme=http&allow_bucket_creation=true"
        place = Location.of(f"s3://slides{query}")
        assert isinstance(place, Remote)
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


def test_all_cells_of_an_image_are_a_row_each(tmp_path: Path) -> None:
    source, out = tmp_path / "in", str(tmp_path / "out")
    source.mkdir()
    for name, data in (("a.png", field_png()), ("b.png", field_png(())), ("c.png", CUT)):
        (source / name).write_bytes(data)
    [part] = plan(Location.of(str(source))).parts
    Destination(Location.of(out)).begin({"cells": "all"})
    classifier = cast(Classifier, FieldClassifier())
    with closing(Scorer(classifier, str(source), out, ImageLimits(), 10, max_cells=9)) as worker:
        written = worker.score(0, part)
    assert (written.rows, written.errors) == (3, 1)
    assert Destination(Location.of(out)).find(0) == written
    found = parquet.read_table(tmp_path / "out/part-000000.parquet")
    assert found.schema.names == ["path", "cell", "left", "top", "width", "height", *COLUMNS[1:]]
    rows = found.to_pylist()
    assert [(row["path"][-5:], row["cell"]) for row in rows] == [
        *(("a.png", number) for number in range(4)),
        ("b.png", None),
        ("c.png", None),
    ]
    assert all(row["width"] > 0 and row["label"] for row in rows[:4])
    assert (rows[4]["label"], rows[4]["error"]) == (None, None)
    assert rows[5]["error"].startswith("undecodable_image")


def test_a_run_of_all_cells_does_not_go_on_as_one_of_single_cells(tmp_path: Path) -> None:
    destination = Destination(Location.of(str(tmp_path / "out")))
    destination.begin({"source": "a", "cells": "all"})
    with pytest.raises(Unusable, match="different cells"):
        destination.begin({"source": "a", "cells": "one"})


def test_a_run_from_before_there_was_a_choice_goes_on_as_one_of_single_cells(tmp_path: Path) -> None:
    destination = Destination(Location.of(str(tmp_path / "out")))
    destination.begin({"source": "a"})
    assert destination.begin({"source": "a", "cells": "one"}) == {}
    with pytest.raises(Unusable, match="different cells"):
        destination.begin({"source": "a", "cells": "all"})
