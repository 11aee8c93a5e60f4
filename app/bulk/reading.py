"""Reads the images of a part, each shortly before it is decoded."""

from __future__ import annotations

import tarfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from io import BufferedReader
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from pyarrow import ArrowException, ArrowInvalid, parquet

from app.archives.image_files import Kind, LeftOut, kind_by_content, kind_by_name, leave_out
from app.archives.images import StoredImage
from app.archives.labelled_archive import PackedFile
from app.archives.zip_directory import Listed, locate
from app.bulk.location import Local, Location
from app.bulk.parquet_pages import largest_page
from app.bulk.plan import Part
from app.bulk.tar import BROKEN, Entry, open_tar
from app.errors import BadArchive, RequestError, TooLarge, Unusable
from app.image_signatures import HEAD
from app.units import MIB

MOST_ROWS = 5_000_000  # of one part: its rows are held in memory until it is written
MOST_NAME = 4096  # characters of a name, of which the end is kept; Linux's limit of a path
MOST_NAMES = 512 * MIB  # characters of the names of one part
MOST_PAGE = 512 * MIB  # bytes of a Parquet page, and of the cells that are read at a time
AHEAD = 16  # files read while others are decoded: object stores have a high latency
CHUNK = 8 * MIB  # read from an archive at a time, for the same reason
ROWS = 64  # read from a Parquet file at a time


@contextmanager
def open_part(
    source: Location, part: Part, max_bytes: int, left_out: LeftOut | None = None
) -> Iterator[Iterator[StoredImage]]:
    """Open the images of a part.

    max_bytes: of one image. left_out: gets the files of a tar that are no images. Raise OSError if the part
    cannot be read at all.
    """
    file = source / part.name if part.name else source
    name = part.name or file.name
    if part.kind == "flawed":
        yield iter([StoredImage(name, partial(_refuse, part.flaw))])
    elif part.kind == "unread":
        raise OSError(f"{part.flaw}; once it can be read, choose another destination")
    elif part.kind == "images":
        # A missing mount must not become a thousand rows with errors.
        if not any((source / name).exists for name in part.images):
            raise FileNotFoundError(f"none of the {len(part.images)} files from {part.images[0]} on exists")
        files = (StoredImage(name, partial(_read_file, source / name, max_bytes)) for name in part.images)
        with closing(_read_ahead(files)) as images:
            yield images
    elif part.kind == "parquet":
        with file.open() as opened:
            yield _read_parquet(opened, part, name, max_bytes)
    else:
        with file.open() as raw, BufferedReader(cast(Any, raw), CHUNK) as opened:
            yield (
                _read_zip(opened, part, max_bytes)
                if part.kind == "zip"
                else _read_tar(opened, name, max_bytes, LeftOut() if left_out is None else left_out)
            )


def _read_ahead(images: Iterable[StoredImage]) -> Generator[StoredImage]:
    """Yield the same images; read up to `AHEAD` of them in advance."""
    waiting: deque[StoredImage] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for image in images:
            waiting.append(StoredImage(image.name, pool.submit(image.read).result))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting


def _read_file(file: Location, max_bytes: int) -> bytes:
    try:
        return file.read(max_bytes + 1)  # one byte more makes the decoder refuse it
    except OSError as error:
        # A network error may be temporary: it fails the part, which is then tried again as a whole.
        if isinstance(file, Local) or isinstance(error, FileNotFoundError | PermissionError):
            raise Unusable(f"the file cannot be read: {error.strerror or error}") from None
        raise


def _read_zip(file: BinaryIO, part: Part, max_bytes: int) -> Iterator[StoredImage]:
    archive, prefix = _Zip(file), f"{part.name}/" if part.name else ""
    for entry in part.entries:
        yield StoredImage(prefix + entry.name, partial(archive.read_listed, entry, max_bytes))


class _Zip(PackedFile):
    def read_listed(self, entry: Listed, max_bytes: int) -> bytes:
        """Read an entry. Its path and its overlap with others do not matter: it is not written to disk."""
        if entry.flaw:
            raise BadArchive(f"the entry {entry.flaw}")
        if max(entry.size, entry.packed) > max_bytes:
            raise TooLarge(f"the image has more than {max_bytes} bytes")
        with self._lock:
            located = locate(self._file, entry)
        return self.read(located)


