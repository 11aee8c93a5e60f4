"""The images of a part, each read when its turn is near."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO

from pyarrow import parquet

from app.bulk.location import Location
from app.bulk.plan import Part
from app.errors import BadArchive, Unusable
from app.sources import Source
from app.vision.archive import PICTURES, PackedFile, is_hidden


@contextmanager
def open_part(source: Location, part: Part, most: int) -> Iterator[Iterator[Source]]:
    """most: bytes of an image, beyond which it is refused. OSError: the part cannot be read at all."""
    file = source / part.name if part.name else source
    if part.kind == "images":
        yield (Source(name, partial(_read, source / name, most)) for name in part.images)
        return
    with file.open() as opened:
        if part.kind == "zip":
            yield _read_zip(opened, part)
        elif part.kind == "tar":
            yield _read_tar(opened, part.name or file.name, most)
        else:
            yield _read_parquet(opened, part, part.name or file.name)


def _read(file: Location, most: int) -> bytes:
    try:
        return file.read(most + 1)  # one too many is enough for the decoder to refuse it
    except FileNotFoundError:
        raise Unusable("the file is gone") from None


def _read_zip(file: BinaryIO, part: Part) -> Iterator[Source]:
    archive, prefix = PackedFile(file), f"{part.name}/" if part.name else ""
    for entry in part.packed:
        yield Source(prefix + entry.name, partial(archive.read, entry))


def _read_tar(file: BinaryIO, name: str, most: int) -> Iterator[Source]:
    """A shard that is broken half way is one more row, with its error."""
    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.suffix.lower() not in PICTURES or is_hidden(path):
                    continue
                content = archive.extractfile(member)
                assert content is not None  # it is a file
                yield Source(f"{name}/{member.name}", content.read(most + 1).__bytes__)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        yield Source(name, partial(_refuse, f"the rest of this archive cannot be read: {error}"))


def _read_parquet(file: BinaryIO, part: Part, shard: str) -> Iterator[Source]:
    opened = parquet.ParquetFile(file)
    wanted = [part.column, *(["path"] if "path" in opened.schema_arrow.names else [])]
    table = opened.read_row_group(part.row_group, columns=wanted)
    first = sum(opened.metadata.row_group(group).num_rows for group in range(part.row_group))
    top, _, inner = part.column.partition(".")
    images = table[top].combine_chunks()
    if inner:
        images = images.field(inner)
    for row, image in enumerate(images):
        path = table["path"][row].as_py() if "path" in wanted else None
        name = str(path) if path is not None else f"{shard}#{first + row}"
        yield Source(name, (image.as_py() or b"").__bytes__)


def _refuse(detail: str) -> bytes:
    raise BadArchive(detail)
