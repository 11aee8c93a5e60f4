"""Reads the images of a part, each shortly before it is decoded."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from io import BufferedReader
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Self, cast

from pyarrow import parquet

from app.archives.image_names import IMAGE_SUFFIXES, is_hidden
from app.archives.images import StoredImage
from app.archives.labelled_archive import PackedFile
from app.archives.zip_directory import Listed, locate
from app.bulk.location import Local, Location
from app.bulk.plan import Part
from app.errors import BadArchive, TooLarge, Unusable
from app.units import MIB

AHEAD = 16  # files read while others are decoded: object stores have a high latency
CHUNK = 8 * MIB  # read from an archive at a time, for the same reason
ROWS = 64  # read from a Parquet file at a time
COMPRESSED: Mapping[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


@contextmanager
def open_part(source: Location, part: Part, max_bytes: int) -> Iterator[Iterator[StoredImage]]:
    """Open the images of a part. max_bytes: of one image. Raise OSError if the part cannot be read at all."""
    file = source / part.name if part.name else source
    name = part.name or file.name
    if part.kind == "flawed":
        yield iter([StoredImage(name, partial(_refuse, part.flaw))])
    elif part.kind == "images":
        # A missing mount must not become a thousand rows with errors.
        if not any((source / name).exists for name in part.images):
            raise FileNotFoundError(f"none of the {len(part.images)} files from {part.images[0]} on exists")
        files = (StoredImage(name, partial(_read_file, source / name, max_bytes)) for name in part.images)
        with closing(_read_ahead(files)) as images:
            yield images
    elif part.kind == "parquet":
        with file.open() as opened:
            yield _read_parquet(opened, part, name)
    else:
        with file.open() as raw, BufferedReader(cast(Any, raw), CHUNK) as opened:
            yield (
                _read_zip(opened, part, max_bytes)
                if part.kind == "zip"
                else _read_tar(opened, name, max_bytes)
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


def _read_tar(file: BufferedReader, name: str, max_bytes: int) -> Iterator[StoredImage]:
    """Read the images of a tar file. If it is broken or truncated, the rest becomes one image that fails."""
    try:
        with _Tar.open(fileobj=_unpacked(file), mode="r|", ignore_zeros=True) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isdir() or path.suffix.lower() not in IMAGE_SUFFIXES or is_hidden(path):
                    continue
                content = archive.extractfile(member) if member.isfile() else None
                refused = partial(_refuse, "the entry is a link or a special file")
                yield StoredImage(
                    f"{name}/{member.name}", content.read(max_bytes + 1).__bytes__ if content else refused
                )
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        yield StoredImage(name, partial(_refuse, f"the rest of this archive cannot be read: {error}"))


class _Header(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Raise ReadError for a broken or missing header, which tarfile itself takes for the end."""
        assert isinstance(archive, _Tar)
        try:
            header = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.ended = True
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if archive.ended:
                raise
            raise tarfile.ReadError("it is truncated") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
        archive.ended = False  # another tar file may follow the end of one
        return header


class _Tar(tarfile.TarFile):
    """A stream of tar files. ended: the end marker of one has been read."""

    tarinfo = _Header
    ended = False


def _unpacked(file: BufferedReader) -> BinaryIO:
    """Decompress with gzip, bz2 or lzma directly: tarfile reads only the first of several joined streams."""
    head = file.peek(6)
    for magic, opener in COMPRESSED.items():
        if head.startswith(magic):
            return cast(BinaryIO, opener(file))
    return file


def _read_parquet(file: BinaryIO, part: Part, shard: str) -> Iterator[StoredImage]:
    # Without buffer_size, a whole row group, perhaps of gigabytes, is held in memory.
    opened = parquet.ParquetFile(file, buffer_size=CHUNK, pre_buffer=False)
    columns = [part.column, *(["path"] if "path" in opened.schema_arrow.names else [])]
    row = sum(opened.metadata.row_group(group).num_rows for group in range(part.row_group))
    for batch in opened.iter_batches(ROWS, row_groups=[part.row_group], columns=columns):
        if part.column in batch.schema.names:
            images = batch[part.column]
        else:
            top, _, inner = part.column.rpartition(".")
            images = batch[top].field(inner)
        paths = batch["path"] if "path" in columns else [None] * len(images)
        for path, image in zip(paths, images, strict=True):
            named = path is not None and path.is_valid
            yield StoredImage(str(path) if named else f"{shard}#{row}", (image.as_py() or b"").__bytes__)
            row += 1


def _refuse(detail: str) -> bytes:
    raise BadArchive(detail)
