"""The manifest: one row per image file of an archive, with class, split and source photo.

Its first line names the classes, `# classes: basophil,eosinophil,…`; without it they are the four of
`CLASSES`. The unit is the photo, not the file: the Kaggle data set has 12,444 files that were augmented from
351 photos, so a split by file puts copies of one photo on both sides. `sources.csv` gives each file's photo.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from app.archives.image_files import left_out_line
from app.engine.bundle import CLASSES
from app.errors import RequestError
from app.imaging.decode import decode
from training.class_names import FileLabels, Labelling, check_classes
from training.errors import DataError
from training.images import ImageArchive

SPLITS = ("TRAIN", "TEST", "TEST_SIMPLE")
SPLIT_LIKE = {"train", "training", "val", "valid", "validation", "test"}  # folders of other data sets
KAGGLE_SLUG = "paultimothymooney/blood-cells"
KAGGLE_COUNTS = {
    "TRAIN": (2497, 2483, 2478, 2499),
    "TEST": (623, 620, 620, 624),
    "TEST_SIMPLE": (13, 6, 4, 48),
}
MOST_NAMED = 100  # files in one message
HEAD = "# classes: "  # of a manifest with other classes than `CLASSES`
SOURCES = Path(__file__).with_name("sources.csv")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Row:
    """One image file."""

    archive: str  # path of the ZIP or folder
    path: str  # inside the archive
    label: str  # class name
    split: str  # train, val, test or test_simple
    source: str  # photo, slide or patient
    certain: bool  # the source is certain; other rows are left out of training and validation
    sha256: str  # of the file
    laboratory: str = ""  # that took the image; the archive's name without suffix, if nothing else is said
    classes: tuple[str, ...] = CLASSES  # of the manifest, in the order of their indices

    def __post_init__(self) -> None:
        if not self.laboratory:
            object.__setattr__(self, "laboratory", Path(self.archive).stem)

    @property
    def known(self) -> bool:
        """Return whether the cell is of one of the classes; others are outliers."""
        return self.label in self.classes


COLUMNS = [field.name for field in fields(Row) if field.name != "classes"]
Progress = Callable[[Iterable[Row], int], Iterable[Row]]
Checked = Row | str  # a row with its hash, or what is wrong with the file


def build_manifest(
    path: Path,
    *,
    sources: Mapping[str, str] | None = None,
    leave_out: Collection[str] = (),
    others: Collection[str] = (),
    laboratory: str = "",
    classes: Sequence[str] = CLASSES,
    labels: Mapping[str, str] | None = None,
) -> list[Row]:
    """Return a row for each image of one archive: `list_files`, then `check_files`. Raise DataError."""
    return check_files(list_files([(laboratory, path)], sources, leave_out, others, classes, labels)[0])


def classes_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the classes of the manifest that the rows are of, in the order of their indices."""
    return rows[0].classes if rows else CLASSES


def list_files(
    archives: Sequence[tuple[str, Path]],
    sources: Mapping[str, str] | None = None,
    leave_out: Collection[str] = (),
    others: Collection[str] = (),
    classes: Sequence[str] = CLASSES,
    labels: Mapping[str, str] | None = None,
) -> tuple[list[Row], list[str]]:
    """Return a row without hash for each image, and notes on the files that are left out; open no image.

    The Kaggle archive is recognised by its files' names. Any other archive needs one folder per class;
    `sources` (path, or TITLE/path, → photo or patient) groups its files, if it names one of them; else each
    file is its own source. `labels` (the same paths, or patterns, → label) goes before the folders. Images in
    folders named in `leave_out` are skipped. Folders named in `others` hold cells of no class: half of their
    sources are for training, the others have split test.
    archives: laboratory, "" if none is named, and path. Raise DataError if one cannot be used, or has a path
    that `sources` has for another one too, or if a class has no images.
    """
    table = None if labels is None else FileLabels(labels)
    labelling = Labelling(check_classes(classes), others, table)
    rows: list[Row] = []
    notes: list[str] = []
    owners: dict[str, Path] = {}
    for (laboratory, path), title in zip(archives, titles([path for _, path in archives]), strict=True):
        names, said = list_names(path, leave_out)
        kept = [name for name in names if labelling.given(title, name) not in leave_out]
        if len(kept) < len(names):
            said.append(f"{path}: images left out by --labels and --leave-out: {len(names) - len(kept)}")
        names = kept
        if is_kaggle(path, names):
            found, more = kaggle_rows(path, names, labelling, title)
        else:
            own = sources_of(title, names, sources)
            for name in own or {}:
                if sources is not None and f"{title}/{name}" not in sources:
                    check_owner(owners.setdefault(name, path), path, name, title)
            found = [folder_row(path, name, own, labelling, title) for name in names]
            more = split_folders(path, names)
        notes += [*said, *more, *absent_classes(path, found, len(archives))]
        rows += [replace(row, laboratory=laboratory or title) for row in found]
    check_present([path for _, path in archives], rows, labelling.classes, notes)
    unused = sorted({other.casefold() for other in others} - {row.label for row in rows})
    notes += [f"no archive has images in a folder {name}, which --others names" for name in unused]
    if table is not None and table.unused:
        notes.append(f"lines of --labels that name no image: {named(sorted(table.unused))}")
    return rows, notes


