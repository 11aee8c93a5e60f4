"""Cuts a source into parts. One worker scores a part and writes one file of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import TypeVar

from pyarrow import ArrowException, parquet, types
from pyarrow.lib import Field

from app.archives.image_files import Kind, LeftOut, leave_out, left_out_line
from app.archives.labelled_archive import PackedFile
from app.archives.walk import Stamp, keep_images
from app.archives.zip_directory import ArchiveLimits, Listed, list_directory
from app.bulk.location import UNKNOWN, Local, Location
from app.errors import LeukoError, Unusable
from app.image_signatures import HEAD

Item = TypeVar("Item")

IMAGES = 1000  # in one part of a folder or ZIP; a tar file is one part, and so is a row group
# The compression is recognised by its first bytes, not by these names.
TARS = (".tar", ".tar.gz", ".tgz", ".taz", ".tar.bz2", ".tbz", ".tbz2", ".tb2", ".tar.xz", ".txz")
REFUSED = (".tar.zst", ".tzst", ".tar.lz", ".tlz", ".tar.lzma", ".tar.lz4", ".tar.z", ".7z", ".rar")
# Names of columns with images, the most likely first; else the first binary column.
COLUMNS = ("image", "bytes", "content", "data", "jpg", "png")
# Higher than for uploads: the file is the operator's own, and only its directory is held in memory.
LIMITS = ArchiveLimits(max_entries=50_000_000)


@dataclass(frozen=True)
class Part:
    """A share of the source. name: of a file below the source, or empty if the source is that file.

    kind: images (files named by `images`, relative to the source), zip (`entries` of it), tar (the whole
    file), parquet (one row group), flawed (the content of the file cannot be used: `flaw` says why), or
    unread (the file could not be opened: the part is left out).
    count: images in the part; None: unknown. stamps: a hash of the files' stamps.
    """

    kind: str
    name: str = ""
    images: tuple[str, ...] = ()
    entries: tuple[Listed, ...] = ()
    row_group: int = 0
    column: str = ""
    flaw: str = ""
    count: int | None = None
    stamps: str = ""

    @property
    def title(self) -> str:
        return self.name or (self.images[0] if self.images else "the source")


@dataclass
class Plan:
    """left_out: files that are no images, but for those in tars. unread: why files cannot be read."""

    parts: list[Part] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    unread: dict[str, str] = field(default_factory=dict)


def plan(source: Location) -> Plan:
    """Return the parts, always the same for the same files. Raise Unusable, TooLarge, BadArchive, OSError."""
    is_folder = source.is_folder
    if is_folder is None:
        raise Unusable(f"{source.path} does not exist")
    planned = Plan()
    if is_folder:
        _cut_folder(source, planned)
    else:
        for part in _cut(source, "", planned.left_out):
            planned.parts.append(replace(part, stamps=_digest([source.stamp])))
    if not planned.parts:
        line = left_out_line(planned.left_out)
        found = f"{source.path} contains no images, and no .zip, .tar or .parquet with images"
        raise Unusable(f"{found}; {line}" if line else found)
    return planned


def _cut_folder(source: Location, planned: Plan) -> None:
    """Cut a folder. A file that cannot be read becomes a row with an error, a folder a part left out."""
    files = source.files()
    archives = {name: stamp for name, stamp in files.stamps.items() if _kind(name)}
    others = {name: stamp for name, stamp in files.stamps.items() if name not in archives}
    images = keep_images(replace(files, stamps=others), lambda name: _head(source / name))
    planned.left_out += images.left_out
    planned.unread |= images.unread
    unread = images.closed | {name for name in images.unread if _kind(name)}
    for part in _chunks(sorted({*images.stamps, *images.unread} - unread)):
        stamps = _digest(images.stamps.get(name, UNKNOWN) for name in part)
        planned.parts.append(Part("images", images=part, count=len(part), stamps=stamps))
    for name in sorted([*archives, *unread]):
        if name in unread:
            parts = [Part("unread", name, flaw=images.unread[name], count=0)]
        else:
            parts = _cut_within(source, name, planned.left_out)
        stamp = archives.get(name, UNKNOWN)
        planned.parts += [replace(part, stamps=_digest([stamp])) for part in parts]


def _head(file: Location) -> bytes:
    """Return a file's first bytes.

    Raise Unusable for an error that may be temporary, since the next run would have other parts.
    """
    try:
        return file.read(HEAD)
    except OSError as error:
        if _is_lasting(file, error):
            raise
        raise Unusable(f"{file.path} cannot be read now: {error}") from error


def _is_lasting(file: Location, error: OSError) -> bool:
    return isinstance(file, Local) or isinstance(error, FileNotFoundError | PermissionError)


def dump(part: Part) -> str:
    """Serialise a part for a worker."""
    return json.dumps(asdict(part))


def parse(text: str) -> Part:
    document = json.loads(text)
    entries = tuple(Listed(**entry) for entry in document["entries"])
    return Part(**document | {"images": tuple(document["images"]), "entries": entries})


def fingerprint(parts: Sequence[Part]) -> str:
    """Return a hash that changes when a file of the source changes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(dump(part).encode())
    return digest.hexdigest()


