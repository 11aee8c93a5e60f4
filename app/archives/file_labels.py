"""Classes or sources of files by name: from a JSON object, a two-column CSV or a regular expression."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from app.archives.pattern_search import decode, encode, pattern_child, search
from app.child_process import Child
from app.errors import BadLabels, TooLarge

MAX_LINE = 8192  # characters of a line of CSV; bytes of a text in JSON
MAX_LINES = 64  # that one row of CSV may span, by line ends in quotes
_HEADERS = frozenset({"file", "filename", "file_name", "image", "name", "path"})

# One entry of a JSON object at a time, in bounded time and memory: json.loads would hold the interpreter lock
# for the whole object, and take many times its bytes.
_SPACE = rb"[ \t\r\n]{0,4096}+"
_TEXT = rb'"(?:[^"\\\x00-\x1f]|\\.){0,%d}+"' % MAX_LINE
_OPEN = re.compile(_SPACE + rb"\{" + _SPACE)
_NAME = re.compile(b"(" + _TEXT + b")" + _SPACE + b":" + _SPACE, re.DOTALL)
_VALUE = re.compile(b"(" + _TEXT + rb"|-?[0-9]{1,4096}+(?![.eE]))" + _SPACE + b"([,}])" + _SPACE, re.DOTALL)


class Texts(Mapping[str, str]):
    """Texts by file name, kept as UTF-8.

    As `str`, one character outside the BMP would make Python keep four bytes for each character of its text.
    """

    def __init__(self) -> None:
        self._texts: dict[bytes, bytes] = {}

    def add(self, name: str, text: str) -> bool:
        """Return whether the name was new, or had the same text."""
        encoded = encode(text)
        return self._texts.setdefault(encode(name), encoded) == encoded

    def encoded(self, name: str) -> bytes | None:
        return self._texts.get(encode(name))

    def __getitem__(self, name: str) -> str:
        return decode(self._texts[encode(name)])

    def __iter__(self) -> Iterator[str]:
        return map(decode, self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def parse_mapping(data: bytes, most: float = math.inf) -> Texts:
    """Return file name → class or source. A CSV may have a header row, a byte order mark and CRLF.

    Raise TooLarge for more than `most` entries, and BadLabels, which gives the line or entry and never a file
    name, since names may be a patient's.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    rows = _json_rows(data) if _OPEN.match(data) else _csv_rows(data)
    mapping = Texts()
    for number, (place, name, value) in enumerate(rows, 1):
        if number > most:
            raise TooLarge(f"the labels or groups have more than {most} entries")
        if not name or not value:
            raise BadLabels(f"{place} has an empty file name or value")
        if not mapping.add(name, value):
            raise BadLabels(f"{place} repeats a file name with a different value")
    if not mapping:
        raise BadLabels("the labels or groups contain no file names")
    return mapping


def assign_groups(names: Sequence[str], grouping: Texts | str, child: Child | None = None) -> list[bytes]:
    """Return the source of each name, in UTF-8.

    grouping: file name → source, or a pattern whose first group captures the source, which blocks until
    `child` has searched the names. Raise BadLabels, also if any name has no source.
    """
    groups: list[bytes | None]
    if isinstance(grouping, str):
        groups, fault = search(names, grouping, child or pattern_child()), "do not match the group pattern"
    else:
        groups, fault = [grouping.encoded(name) for name in names], "are missing from the groups"
    assigned = [group for group in groups if group]
    if len(assigned) < len(names):
        raise BadLabels(f"{len(names) - len(assigned)} of {len(names)} file names {fault}")
    return assigned


def class_indices(field: str, values: Sequence[str | int], labels: Sequence[str]) -> list[int]:
    """Return class indices: of names, in any case; indices are returned unchecked.

    field: the name of the values in the error. Raise BadLabels for an unknown name.
    """
    index_of = {label.casefold(): index for index, label in enumerate(labels)}
    indices = [index_of.get(value.casefold(), -1) if isinstance(value, str) else value for value in values]
    for position, value in enumerate(values):
        if isinstance(value, str) and indices[position] < 0:
            raise BadLabels(f"{field}[{position}] is none of {', '.join(labels)}")
    return indices


def _json_rows(data: bytes) -> Iterator[tuple[str, str, str]]:
    start = _OPEN.match(data)
    assert start is not None
    position, number, end = start.end(), 0, b","
    if data.startswith(b"}", position):
        position, end = position + 1, b"}"
    while end == b",":
        number += 1
        name = _NAME.match(data, position)
        if name is None:
            raise BadLabels(f"the labels or groups are not a JSON object of short texts: see entry {number}")
        value = _VALUE.match(data, name.end())
        if value is None:
            raise BadLabels(
                f"the value of entry {number} of the JSON object is neither a short text nor a whole number"
            )
        yield f"entry {number}", _loads(name[1], number), _loads(value[1], number)
        position, end = value.end(), value[2]
    if data[position : position + MAX_LINE].strip(b" \t\r\n") or len(data) > position + MAX_LINE:
        raise BadLabels("the labels or groups are not a JSON object: something follows its end")


def _loads(literal: bytes, number: int) -> str:
    try:
        return str(json.loads(literal)).strip()
    except ValueError:
        raise BadLabels(f"entry {number} of the labels or groups is not JSON in UTF-8") from None


def _csv_rows(data: bytes) -> Iterator[tuple[str, str, str]]:
    lines = _Lines(data)
    reader = csv.reader(lines, strict=True)
    first = True
    while True:
        lines.of_row = 0
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise BadLabels(f"line {reader.line_num} is not CSV: {error}") from None
        except UnicodeDecodeError:
            raise BadLabels("the labels or groups are not UTF-8 text") from None
        if row is None:
            return
        cells = [cell.strip() for cell in row]
        is_header, first = first and bool(cells) and cells[0].lower() in _HEADERS, first and not cells
        if not cells or is_header:
            continue
        if len(cells) != 2:
            raise BadLabels(f"line {reader.line_num} has {len(cells)} columns, not two")
        yield f"line {reader.line_num}", cells[0], cells[1]


class _Lines:
    """The lines of a text, of bounded length, for csv: one row of it could take the whole text."""

    def __init__(self, data: bytes) -> None:
        self._text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="")
        self._number = 0
        self.of_row = 0  # lines read of the current row

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_LINE + 1)
        self._number += 1
        self.of_row += 1
        if not line:
            raise StopIteration
        if len(line) > MAX_LINE:
            raise BadLabels(f"line {self._number} is not CSV: it has over {MAX_LINE} characters")
        if self.of_row > MAX_LINES:
            raise BadLabels(f"line {self._number} is not CSV: a row has over {MAX_LINES} lines")
        return line
