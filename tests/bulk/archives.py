"""Archives of every kind with the same images, and a worker in this process that scores them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from pyarrow import parquet

from app.bulk.destination import ABOUT, Destination, ScoredPart
from app.bulk.location import Location
from app.bulk.plan import Part, plan
from app.bulk.worker import Scorer
from app.engine.bundle import CLASSES
from app.engine.classifier import Classifier
from app.imaging.limits import ImageLimits
from tests.fake_classifier import FakeClassifier, png

NAMES = [f"{grey:03d}.png" for grey in range(0, 250, 10)]
CUT = png(9)[:40]
COLUMNS = ["path", "label", "confidence", *CLASSES, "ood_score", "review", "review_reasons", "error"]

Make = Callable[[Path], Path]


def contents() -> dict[str, bytes]:
    """Return 25 images of known greys, a truncated one and an empty one."""
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
    images_by_name = contents()
    columns = {
        "path": [*images_by_name],
        "bytes": [*images_by_name.values()],
        "id": range(len(images_by_name)),
    }
    parquet.write_table(pa.table(columns), at / "all.parquet", row_group_size=10)
    return at / "all.parquet"


def hugging_face(at: Path) -> Path:
    (at / "rows").mkdir()
    images_by_name = contents()
    images = [{"bytes": data, "path": name} for name, data in images_by_name.items()]
    parquet.write_table(
        pa.table({"image": images, "label": range(len(images_by_name))}), at / "rows/0.parquet"
    )
    return at / "rows"


MAKERS = {"folder": folder, "zip": zip_file, "tar": shards, "parquet": table, "hugging face": hugging_face}


@contextmanager
def scorer(source: object, destination: object, begin: bool = True) -> Iterator[Scorer]:
    place = Location.of(str(destination))
    if begin and not (place / ABOUT).exists:
        Destination(place).begin({})
    with closing(
        Scorer(cast(Classifier, FakeClassifier()), str(source), str(destination), ImageLimits(), 10)
    ) as worker:
        yield worker


def score(source: str, destination: str, indices: Any = None) -> tuple[list[Part], list[ScoredPart]]:
    """Score all parts, or those with `indices`, in this process."""
    parts = plan(Location.of(source)).parts
    with scorer(source, destination) as worker:
        return parts, [worker.score(index, parts[index]) for index in indices or range(len(parts))]


def rows(destination: str) -> list[dict[str, Any]]:
    place = Location.of(destination)
    parts = [io.BytesIO((place / name).read()) for name in place.files().stamps if name.startswith("part-")]
    table = pa.concat_tables(parquet.read_table(part) for part in parts)
    assert table.schema.names == COLUMNS
    return cast(list[dict[str, Any]], table.to_pylist())


def check(table_rows: list[dict[str, Any]]) -> None:
    assert len(table_rows) == len({row["path"] for row in table_rows}) == len(contents())
    bad = [row for row in table_rows if row["error"] is not None]
    assert len(bad) == 2
    assert all(row["label"] is row["confidence"] is row["review"] is None for row in bad)
    labels = [row["label"] for row in table_rows if row["error"] is None]
    assert sorted(labels) == sorted(CLASSES[int(name[:3]) // 64] for name in NAMES)
    good = next(row for row in table_rows if row["label"] == "monocyte")
    assert (good["confidence"], good["monocyte"], good["ood_score"], good["review"]) == (0.7, 0.7, 1.5, True)
    assert good["review_reasons"] == ["out_of_distribution"]
    assert bad[0]["review_reasons"] is None
