"""The manifest: one row per image file of an archive, with class, split and source photo.

The unit is the photo, not the file: the Kaggle data set has 12,444 files that were augmented from 351 photos,
so a split by file puts copies of one photo on both sides. `sources.csv` gives the photo of each file.
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
from pathlib import Path, PurePosixPath
from typing import Any

from app.archives.labelled_archive import class_of
from app.archives.spelling import did_you_mean
from app.engine.bundle import CLASSES
from app.errors import RequestError
from app.imaging.decode import decode
from training.errors import DataError
from training.images import ImageArchive

SPLITS = ("TRAIN", "TEST", "TEST_SIMPLE")
KAGGLE_SLUG = "paultimothymooney/blood-cells"
KAGGLE_COUNTS = {
    "TRAIN": (2497, 2483, 2478, 2499),
    "TEST": (623, 620, 620, 624),
    "TEST_SIMPLE": (13, 6, 4, 48),
}
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

    def __post_init__(self) -> None:
        if not self.laboratory:
            object.__setattr__(self, "laboratory", Path(self.archive).stem)

    @property
    def known(self) -> bool:
        """Return whether the cell is of one of the classes; others are outliers."""
        return self.label in CLASSES


Progress = Callable[[Iterable[Row], int], Iterable[Row]]


def build_manifest(
    path: Path,
    *,
    sources: Mapping[str, str] | None = None,
    leave_out: Collection[str] = (),
    others: Collection[str] = (),
    laboratory: str = "",
    progress: Progress | None = None,
) -> list[Row]:
    """Check that the archive is complete (counts; every file decodes) and return a row for each image.

    The Kaggle archive is recognised by its TRAIN and TEST folders. Any other archive needs one folder per
    class; `sources` (path → photo or patient) groups its files, if it names one of them; else each file is
    its own source. Images in folders named in `leave_out` are skipped. Folders named in `others` hold cells
    of no class: half of their sources are for training, the others have split test.
    Raise DataError if the archive cannot be used.
    """
    images = ImageArchive(path)
    names = [name for name in images.names() if not any(part in leave_out for part in name.split("/")[:-1])]
    kaggle = [row for name in names if (row := kaggle_row(path, name))]
    if sources is not None and not any(name in sources for name in names):
        sources = None  # they are another archive's
    rows = (
        with_kaggle_sources(kaggle) if kaggle else [folder_row(path, name, sources, others) for name in names]
    )
    check_classes(path, rows)
    checked = checked_rows(images, [replace(row, laboratory=laboratory or path.stem) for row in rows])
    return list(progress(checked, len(rows)) if progress else checked)


def kaggle_row(archive: Path, name: str) -> Row | None:
    """Return the row of a file of the Kaggle archive, None if the name is not one of Kaggle's."""
    parts = name.split("/")
    if len(parts) < 3 or parts[-3] not in SPLITS or parts[-2].lower() not in CLASSES:
        return None
    return Row(str(archive), name, parts[-2].lower(), parts[-3].lower(), "", True, "")


def with_kaggle_sources(rows: Sequence[Row]) -> list[Row]:
    """Check the counts and fill in each file's photo; TEST_SIMPLE, which repeats TEST, is dropped."""
    counts_here = Counter((row.split.upper(), row.label) for row in rows)
    for split, counts in KAGGLE_COUNTS.items():
        for label, expected in zip(CLASSES, counts, strict=True):
            if counts_here[split, label] != expected:
                raise DataError(
                    f"{split}/{label.upper()} has {counts_here[split, label]} images instead of {expected}: "
                    "the Kaggle archive is incomplete or changed; download it again"
                )
    table = read_sources()
    known = [row for row in rows if row.split != "test_simple"]
    return [
        replace(row, source=table[key][0], certain=table[key][1])
        for row in known
        if (key := file_key(row.path))
    ]


def file_key(path: str) -> str:
    """Return the last three parts, such as `TRAIN/MONOCYTE/_0_1173.jpeg`."""
    return "/".join(path.split("/")[-3:])


def folder_row(archive: Path, name: str, sources: Mapping[str, str] | None, others: Collection[str]) -> Row:
    kinds = [*CLASSES, *(other.casefold() for other in others)]
    kind = class_of(PurePosixPath(name), {kind: i for i, kind in enumerate(kinds)})
    if kind is None:
        question = did_you_mean(name.split("/")[:-1], kinds)
        raise DataError(
            f"{archive}: {name} is in no folder named after a class ({', '.join(CLASSES)}); {question}"
            f"{' Else skip' if question else 'skip'} folders of other classes with --leave-out, or name them"
            " with --others"
        )
    label = kinds[kind]
    if sources is not None and name not in sources:
        raise DataError(f"{archive}: {name} has no line in the CSV of sources")
    source = sources[name] if sources else f"{archive.stem}/{name}"
    split = "train" if label in CLASSES or is_for_training(source) else "test"
    return Row(str(archive), name, label, split, source, True, "")


def is_for_training(source: str) -> bool:
    """Return the same answer for a source in every manifest; true for half of them."""
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).digest()[0] % 2 == 0


def check_classes(archive: Path, rows: Sequence[Row]) -> None:
    present = {row.label for row in rows}
    if rows and not any(row.known for row in rows):
        return  # an archive of other cells alone
    if missing := [label for label in CLASSES if label not in present]:
        raise DataError(
            f"{archive}: no images of {', '.join(missing)}; each class needs a folder of its name"
        )


def checked_rows(images: ImageArchive, rows: Sequence[Row]) -> Iterable[Row]:
    """Decode every file and yield its row with its sha256; raise DataError if one does not decode."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(rows), 256):
            chunk = rows[start : start + 256]
            contents = [images.read(row.path) for row in chunk]
            yield from pool.map(checked_row, chunk, contents)


def checked_row(row: Row, data: bytes) -> Row:
    try:
        decode(data)
    except RequestError as error:
        raise DataError(
            f"{row.archive}: {row.path} does not decode ({error.detail}); "
            "replace it or download the archive again"
        ) from error
    return replace(row, sha256=hashlib.sha256(data).hexdigest())


def read_sources() -> dict[str, tuple[str, bool]]:
    """Read Kaggle's file → (photo, whether the match is certain), derived by matching image features."""
    with SOURCES.open(newline="") as file:
        return {
            line["file"]: (f"bccd/{line['photo']}", line["certain"] == "1") for line in csv.DictReader(file)
        }


def write_manifest(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows({**asdict(row), "certain": int(row.certain)} for row in rows)


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
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or []
    known = [field.name for field in fields(Row)]
    if missing := [name for name in known if name not in columns and name != "laboratory"]:
        raise ValueError(f"it lacks the columns {', '.join(missing)}")
    if unknown := [name for name in columns if name not in known]:
        raise ValueError(f"it has the unknown columns {', '.join(unknown)}")
    rows: dict[tuple[str, str], Row] = {}
    for line in reader:
        row = _row(line, reader.line_num)
        if rows.setdefault((row.archive, row.path), row) is not row:
            raise ValueError(f"line {reader.line_num} repeats an image")
    if not rows:
        raise ValueError("it has no images")
    if not text.endswith("\n"):
        raise ValueError(f"line {reader.line_num} is cut off")
    return [*rows.values()]


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
