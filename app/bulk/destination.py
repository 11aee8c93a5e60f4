"""The destination: a folder with one Parquet file for each part, and a file that describes the run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
from pyarrow import ArrowInvalid, parquet

from app.archives.image_files import Kind, LeftOut
from app.bulk.location import DRAFT, Location
from app.errors import EngineError, LeukoError, Unusable
from app.inference.offline import Outcome
from app.inference.pipeline import Answer

ABOUT = "_leuko.json"  # readers of Parquet folders ignore names that begin with an underscore
LEFT_OUT = b"leuko.left_out"  # in the metadata of a part's schema
ATTEMPTS = 4  # at one part: Ray Data would retry without end
AT_ONCE = 16  # parts whose files are read concurrently: object stores have a high latency
FRAME = ("left", "top", "width", "height")
ROWS = 10_000  # held as Python objects at a time
PART = re.compile(r"part-(\d{6,})\.parquet")


@dataclass(frozen=True)
class ScoredPart:
    """rows: images, of which errors have no prediction. left_out: files of a tar that are no images."""

    rows: int
    errors: int
    left_out: LeftOut = field(default_factory=LeftOut)


class Destination:
    def __init__(self, location: Location) -> None:
        self._location = location

    def begin(self, about: Mapping[str, Any]) -> dict[int, ScoredPart]:
        """Start or continue a run; return the parts that are done, by index.

        about: source, parts and model. Raise Unusable if the folder holds anything else, or another run.
        """
        files = self._names()
        names = [name for name in files if name == ABOUT or not name.startswith("_")]
        if ABOUT in names:
            earlier = self._earlier()
            changed = [key for key in about if earlier.get(key) != about[key]]
            if changed:
                raise Unusable(
                    f"{self._location.path} holds a run with different {' and '.join(changed)} "
                    "(parts: files of the source were added, removed or changed): choose another destination"
                )
            self._delete_drafts(files)
        elif names:
            raise Unusable(
                f"{self._location.path} is not empty and holds no earlier run: choose another destination"
            )
        else:
            (self._location / ABOUT).write(json.dumps(about, indent=2).encode() + b"\n")
        indices = _indices(names)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return {i: part for i, part in zip(indices, pool.map(self.find, indices), strict=True) if part}

    def _earlier(self) -> dict[str, Any]:
        """Return what the earlier run was about. Raise Unusable if its file is broken."""
        try:
            # Runs before there was a choice were of one cell an image.
            return {"cells": "one"} | dict(json.loads((self._location / ABOUT).read()))
        except (ValueError, TypeError, RecursionError):
            raise Unusable(
                f"{self._location.path}/{ABOUT} is empty or broken: choose another destination"
            ) from None

    def _delete_drafts(self, files: Iterable[str]) -> None:
        """Delete what killed workers left behind."""
        for name in files:
            if DRAFT.fullmatch(name):
                with suppress(OSError):
                    (self._location / name).delete()

    @property
    def is_begun(self) -> bool:
        return (self._location / ABOUT).exists

    def _names(self) -> list[str]:
        files = self._location.files()
        return [*files.stamps, *files.unread]

    def parts(self) -> list[int]:
        return _indices(self._names())

    def find(self, index: int) -> ScoredPart | None:
        """Return a part that is done; None if it has no file, or an incomplete one."""
        part = self._location / _name(index)
        if not part.exists:
            return None
        try:
            with part.open() as raw, parquet.ParquetFile(raw) as file:
                columns = [name for name in ("error", "cell") if name in file.schema_arrow.names]
                table, left_out = file.read(columns), _parse(file.schema_arrow.metadata)
        except ArrowInvalid:
            return None
        return _summary(table, left_out)

    @contextmanager
    def attempt(self, index: int) -> Iterator[None]:
        """Count the attempts at a part in a file, which stays behind if the worker dies.

        Raise EngineError after `ATTEMPTS` lost workers.
        """
        counter = self._location / f"_tried-{index:06d}"
        lost = int(counter.read()) if counter.exists else 0
        counter.write(str(lost + 1).encode())
        try:
            if lost >= ATTEMPTS:
                raise EngineError(f"{lost} workers were lost while they scored this part")
            yield
        finally:
            counter.delete()

    def write(
        self,
        index: int,
        outcomes: Iterable[Outcome],
        labels: Sequence[str],
        left_out: LeftOut,
        *,
        all_cells: bool = False,
    ) -> ScoredPart:
        """Write a part. left_out: complete once the outcomes have been consumed."""
        table = tabulate(outcomes, labels, all_cells=all_cells)
        if left_out:
            text = json.dumps({kind.name: count for kind, count in left_out.items()})
            table = table.replace_schema_metadata({LEFT_OUT: text.encode()})
        (self._location / _name(index)).write_table(table)
        return _summary(table, left_out)


def _summary(table: pa.Table, left_out: LeftOut) -> ScoredPart:
    """Count the images of a part: each has one row, or one for each of its cells, from cell 0 on."""
    images = table.num_rows
    if "cell" in table.column_names:
        images = sum(cell is None or cell == 0 for cell in table["cell"].to_pylist())
    return ScoredPart(images, table.num_rows - table["error"].null_count, left_out)


def tabulate(outcomes: Iterable[Outcome], labels: Sequence[str], *, all_cells: bool = False) -> pa.Table:
    """Return one row for each image, in order. With an error, the columns of the prediction are null.

    all_cells: one row for each leukocyte; an image without any has one, in which all but the path is null.
    """
    rows = (row for outcome in outcomes for row in _rows(outcome, labels, all_cells))
    schema = schema_of(labels, all_cells=all_cells)
    batches = []
    while chunk := [*islice(rows, ROWS)]:  # Arrow's rows take a tenth of the memory of Python's
        batches.append(pa.RecordBatch.from_pylist(chunk, schema))
    return pa.Table.from_batches(batches, schema)


def check_columns(labels: Sequence[str]) -> None:
    """Raise Unusable if a label is the name of another column."""
    if clash := sorted({*schema_of([], all_cells=True).names} & {*labels}):
        raise Unusable(f"the model's class {clash[0]} has the name of another column: give it another name")


def schema_of(labels: Sequence[str], *, all_cells: bool = False) -> pa.Schema:
    numbers = [(name, pa.float64()) for name in ("confidence", *labels, "ood_score")]
    places = [("cell", pa.int32()), *((name, pa.float64()) for name in FRAME)] if all_cells else []
    review = [("review", pa.bool_()), ("review_reasons", pa.list_(pa.string()))]
    texts = [("path", pa.string()), *places, ("label", pa.string())]
    return pa.schema([*texts, *numbers, *review, ("error", pa.string())])


def _rows(outcome: Outcome, labels: Sequence[str], all_cells: bool) -> Iterator[dict[str, Any]]:
    # File names may hold bytes outside UTF-8; Parquet strings may not.
    path = outcome.image.name.encode("utf-8", "backslashreplace").decode()
    answer = outcome.answer
    if isinstance(answer, LeukoError):
        yield {"path": path, "error": f"{answer.code}: {answer.detail}"}
    elif not answer.cells:
        yield {"path": path}
    else:
        for cell in answer.cells:
            yield _row(path, cell, labels, all_cells)


def _row(path: str, cell: Answer, labels: Sequence[str], all_cells: bool) -> dict[str, Any]:
    prediction = cell.prediction
    places = {"cell": cell.cell} | {name: getattr(cell.frame, name) for name in FRAME} if all_cells else {}
    return {
        "path": path,
        **places,
        "label": prediction.label,
        "confidence": prediction.confidence,
        **dict(zip(labels, prediction.probabilities, strict=True)),
        "ood_score": prediction.ood_score,
        "review": prediction.review,
        "review_reasons": list(prediction.review_reasons),
    }


def _parse(metadata: Mapping[bytes, bytes] | None) -> LeftOut:
    text = (metadata or {}).get(LEFT_OUT, b"{}")
    return LeftOut({Kind[name]: count for name, count in json.loads(text).items()})


def _indices(names: Iterable[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := PART.fullmatch(name)))


def _name(index: int) -> str:
    return f"part-{index:06d}.parquet"