def _read_tar(file: BufferedReader, name: str, max_bytes: int, left_out: LeftOut) -> Iterator[StoredImage]:
    """Read the images of a tar file. If it is broken or truncated, the rest becomes one image that fails."""
    rows = names = 0
    try:
        with open_tar(file) as entries:
            for entry in entries:
                named = entry.name[-MOST_NAME:]
                kind = kind_by_name(PurePosixPath(named))
                head = b""
                if kind is None:
                    head = b"" if entry.is_special else entry.read(HEAD)
                    kind = Kind.SPECIAL if entry.is_special else kind_by_content(head)
                if kind is not Kind.IMAGE:
                    leave_out(left_out, kind, PurePosixPath(named))
                    continue
                rows, names = rows + 1, names + len(named)
                if rows > MOST_ROWS or names > MOST_NAMES:
                    raise tarfile.ReadError(f"it has over {MOST_ROWS} images, or their names are too long")
                yield StoredImage(f"{name}/{named}", _content(entry, max_bytes, head))
    except BROKEN as error:
        yield StoredImage(name, partial(_refuse, f"the rest of this archive cannot be read: {error}"))


def _content(entry: Entry, max_bytes: int, head: bytes) -> Callable[[], bytes]:
    """Return what reads an entry, of which `head` was read."""
    try:
        return (head + entry.read(max_bytes + 1 - len(head))).__bytes__
    except BadArchive as error:
        return partial(_refuse, error.detail)


def _read_parquet(file: BinaryIO, part: Part, shard: str, max_bytes: int) -> Iterator[StoredImage]:
    """Read the images of a row group. Raise ArrowException if it cannot be read within the limits."""
    # Without buffer_size, a whole row group, perhaps of gigabytes, is held in memory.
    opened = parquet.ParquetFile(file, buffer_size=CHUNK, pre_buffer=False)
    columns = [part.column, *(["path"] if opened.schema_arrow.names.count("path") == 1 else [])]
    if opened.metadata.row_group(part.row_group).num_rows == 0:
        return  # it has no pages, and its offsets stand for nothing
    row = sum(opened.metadata.row_group(group).num_rows for group in range(part.row_group))
    rows = _rows_at_once(file, opened.metadata.row_group(part.row_group), columns)
    for batch in opened.iter_batches(rows, row_groups=[part.row_group], columns=columns):
        if part.column in batch.schema.names:
            images = batch[part.column]
        else:
            top, _, inner = part.column.rpartition(".")
            images = batch[top].field(inner)
        paths = batch["path"] if "path" in columns else [None] * len(images)
        for path, image in zip(paths, images, strict=True):
            yield StoredImage(_text(path)[-MOST_NAME:] or f"{shard}#{row}", _cell(image, max_bytes))
            row += 1


def _text(path: Any) -> str:
    """Return a cell as text; empty if it has none, as a date that Python cannot represent."""
    try:
        return str(path) if path is not None and path.is_valid else ""
    except (ArrowException, ArithmeticError, ValueError, KeyError):
        return ""


def _rows_at_once(file: BinaryIO, group: Any, columns: Sequence[str]) -> int:
    """Return how many rows fit in memory, by the largest page of the columns. Raise ArrowInvalid."""
    if group.num_rows > MOST_ROWS:
        raise ArrowInvalid(f"the row group has more than {MOST_ROWS} rows")
    chunks = [group.column(index) for index in range(group.num_columns)]
    page = max([1, *(largest_page(file, chunk) for chunk in chunks if chunk.path_in_schema in columns)])
    if page > MOST_PAGE:
        raise ArrowInvalid(f"a page of {page} bytes is over {MOST_PAGE}: write smaller row groups")
    return max(1, min(ROWS, MOST_PAGE // page))


def _cell(image: Any, max_bytes: int) -> Callable[[], bytes]:
    if not image.is_valid:
        return b"".__bytes__
    if image.as_buffer().size > max_bytes:
        return partial(_refuse, f"the image has more than {max_bytes} bytes", TooLarge)
    content: bytes = image.as_py()
    return content.__bytes__


def _refuse(detail: str, error: type[RequestError] = BadArchive) -> bytes:
    raise error(detail)
