"""Where the rows go: a folder with one Parquet file for each part, and what they are of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import ArrowInvalid, parquet

from app.bulk.location import Location
from app.errors import EngineError, Unusable
from app.inference.offline import Outcome
from app.inference.pipeline import Answer

ABOUT = "_leuko.json"  # readers of Parquet folders pass over names with an underscore
ATTEMPTS = 4  # at a part: Ray Data would go on without end
AT_ONCE = 16  # parts that are looked at: an object store takes its time for each
PART = re.compile(r"part-(\d{6,})\.parquet")


@dataclass(frozen=True)
class Written:
    rows: int
    errors: int


class Destination:
    def __init__(self, location: Location) -> None:
        self._location = location

    def begin(self, about: Mapping[str, Any]) -> dict[int, Written]:
        """The parts that are there already. Raises Unusable where they are of something else."""
        names = [name for name in self._location.files() if name == ABOUT or not name.startswith("_")]
        if ABOUT in names:
            found = json.loads((self._location / ABOUT).read())
            changed = [key for key in about if found.get(key) != about[key]]
            if changed:
                raise Unusable(
                    f"{self._location.path} was begun with another {' and another '.join(changed)} "
                    "(parts: files of the source came, went or changed): name another destination"
                )
        elif names:
            raise Unusable(f"{self._location.path} is not empty, and not a scoring that was begun")
        else:
            (self._location / ABOUT).write(json.dumps(about, indent=2).encode() + b"\n")
        indices = _indices(names)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return {i: one for i, one in zip(indices, pool.map(self.find, indices), strict=True) if one}

    @property
    def is_begun(self) -> bool:
        return (self._location / ABOUT).exists

    def parts(self) -> list[int]:
        return _indices(self._location.files())

    def find(self, index: int) -> Written | None:
        """None also where it was written in part only."""
        part = self._location / _name(index)
        if not part.exists:
            return None
        try:
            with part.open() as raw, parquet.ParquetFile(raw) as file:
                errors = file.read(["error"])["error"]
        except ArrowInvalid:
            return None
        return Written(len(errors), len(errors) - errors.null_count)

    @contextmanager
    def trying(self, index: int) -> Iterator[None]:
        """Those that end their worker leave a count behind. Raises EngineError for one too many."""
        count = self._location / f"_tried-{index:06d}"
        tried = int(count.read()) if count.exists else 0
        count.write(str(tried + 1).encode())
        try:
            if tried >= ATTEMPTS:
                raise EngineError(f"{tried} workers were lost while they were at it")
            yield
        finally:
            count.delete()

    def write(self, index: int, outcomes: Iterable[Outcome], labels: Sequence[str]) -> Written:
        table = tabulate(outcomes, labels)
        (self._location / _name(index)).write_table(table)
        return Written(table.num_rows, table.num_rows - table["error"].null_count)


def tabulate(outcomes: Iterable[Outcome], labels: Sequence[str]) -> pa.Table:
    """One row an image, in order; where it has an error, the columns of its answer are null."""
    rows = [_row(outcome, labels) for outcome in outcomes]
    schema = schema_of(labels)
    return pa.table({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema)


def schema_of(labels: Sequence[str]) -> pa.Schema:
    numbers = [(name, pa.float64()) for name in ("confidence", *labels, "ood_score")]
    texts = [("path", pa.string()), ("label", pa.string())]
    return pa.schema([*texts, *numbers, ("review", pa.bool_()), ("error", pa.string())])


def _row(outcome: Outcome, labels: Sequence[str]) -> dict[str, Any]:
    # Names of files may hold bytes outside UTF-8; Parquet's strings may not.
    path = outcome.image.name.encode("utf-8", "backslashreplace").decode()
    if not isinstance(outcome.answer, Answer):
        return {"path": path, "error": f"{outcome.answer.code}: {outcome.answer.detail}"}
    found = outcome.answer.prediction
    return {
        "path": path,
        "label": found.label,
        "confidence": found.confidence,
        **dict(zip(labels, found.probabilities, strict=True)),
        "ood_score": found.ood_score,
        "review": found.review,
    }


def _indices(names: Iterable[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := PART.fullmatch(name)))


def _name(index: int) -> str:
    return f"part-{index:06d}.parquet"