def list_names(path: Path, leave_out: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the images' paths inside an archive, and what was left out. Raise DataError."""

    def kept(name: str) -> bool:
        return not any(part in leave_out for part in name.split("/")[:-1])

    files = ImageArchive(path).files()
    unread = [f"{name} ({why})" for name, why in files.unread.items() if kept(f"{name}/")]
    if unread:
        raise DataError(f"{path}: cannot read {named(unread)}")
    names = [name for name in files.stamps if kept(name)]
    notes = [f"{path}: {line}"] if (line := left_out_line(files.left_out)) else []
    if len(names) < len(files.stamps):
        notes.append(f"{path}: images left out by --leave-out: {len(files.stamps) - len(names)}")
    return names, notes


def titles(paths: Sequence[Path]) -> list[str]:
    """Return a name for each archive: its own without suffix, or with as many folders as tell it apart."""
    repeated = Counter(path.resolve() for path in paths)
    if twice := [str(path) for path, count in repeated.items() if count > 1]:
        raise DataError(f"{', '.join(twice)} is given more than once")
    parts = [path.absolute().parts for path in paths]
    longest = max(map(len, parts), default=0)
    levels = [[Path(each[-1]).stem for each in parts]]
    levels += [["/".join(each[-length:]) for each in parts] for length in range(1, longest + 1)]
    return [
        next(level[index] for level in levels if level.count(level[index]) == 1)
        for index in range(len(paths))
    ]


def sources_of(title: str, names: Sequence[str], sources: Mapping[str, str] | None) -> dict[str, str] | None:
    """Return the source of each path that has one; None if none has: the sources are another archive's."""
    if sources is None:
        return None
    keys = {name: f"{title}/{name}" if f"{title}/{name}" in sources else name for name in names}
    return {name: sources[key] for name, key in keys.items() if key in sources} or None


def check_owner(owner: Path, path: Path, name: str, title: str) -> None:
    """Raise DataError if another archive, `owner`, has the same path in the CSV of sources."""
    if owner != path:
        raise DataError(
            f"the CSV of sources names {name}, which is in {owner} and in {path}: begin its lines with the"
            f" archive's name, as in {title}/{name}"
        )


def is_kaggle(archive: Path, names: Sequence[str]) -> bool:
    """Return whether these are files of the Kaggle archive; others may have a folder TEST too."""
    keys = [file_key(name) for name in names if kaggle_row(archive, name)]
    return bool(keys) and not read_sources().keys().isdisjoint(keys)


def kaggle_rows(
    archive: Path, names: Sequence[str], labelling: Labelling, title: str
) -> tuple[list[Row], list[str]]:
    """Return the rows of the Kaggle archive, and a note on images that are not its own."""
    found = with_kaggle_sources([row for name in names if (row := kaggle_row(archive, name))])
    outside = len(names) - len(found)
    return [
        replace(row, label=labelling.label(archive, title, row.path), classes=labelling.classes)
        for row in found
    ], [f"{archive}: images left out outside TRAIN and TEST: {outside}"] if outside else []


def split_folders(archive: Path, names: Sequence[str]) -> list[str]:
    """Return a note if folders look like splits, which they are in the Kaggle archive alone."""
    folders = {part for name in names for part in name.split("/")[:-1] if part.casefold() in SPLIT_LIKE}
    if not folders:
        return []
    return [f"{archive}: folders that are not taken for splits: {', '.join(sorted(folders))}; see --split"]


def kaggle_row(archive: Path, name: str) -> Row | None:
    """Return the row of a file of the Kaggle archive, None if the name is not like one of Kaggle's."""
    parts = name.split("/")
    if len(parts) < 3 or parts[-3] not in SPLITS or parts[-2].lower() not in CLASSES:
        return None
    return Row(str(archive), name, parts[-2].lower(), parts[-3].lower(), "", True, "")


def with_kaggle_sources(rows: Sequence[Row]) -> list[Row]:
    """Check the counts and fill in each file's photo; TEST_SIMPLE, which repeats TEST, is dropped.

    A class may be absent as a whole. Raise DataError for other differences.
    """
    counts_here = Counter((row.split.upper(), row.label) for row in rows)
    present = {row.label for row in rows}
    changed = "the Kaggle archive is incomplete or changed; download it again"
    for split, counts in KAGGLE_COUNTS.items():
        for label, expected in zip(CLASSES, counts, strict=True):
            if label in present and counts_here[split, label] != expected:
                raise DataError(
                    f"{split}/{label.upper()} has {counts_here[split, label]} images instead of {expected}: "
                    f"{changed}"
                )
    table = read_sources()
    known = [row for row in rows if row.split != "test_simple"]
    if strange := [row.path for row in known if file_key(row.path) not in table]:
        raise DataError(f"not of the Kaggle archive: {named(strange)}; {changed}")
    return [
        replace(row, source=table[key][0], certain=table[key][1])
        for row in known
        if (key := file_key(row.path))
    ]


def file_key(path: str) -> str:
    """Return the last three parts, such as `TRAIN/MONOCYTE/_0_1173.jpeg`."""
    return "/".join(path.split("/")[-3:])


def folder_row(
    archive: Path, name: str, sources: Mapping[str, str] | None, labelling: Labelling, title: str
) -> Row:
    label = labelling.label(archive, title, name)
    if sources is not None and name not in sources:
        raise DataError(f"{archive}: {name} has no line in the CSV of sources")
    source = sources[name] if sources else f"{title}/{name}"
    split = "train" if label in labelling.classes or is_for_training(source) else "test"
    return Row(str(archive), name, label, split, source, True, "", classes=labelling.classes)


def is_for_training(source: str) -> bool:
    """Return the same answer for a source in every manifest; true for half of them."""
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).digest()[0] % 2 == 0


