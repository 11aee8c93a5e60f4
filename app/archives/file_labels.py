"""Classes or sources of files by name: from a JSON object, a two-column CSV or a regular expression."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.errors import BadLabels

MAX_PATTERN = 256  # characters
_HEADERS = frozenset({"file", "filename", "file_name", "image", "name", "path"})
_SEARCH = """
import json, re, sys
pattern, names = json.load(sys.stdin)
search = re.compile(pattern).search
json.dump([match and match[1] for match in map(search, names)], sys.stdout)
"""


def parse_mapping(data: bytes) -> dict[str, str]:
    """Return file name → class or source. A CSV may have a header row, a byte order mark and CRLF.

    Raise BadLabels, which gives the line or entry and never a file name, since names may be a patient's.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadLabels("the labels or groups are not UTF-8 text") from None
    rows = _json_rows(text) if text.lstrip().startswith("{") else _csv_rows(text)
    mapping: dict[str, str] = {}
    for place, name, value in rows:
        if not name or not value:
            raise BadLabels(f"{place} has an empty file name or value")
        if mapping.setdefault(name, value) != value:
            raise BadLabels(f"{place} repeats a file name with a different value")
    if not mapping:
        raise BadLabels("the labels or groups contain no file names")
    return mapping


def assign_groups(
    names: Sequence[str], grouping: Mapping[str, str] | str, *, limit_s: float = 10.0
) -> list[str]:
    """Return the source of each name.

    grouping: file name → source, or a pattern whose first group captures the source. A pattern may block
    for limit_s. Raise BadLabels, also if any name has no source.
    """
    groups: list[str | None]
    if isinstance(grouping, str):
        groups, fault = _search(names, grouping, limit_s), "do not match the group pattern"
    else:
        groups, fault = [grouping.get(name) for name in names], "are missing from the groups"
    assigned = [group for group in groups if group]
    if len(assigned) < len(names):
        raise BadLabels(f"{len(names) - len(assigned)} of {len(names)} file names {fault}")
    return assigned


def _json_rows(text: str) -> Iterable[tuple[str, str, str]]:
    try:
        # A list of pairs instead of a dict, to detect a name given twice.
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        raise BadLabels("the labels or groups are not a JSON object") from None
    for number, (name, value) in enumerate(pairs, 1):
        yield f"entry {number}", name.strip(), _scalar(value, number)


def _scalar(value: Any, number: int) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadLabels(f"the value of entry {number} is neither text nor a whole number")


def _csv_rows(text: str) -> Iterable[tuple[str, str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        raise BadLabels(f"line {reader.line_num} is not CSV: {error}") from None
    if rows and rows[0][1][0].lower() in _HEADERS:
        del rows[0]
    for line, row in rows:
        if len(row) != 2:
            raise BadLabels(f"line {line} has {len(row)} columns, not two")
        yield f"line {line}", row[0], row[1]


def _search(names: Sequence[str], pattern: str, limit_s: float) -> list[str | None]:
    _check_pattern(pattern)
    # A pattern can backtrack for ever while `re` holds the interpreter lock; only a process can be stopped.
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _SEARCH],
            input=json.dumps([pattern, list(names)]).encode(),
            capture_output=True,
            timeout=limit_s,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise BadLabels(f"the group pattern took more than {limit_s:g} s: make it simpler") from None
    except subprocess.CalledProcessError:
        raise BadLabels("matching the file names against the group pattern failed") from None
    captured: list[str | None] = json.loads(done.stdout)
    return captured


def _check_pattern(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise BadLabels(f"the group pattern has over {MAX_PATTERN} characters")
    try:
        group_count = re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise BadLabels(f"the group pattern is not a regular expression: {error}") from None
    if not group_count:
        raise BadLabels("the group pattern has no group (…) to capture the source")
