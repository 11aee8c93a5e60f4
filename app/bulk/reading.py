"""The images of a part, each read when its turn is near."""

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

AHEAD = 16  # files that are read while others are decoded: an object store takes its time for each
CHUNK = 8 * MIB  # of an archive in one read, for the same reason
ROWS = 64  # of a Parquet file at a time
COMPRESSED: Mapping[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


@contextmanager
def open_part(source: Location, part: Part, most: int) -> Iterator[Iterator[StoredImage]]:
    """most: bytes of an image, beyond which it is refused. OSError: the part cannot be read at all."""
    file = source / part.name if part.name else source
    name = part.name or file.name
    if part.kind == "flawed":
        yield iter([StoredImage(name, partial(_refuse, part.flaw))])
    elif part.kind == "images":
        # A disk that is not there, on a machine that should have it, is not a thousand bad images.
        if not any((source / name).exists for name in part.images):
            raise FileNotFoundError(f"none of {len(part.images)} files from {part.images[0]} on is there")
        files = (StoredImage(name, partial(_read_file, source / name, most)) for name in part.images)
        with closing(_ahead(files)) as found:
            yield found
    elif part.kind == "parquet":
        with file.open() as opened:
            yield _read_parquet(opened, part, name)
    else:
        with file.open() as raw, BufferedReader(cast(Any, raw), CHUNK) as opened:
            yield _read_zip(opened, part, most) if part.kind == "zip" else _read_tar(opened, name, most)


def _ahead(sources: Iterable[StoredImage]) -> Generator[StoredImage]:
    """The same, read before they are asked for."""
    waiting: deque[StoredImage] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for source in sources:
            waiting.append(StoredImage(source.name, pool.submit(source.read).result))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting


def _read_file(file: Location, most: int) -> bytes:
    try:
        return file.read(most + 1)  # one too many is enough for the decoder to refuse it
    except OSError as error:
        # What a network fails at may be there later: then all of the part is done again.
        if isinstance(file, Local) or isinstance(error, FileNotFoundError | PermissionError):
            raise Unusable(f"the file cannot be read: {error.strerror or error}") from None
        raise


def _read_zip(file: BinaryIO, part: Part, most: int) -> Iterator[StoredImage]:
    archive, prefix = _Zip(file), f"{part.name}/" if part.name else ""
    for entry in part.entries:
        yield StoredImage(prefix + entry.name, partial(archive.read_listed, entry, most))


class _Zip(PackedFile):
    def read_listed(self, entry: Listed, most: int) -> bytes:
        """Where it is written, and how it lies, is nobody's business here: it becomes no file."""
        if entry.flaw:
            raise BadArchive(f"the entry {entry.flaw}")
        if max(entry.size, entry.packed) > most:
            raise TooLarge(f"the image has more than {most} bytes")
        with self._lock:
            located = locate(self._file, entry)
        return self.read(located)


def _read_tar(file: BufferedReader, name: str, most: int) -> Iterator[StoredImage]:
    """Of a shard that is broken half way, or cut, the rest is one more row."""
    try:
        with _Tar.open(fileobj=_unpacked(file), mode="r|", ignore_zeros=True) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isdir() or path.suffix.lower() not in IMAGE_SUFFIXES or is_hidden(path):
                    continue
                content = archive.extractfile(member) if member.isfile() else None
                refused = partial(_refuse, "it is a link or a special file")
                yield StoredImage(
                    f"{name}/{member.name}", content.read(most + 1).__bytes__ if content else refused
                )
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        yield StoredImage(name, partial(_refuse, f"the rest of this archive cannot be read: {error}"))


class _Header(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """tarfile itself takes a broken header, and a file that is cut before one, for the end."""
        assert isinstance(archive, _Tar)
        try:
            found = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.ended = True
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if archive.ended:
                raise
            raise tarfile.ReadError("it is cut short") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
        archive.ended = False  # after the end of one, another may follow
        return found


class _Tar(tarfile.TarFile):
    tarinfo = _Header
    ended = False


def _unpacked(file: BufferedReader) -> BinaryIO:
    """By gzip, bz2 or lzma themselves: tarfile reads only the first of several streams."""
    head = file.peek(6)
    for magic, opener in COMPRESSED.items():
        if head.startswith(magic):
            return cast(BinaryIO, opener(file))
    return file


def _read_parquet(file: BinaryIO, part: Part, shard: str) -> Iterator[StoredImage]:
    # Otherwise a row group, of gigabytes perhaps, is in memory as a whole.
    opened = parquet.ParquetFile(file, buffer_size=CHUNK, pre_buffer=False)
    wanted = [part.column, *(["path"] if "path" in opened.schema_arrow.names else [])]
    row = sum(opened.metadata.row_group(group).num_rows for group in range(part.row_group))
    for batch in opened.iter_batches(ROWS, row_groups=[part.row_group], columns=wanted):
        if part.column in batch.schema.names:
            images = batch[part.column]
        else:
            top, _, inner = part.column.rpartition(".")
            images = batch[top].field(inner)
        paths = batch["path"] if "path" in wanted else [None] * len(images)
        for path, image in zip(paths, images, strict=True):
            known = path is not None and path.is_valid
            yield StoredImage(str(path) if known else f"{shard}#{row}", (image.as_py() or b"").__bytes__)
            row += 1


def _refuse(detail: str) -> bytes:
    raise BadArchive(detail)
