"""An archive of images, cut into parts: each is scored by one worker and gives one file of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from pyarrow import ArrowException, parquet, types
from pyarrow.lib import Field

from app.bulk.location import Location
from app.errors import Unusable
from app.vision.archive import PICTURES, is_hidden
from app.vision.directory import GIB, ArchiveLimits, Packed, read_directory

Item = TypeVar("Item")

IMAGES = 1000  # in a part, where that is ours to choose
COLUMNS = ("image", "bytes", "content", "data", "jpg", "png")
# The file is the operator's own, and nothing of it is held in memory but its directory.
LIMITS = ArchiveLimits(max_entries=50_000_000, max_total_bytes=2**20 * GIB)


@dataclass(frozen=True)
class Part:
    """name: of a file below the source, or nothing where the source is that file itself.

    images: each is a file, by its name below the source; zip: packed are its entries; tar: all of it;
    parquet: one row group. count: images in it, where that is known.
    """

    kind: str
    name: str = ""
    images: tuple[str, ...] = ()
    packed: tuple[Packed, ...] = ()
    row_group: int = 0
    column: str = ""
    count: int | None = None


def plan(source: Location) -> list[Part]:
    """Always the same for the same files. Raises Unusable, TooLarge or BadArchive."""
    if not source.is_folder:
        found = list(_cut(source, ""))
    else:
        names = [name for name in source.files() if not is_hidden(PurePosixPath(name))]
        images = [name for name in names if PurePosixPath(name).suffix.lower() in PICTURES]
        found = [Part("images", images=part, count=len(part)) for part in _chunks(images)]
        found += [part for name in names if _kind(name) for part in _cut(source / name, name)]
    if not found:
        raise Unusable(f"{source.path} holds no images, and no .zip, .tar or .parquet with images")
    return found


def dump(part: Part) -> str:
    """To be sent to a worker."""
    return json.dumps(asdict(part))


def parse(text: str) -> Part:
    found = json.loads(text)
    packed = tuple(Packed(**one) for one in found["packed"])
    return Part(**found | {"images": tuple(found["images"]), "packed": packed})


def fingerprint(parts: Sequence[Part]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(dump(part).encode())
    return digest.hexdigest()


def image_column(field: Field) -> str | None:
    """How to select the bytes of a column, if it has images: binary, or Hugging Face's {bytes, path}."""
    if types.is_binary(field.type) or types.is_large_binary(field.type):
        return str(field.name)
    if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes"
    return None


def _kind(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        return "tar"
    return next((kind for kind in ("zip", "parquet") if lower.endswith(f".{kind}")), None)


def _cut(file: Location, name: str) -> Iterator[Part]:
    kind = _kind(file.name)
    if kind is None:
        raise Unusable(f"{file.path} is no folder, .zip, .tar or .parquet")
    yield from CUTTERS[kind](file, name)


def _cut_zip(file: Location, name: str) -> Iterator[Part]:
    with file.open() as opened:
        entries = read_directory(opened, LIMITS)
    paths = [(PurePosixPath(entry.name), entry) for entry in entries]
    pictures = [entry for path, entry in paths if path.suffix.lower() in PICTURES and not is_hidden(path)]
    for part in _chunks(pictures):
        yield Part("zip", name, packed=part, count=len(part))


def _cut_tar(_: Location, name: str) -> Iterator[Part]:
    yield Part("tar", name)  # its entries are known only once it has been read


def _cut_parquet(file: Location, name: str) -> Iterator[Part]:
    try:
        with parquet.ParquetFile(file.open()) as opened:
            schema, metadata = opened.schema_arrow, opened.metadata
    except (ArrowException, OSError) as error:
        raise Unusable(f"{file.path} cannot be read as Parquet: {error}") from None
    columns = {field.name: column for field in schema if (column := image_column(field))}
    known = [columns[one] for one in COLUMNS if one in columns] or [*columns.values()]
    if not known:
        raise Unusable(f"{file.path} has no column of binary images: {', '.join(schema.names)}")
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        yield Part("parquet", name, row_group=group, column=known[0], count=count)


CUTTERS: Mapping[str, Callable[[Location, str], Iterator[Part]]] = {
    "zip": _cut_zip,
    "tar": _cut_tar,
    "parquet": _cut_parquet,
}


def _chunks(items: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    for start in range(0, len(items), IMAGES):
        yield tuple(items[start : start + IMAGES])