def absent_classes(archive: Path, rows: Sequence[Row], archives: int) -> list[str]:
    """Return a note on the classes that one of several archives lacks."""
    present = {row.label for row in rows if row.known}
    missing = [label for label in classes_of(rows) if label not in present]
    return [f"{archive}: no images of {', '.join(missing)}"] if missing and present and archives > 1 else []


def check_present(
    archives: Sequence[Path], rows: Sequence[Row], classes: Sequence[str], notes: Sequence[str]
) -> None:
    """Raise DataError if a class has no images in any of the archives, unless all cells are of no class."""
    present = {row.label for row in rows}
    if rows and not any(row.known for row in rows):
        return
    if missing := [label for label in classes if label not in present]:
        raise DataError(
            f"{', '.join(map(str, archives))}: no images of {', '.join(missing)}; each class needs a folder"
            f" of its name (--classes names the classes){''.join(f'; {note}' for note in notes)}"
        )


def check_files(
    rows: Sequence[Row], progress: Callable[[Iterable[Checked], int], Iterable[Checked]] | None = None
) -> list[Row]:
    """Decode every file and return its row with its sha256; equal files without a CSV have one source.

    Raise DataError, which names all files that do not decode, or all that are in two classes.
    """
    outcomes = checked_rows(rows)
    checked = list(progress(outcomes, len(rows)) if progress else outcomes)
    if flaws := [flaw for flaw in checked if isinstance(flaw, str)]:
        raise DataError(f"{named(flaws)}; replace or remove what is broken, or download the archive again")
    whole = [row for row in checked if isinstance(row, Row)]
    refuse_copies(whole, "class", lambda row: row.label)
    return with_shared_sources(whole)


def checked_rows(rows: Sequence[Row]) -> Iterable[Checked]:
    """Yield the outcome of each row, in order."""
    archives = {archive: ImageArchive(Path(archive)) for archive in {row.archive for row in rows}}
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(rows), 256):
            chunk = rows[start : start + 256]
            yield from pool.map(flaw_or_row, chunk, [read(archives[row.archive], row) for row in chunk])


def read(archive: ImageArchive, row: Row) -> bytes | DataError:
    try:
        return archive.read(row.path)
    except DataError as error:
        return error


def flaw_or_row(row: Row, data: bytes | DataError) -> Checked:
    try:
        if isinstance(data, DataError):
            raise data
        return checked_row(row, data)
    except DataError as error:
        return str(error)


def checked_row(row: Row, data: bytes) -> Row:
    """Return the row with the sha256 of its file. Raise DataError if that does not decode."""
    try:
        decode(data)
    except RequestError as error:
        raise DataError(f"{row.archive}: {row.path} does not decode ({error.detail})") from error
    return replace(row, sha256=hashlib.sha256(data).hexdigest())


def with_shared_sources(rows: Sequence[Row]) -> list[Row]:
    """Give equal files the source and split of the first, so that no split separates them.

    That is for files that are their own source; other sources stay as they were given.
    """
    first: dict[str, Row] = {}

    def shared(row: Row) -> Row:
        if not row.source.endswith(f"/{row.path}"):
            return row
        earlier = first.setdefault(row.sha256, row)
        return replace(row, source=earlier.source, split=earlier.split)

    return [shared(row) for row in rows]