def image_column(field: Field) -> str | None:
    """Return the name of the binary data in a column: itself, or `bytes` of Hugging Face's {bytes, path}.

    None: the column holds no binary data.
    """
    if types.is_binary(field.type) or types.is_large_binary(field.type):
        return str(field.name)
    if types.is_struct(field.type) and (index := field.type.get_field_index("bytes")) >= 0:
        inner = field.type.field(index).type
        return f"{field.name}.bytes" if types.is_binary(inner) or types.is_large_binary(inner) else None
    return None


def _kind(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith(TARS):
        return "tar"
    if lower.endswith(REFUSED):
        return "refused"
    return next((kind for kind in ("zip", "parquet") if lower.endswith(f".{kind}")), None)


def _cut_within(folder: Location, name: str, left_out: LeftOut) -> list[Part]:
    """Cut an archive inside a folder. One that cannot be used becomes a part with one row, its error.

    One that cannot be opened becomes a part that is left out, as a tar file does. Raise OSError for a network
    error, which may be temporary: the next run would have other parts.
    """
    file = folder / name
    try:
        return list(_cut(file, name, left_out))
    except LeukoError as error:
        return [Part("flawed", name, flaw=error.detail, count=1)]
    except OSError as error:
        if not _is_lasting(file, error):
            raise
        return [Part("unread", name, flaw=f"{error.strerror or error}", count=0)]


def _cut(file: Location, name: str, left_out: LeftOut) -> Iterator[Part]:
    kind = _kind(file.name)
    if kind is None:
        raise Unusable(f"{file.path} is not a folder, .zip, .tar or .parquet")
    yield from CUTTERS[kind](file, name, left_out)


def _refuse(file: Location, _: str, __: LeftOut) -> Iterator[Part]:
    raise Unusable(
        f"{file.path} is an archive that is not read: use .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz"
    )


def _cut_zip(file: Location, name: str, left_out: LeftOut) -> Iterator[Part]:
    images = []
    with file.open() as opened:
        archive = PackedFile(opened)
        for entry in list_directory(opened, LIMITS):
            kind = archive.kind(entry)
            if kind is Kind.IMAGE:
                images.append(entry)
            else:
                leave_out(left_out, kind, PurePosixPath(entry.name))
    for part in _chunks(images):
        yield Part("zip", name, entries=part, count=len(part))


def _cut_tar(_: Location, name: str, __: LeftOut) -> Iterator[Part]:
    yield Part("tar", name)  # its entries are unknown until it has been read


def _cut_parquet(file: Location, name: str, _: LeftOut) -> Iterator[Part]:
    with file.open() as raw:
        try:
            opened = parquet.ParquetFile(raw)
            schema, metadata = opened.schema_arrow, opened.metadata
            columns = {field.name: column for field in schema if (column := image_column(field))}
        except (ArrowException, OSError, UnicodeDecodeError) as error:  # the last: names of columns
            raise Unusable(f"{file.path} cannot be read as Parquet: {error}") from None
    chosen = next((name for name in [*COLUMNS, *columns] if name in columns), None)
    if chosen is None:
        raise Unusable(f"{file.path} has no column of binary images; its columns: {', '.join(schema.names)}")
    column = columns[chosen]
    if sum(field.name in (chosen, column) or image_column(field) == column for field in schema) > 1:
        raise Unusable(f"{file.path} has several columns named {column}")
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        yield Part("parquet", name, row_group=group, column=column, count=count)


CUTTERS: Mapping[str, Callable[[Location, str, LeftOut], Iterator[Part]]] = {
    "refused": _refuse,
    "zip": _cut_zip,
    "tar": _cut_tar,
    "parquet": _cut_parquet,
}


def _digest(stamps: Iterable[Stamp]) -> str:
    return hashlib.sha256(json.dumps([*stamps]).encode()).hexdigest()


def _chunks(items: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    for start in range(0, len(items), IMAGES):
        yield tuple(items[start : start + IMAGES])
