"""Classes or sources of files by name: from a JSON object, a two-column table or a regular expression.

The table is what people call a CSV: separated by commas, semicolons or tabs, in UTF-8 or UTF-16, with or
without a header. Names and values are compared as people read them (`spelling`).
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from app.archives.pattern_search import decode, encode, pattern_child, search
from app.archives.spelling import composed, did_you_mean, find_class, path_key
from app.child_process import Child
from app.errors import BadLabels, TooLarge
from app.units import MIB

MAX_LINE = 8192  # characters of a line of CSV; bytes of a text in JSON
MAX_LINES = 64  # that one row of CSV may span, by line ends in quotes
_HEADER = re.compile("(image|img|picture|photo|cell)?s?(file)?(name|path|id)?")  # of the names' column
_DELIMITERS = (",", ";", "\t")  # the first of those that fit the same is taken
_SAMPLE = 64 * 1024  # bytes, and rows, that the delimiter is told by
_SAMPLE_ROWS = 200
_FILE = re.compile(r"\.[A-Za-z]{2,4}[0-9]?$")  # how the name of a file ends
_EXCEL = re.compile(r'"?sep=([,;\t])', re.IGNORECASE)  # a table's first line may tell Excel the delimiter
_BOM = "\ufeff".encode()

# One entry of a JSON object at a time, in bounded time and memory: json.loads would hold the interpreter lock
# for the whole object, and take many times its bytes.
_SPACE = rb"[ \t\r\n]{0,4096}+"
_TEXT = rb'"(?:[^"\\\x00-\x1f]|\\.){0,%d}+"' % MAX_LINE
_OPEN = re.compile(_SPACE + rb"\{" + _SPACE)
_NAME = re.compile(b"(" + _TEXT + b")" + _SPACE + b":" + _SPACE, re.DOTALL)
_VALUE = re.compile(b"(" + _TEXT + rb"|-?[0-9]{1,4096}+(?![.eE]))" + _SPACE + b"([,}])" + _SPACE, re.DOTALL)


class Texts(Mapping[str, str]):
    """Texts by file name, found by every spelling of the name, and kept as UTF-8.

    As `str`, one character outside the BMP would make Python keep four bytes for each character of its text.
    """

    def __init__(self) -> None:
        self._texts: dict[bytes, bytes] = {}

    def add(self, name: str, text: str) -> bool:
        """Return whether the name was new, or had the same text."""
        encoded = encode(composed(text))
        return self._texts.setdefault(_key(name), encoded) == encoded

    def encoded(self, name: str) -> bytes | None:
        return self._texts.get(_key(name))

    def __getitem__(self, name: str) -> str:
        return decode(self._texts[_key(name)])

    def __iter__(self) -> Iterator[str]:
        return map(decode, self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def parse_mapping(data: bytes, most: float = math.inf) -> Texts:
    """Return file name → class or source, from a JSON object or a table of two columns.

    Raise TooLarge for more than `most` entries, and BadLabels, which gives the line or entry and never a file
    name, since names may be a patient's.
    """
    data = _utf8(data)
    rows = _json_rows(data) if _OPEN.match(data) else _csv_rows(data)
    mapping = Texts()
    for number, (place, name, value) in enumerate(rows, 1):
        if number > most:
            raise TooLarge(f"the labels or sources have more than {most} entries")
        if not name or not value:
            raise BadLabels(f"{place} has an empty file name or value")
        if not mapping.add(name, value):
            raise BadLabels(f"{place} repeats a file name with a different value")
    if not mapping:
        raise BadLabels("the labels or sources contain no file names")
    return mapping


def read_mapping(path: Path) -> Texts:
    """Return file name → class or source from a file. Raise BadLabels, which names the file."""
    try:
        return parse_mapping(path.read_bytes())
    except OSError as error:
        raise BadLabels(f"{path} cannot be read: {error.strerror}") from None
    except BadLabels as error:
        raise BadLabels(f"{path}: {error.detail}") from None


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
    """Return class indices: of names as in `find_class`; indices are returned unchecked.

    field: the name of the values in the error. Raise BadLabels for an unknown name.
    """
    classes = {label.casefold(): index for index, label in enumerate(labels)}
    indices = []
    for position, value in enumerate(values):
        index = find_class(value, classes) if isinstance(value, str) else value
        if index is None:
            question = did_you_mean([str(value)], labels)
            raise BadLabels(f"{field}[{position}] is none of {', '.join(labels)}; {question}".rstrip("; "))
        indices.append(index)
    return indices


def _key(name: str) -> bytes:
    return encode(path_key(name))


def _utf8(data: bytes) -> bytes:
    """Return the text in UTF-8 without a byte order mark. Excel and PowerShell write UTF-16."""
    encoding = _utf16(data[:2])
    if encoding is None:
        return data.removeprefix(_BOM)
    decoder = codecs.getincrementaldecoder(encoding)()
    starts = range(0, len(data), MIB)  # a piece at a time, since each holds the interpreter lock
    try:
        parts = (decoder.decode(data[i : i + MIB], i + MIB >= len(data)).encode() for i in starts)
        return b"".join(parts).removeprefix(_BOM)
    except UnicodeDecodeError:
        raise BadLabels("the table is not UTF-16 text, as its first bytes say") from None


def _utf16(start: bytes) -> str | None:
    """Return the encoding of a text that begins with these two bytes, None unless it is UTF-16."""
    if start == codecs.BOM_UTF16_LE or (start[1:] == b"\0" != start[:1]):
        return "utf-16-le"
    if start == codecs.BOM_UTF16_BE or (start[:1] == b"\0" != start[1:]):
        return "utf-16-be"
    return None


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
            raise BadLabels(f"the text is not a JSON object of short texts: see entry {number}")
        value = _VALUE.match(data, name.end())
        if value is None:
            raise BadLabels(
                f"the value of entry {number} of the JSON object is neither a short text nor a whole number"
            )
        yield f"entry {number}", _loads(name[1], number), _loads(value[1], number)
        position, end = value.end(), value[2]
    if data[position : position + MAX_LINE].strip(b" \t\r\n") or len(data) > position + MAX_LINE:
        raise BadLabels("the text is not a JSON object: something follows its end")


def _loads(literal: bytes, number: int) -> str:
    try:
        return str(json.loads(literal)).strip()
    except ValueError:
        raise BadLabels(f"entry {number} of the JSON object is not JSON in UTF-8") from None


def _csv_rows(data: bytes) -> Iterator[tuple[str, str, str]]:
    lines = _Lines(data)
    reader = csv.reader(lines, delimiter=_delimiter(data), skipinitialspace=True, strict=True)
    first = True
    while True:
        lines.of_row = 0
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise BadLabels(f"line {reader.line_num} is not CSV: {error}") from None
        except UnicodeDecodeError:
            raise BadLabels("the table is neither UTF-8 nor UTF-16 text: save it as `CSV UTF-8`") from None
        if row is None:
            return
        cells = _cells(row)
        if not cells or (reader.line_num == 1 and cells[0][:4].lower() == "sep="):
            continue
        is_header, first = first and _is_header(cells), False
        if is_header:
            continue
        if len(cells) != 2:
            raise BadLabels(
                f"line {reader.line_num} has {len(cells)} columns instead of two (by comma, semicolon or tab)"
            )
        yield f"line {reader.line_num}", cells[0], cells[1]


def _cells(row: Sequence[str]) -> list[str]:
    """Return the cells of a row without the empty columns that Excel adds; none, if all are empty."""
    cells = [cell.strip() for cell in row]
    while len(cells) > 2 and not cells[-1]:
        cells.pop()
    return cells if any(cells) else []


def _is_header(cells: Sequence[str]) -> bool:
    return _HEADER.fullmatch(re.sub("[ _-]", "", cells[0].lower())) is not None and cells[0] != ""


def _delimiter(data: bytes) -> str:
    """Return the delimiter that makes two columns of most rows of the table's start."""
    text = data[:_SAMPLE].decode(errors="replace")
    told = _EXCEL.match(text)
    if told is not None:
        return told[1]
    return max(_DELIMITERS, key=lambda delimiter: _fit(text, delimiter))


def _fit(text: str, delimiter: str) -> tuple[int, int]:
    """Return how many rows have two columns, and in how many the first ends like the name of a file."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [_cells(row) for row in islice(reader, _SAMPLE_ROWS)]
    except csv.Error:
        return 0, 0
    pairs = [cells for cells in rows if len(cells) == 2]
    return len(pairs), sum(_FILE.search(name) is not None for name, _ in pairs)


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