def refuse_copies(rows: Sequence[Row], what: str, part_of: Callable[[Row], str]) -> None:
    """Raise DataError, naming both paths, if the same file is in two parts. what: of such a part."""
    first: dict[str, Row] = {}

    def place(row: Row) -> str:
        return f"{row.archive}: {row.path} ({part_of(row)})"

    clashes = [
        f"{place(earlier)} and {place(row)}"
        for row in rows
        if part_of(earlier := first.setdefault(row.sha256, row)) != part_of(row)
    ]
    if clashes:
        raise DataError(f"the same file has more than one {what}: {named(clashes)}; keep one of each")


def named(items: Sequence[str]) -> str:
    """Return the items in one line, up to `MOST_NAMED`."""
    more = len(items) - MOST_NAMED
    return "; ".join(items[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def read_sources() -> dict[str, tuple[str, bool]]:
    """Read Kaggle's file → (photo, whether the match is certain), derived by matching image features."""
    with SOURCES.open(newline="") as file:
        return {
            line["file"]: (f"bccd/{line['photo']}", line["certain"] == "1") for line in csv.DictReader(file)
        }


def write_manifest(rows: Sequence[Row], path: Path) -> None:
    """Write a manifest. Raise DataError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            if (classes := classes_of(rows)) != CLASSES:
                file.write(f"{HEAD}{','.join(classes)}\r\n")
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows({**asdict(row), "certain": int(row.certain)} for row in rows)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def read_manifest(path: Path) -> list[Row]:
    """Read a manifest; raise DataError, which names the line, if it is missing, cut or malformed."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            return parse_manifest(file.read())
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; create it with `leuko-train data ARCHIVE`") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (csv.Error, ValueError) as error:
        raise DataError(
            f"{path} is not a whole manifest: {error}; create it again with `leuko-train data`"
        ) from error


def parse_manifest(text: str) -> list[Row]:
    """Return the rows; raise csv.Error or ValueError that names the line."""
    classes: tuple[str, ...] = CLASSES
    above = 0  # lines above the table
    if text.startswith(HEAD.strip()):
        head, _, text = text.partition("\n")
        classes, above = parse_head(head), 1
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or []
    if missing := [name for name in COLUMNS if name not in columns and name != "laboratory"]:
        raise ValueError(f"it lacks the columns {', '.join(missing)}")
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise ValueError(f"it has the unknown columns {', '.join(unknown)}")
    rows: dict[tuple[str, str], Row] = {}
    for line in reader:
        number = reader.line_num + above
        row = replace(_row(line, number), classes=classes)
        if rows.setdefault((row.archive, row.path), row) is not row:
            raise ValueError(f"line {number} repeats an image")
    if not rows:
        raise ValueError("it has no images")
    if not text.endswith("\n"):
        raise ValueError(f"line {reader.line_num + above} is cut off")
    return [*rows.values()]


def parse_head(line: str) -> tuple[str, ...]:
    """Return the classes that a manifest's first line names. Raise ValueError."""
    try:
        return check_classes(line.removeprefix(HEAD.strip()).strip(" ,\r").split(","))
    except DataError as error:
        raise ValueError(f"line 1: {error}") from error


def fingerprint(rows: Sequence[Row]) -> str:
    """Return the sha256 over the sorted hashes, classes and splits; it identifies a data set."""
    lines = sorted(f"{row.sha256} {row.label} {row.split}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def download(folder: Path) -> Path:
    """Download the Kaggle archive with kagglehub; needs a network and a Kaggle account's token.

    Return `folder/blood-cells`, a link to kagglehub's folder in `folder/kagglehub`, which is named after the
    version, while recipes refer to archives by name.
    """
    os.environ.setdefault("KAGGLEHUB_CACHE", str(folder.absolute() / "kagglehub"))  # else in the home folder
    import kagglehub

    link = folder / Path(KAGGLE_SLUG).name
    folder.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(Path(kagglehub.dataset_download(KAGGLE_SLUG)).absolute(), target_is_directory=True)
    return link


def _row(line: dict[str, Any], number: int) -> Row:
    if None in line or None in line.values():
        raise ValueError(f"line {number} does not have as many columns as the first")
    if empty := [name for name, text in line.items() if not text and name != "laboratory"]:
        raise ValueError(f"line {number} has no {', '.join(empty)}")
    if line["certain"] not in ("0", "1"):
        raise ValueError(f"line {number} has {line['certain']!r} in the column certain, not 0 or 1")
    if not _SHA256.fullmatch(line["sha256"]):
        raise ValueError(f"line {number} has no SHA-256 in the column sha256")
    return Row(**{**line, "certain": line["certain"] == "1"})
