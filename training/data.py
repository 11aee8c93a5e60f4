"""From an archive of pictures to a manifest: one row a file, with its class, split and source photo.

The photo, not the file, is the unit: the Kaggle set is 351 photos blown up to 12,444 files, so a
split by file puts near copies of one photo on both sides. `sources.csv` says which photo each file
was made from.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from app.engine.bundle import CLASSES
from app.errors import RequestError
from app.imaging.decode import decode
from training.errors import DataError
from training.pictures import Pictures

SPLITS = ("TRAIN", "TEST", "TEST_SIMPLE")
KAGGLE_SLUG = "paultimothymooney/blood-cells"
KAGGLE_COUNTS = {
    "TRAIN": (2497, 2483, 2478, 2499),
    "TEST": (623, 620, 620, 624),
    "TEST_SIMPLE": (13, 6, 4, 48),
}
SOURCES = Path(__file__).with_name("sources.csv")


@dataclass(frozen=True)
class Row:
    """One picture."""

    archive: str  # the zip or folder it is in
    path: str  # inside that archive
    label: str  # class name
    split: str  # train, val, test or test_simple
    source: str  # the photo, slide or patient it comes from
    certain: bool  # the source is sure; rows that are not are kept out of training and validation
    sha256: str  # of the file


Progress = Callable[[Iterable[Row], int], Iterable[Row]]


def build_manifest(
    path: Path,
    *,
    sources: dict[str, str] | None = None,
    leave_out: Collection[str] = (),
    progress: Progress | None = None,
) -> list[Row]:
    """Check that the archive is whole (counts; every file decodes) and describe each picture.

    The Kaggle archive is known by its TRAIN and TEST folders. Any other archive needs one folder a
    class; `sources` (path → photo or patient) groups its files, else each file is its own source.
    Pictures in folders named in `leave_out` are passed over.
    """
    pictures = Pictures(path)
    names = [name for name in pictures.names() if not any(part in leave_out for part in name.split("/")[:-1])]
    kaggle = [row for name in names if (row := kaggle_row(path, name))]
    rows = with_kaggle_sources(kaggle) if kaggle else [folder_row(path, name, sources) for name in names]
    check_classes(path, rows)
    checked = checked_rows(pictures, rows)
    return list(progress(checked, len(rows)) if progress else checked)


def kaggle_row(archive: Path, name: str) -> Row | None:
    parts = name.split("/")
    if len(parts) < 3 or parts[-3] not in SPLITS or parts[-2].lower() not in CLASSES:
        return None
    return Row(str(archive), name, parts[-2].lower(), parts[-3].lower(), "", True, "")


def with_kaggle_sources(rows: Sequence[Row]) -> list[Row]:
    """Check the counts, then fill in each file's photo; TEST_SIMPLE is not in the table and is dropped."""
    found = Counter((row.split.upper(), row.label) for row in rows)
    for split, counts in KAGGLE_COUNTS.items():
        for label, expected in zip(CLASSES, counts, strict=True):
            if found[split, label] != expected:
                raise DataError(
                    f"{split}/{label.upper()} has {found[split, label]} pictures, Kaggle's has {expected}: "
                    "it is incomplete or changed; download it again"
                )
    table = read_sources()
    known = [row for row in rows if row.split != "test_simple"]
    return [
        replace(row, source=table[key][0], certain=table[key][1])
        for row in known
        if (key := file_key(row.path))
    ]


def file_key(path: str) -> str:
    """`TRAIN/MONOCYTE/_0_1173.jpeg`, wherever the archive puts it."""
    return "/".join(path.split("/")[-3:])


def folder_row(archive: Path, name: str, sources: dict[str, str] | None) -> Row:
    label = next((part.lower() for part in reversed(name.split("/")[:-1]) if part.lower() in CLASSES), None)
    if label is None:
        raise DataError(
            f"{archive}: {name} is in no folder named after a class ({', '.join(CLASSES)}); "
            "--leave-out names folders to pass over"
        )
    if sources is not None and name not in sources:
        raise DataError(f"{archive}: {name} has no line in the table of sources")
    source = sources[name] if sources else f"{archive.stem}/{name}"
    return Row(str(archive), name, label, "train", source, True, "")


def check_classes(archive: Path, rows: Sequence[Row]) -> None:
    present = {row.label for row in rows}
    if missing := [label for label in CLASSES if label not in present]:
        raise DataError(
            f"{archive}: no pictures of {', '.join(missing)}; each class needs a folder of its name"
        )


def checked_rows(pictures: Pictures, rows: Sequence[Row]) -> Iterable[Row]:
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(rows), 256):
            chunk = rows[start : start + 256]
            contents = [pictures.read(row.path) for row in chunk]
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
    """Kaggle's file → (photo, whether the match is sure); derived by matching image features."""
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
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        return [_row(line) for line in lines]
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; make it with `leuko-train data ARCHIVE`") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not a manifest ({error}); make it again with `leuko-train data`"
        ) from error


def fingerprint(rows: Sequence[Row]) -> str:
    """sha256 over the sorted hashes, classes and splits: names what a model was trained on."""
    lines = sorted(f"{row.sha256} {row.label} {row.split}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def download(folder: Path) -> Path:
    """Fetch Kaggle's archive through kagglehub; needs a network and a Kaggle account's token.

    kagglehub names folders by version, recipes name archives: `folder/blood-cells` is a link to its folder.
    """
    import kagglehub

    link = folder / Path(KAGGLE_SLUG).name
    folder.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(Path(kagglehub.dataset_download(KAGGLE_SLUG)).absolute(), target_is_directory=True)
    return link


def _row(line: dict[str, Any]) -> Row:
    return Row(**{**line, "certain": line["certain"] == "1"})
