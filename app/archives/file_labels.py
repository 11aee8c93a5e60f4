"""File names paired with classes or sources: from a JSON object, a two-column CSV or a pattern."""

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
    """file name → class or source; a CSV may have a header row, a byte order mark and CRLF."""
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
            raise BadLabels(f"{place} gives a file name a second, different value")
    if not mapping:
        raise BadLabels("the labels or groups name no file")
    return mapping


def assign_groups(
    names: Sequence[str], source: Mapping[str, str] | str, *, limit_s: float = 10.0
) -> list[str]:
    """The source of each name, looked up or captured by a pattern's first group; may block for limit_s."""
    found: list[str | None]
    if isinstance(source, str):
        found, manner = _search(names, source, limit_s), "do not match the group pattern"
    else:
        found, manner = [source.get(name) for name in names], "are missing from the groups"
    groups = [group for group in found if group]
    if len(groups) < len(names):
        raise BadLabels(f"{len(names) - len(groups)} of {len(names)} file names {manner}")
    return groups


def _json_rows(text: str) -> Iterable[tuple[str, str, str]]:
    try:
        # Pairs, not a dict, so that a name given twice is seen.
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
    raise BadLabels(f"entry {number} is neither text nor a whole number")


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
    # A pattern can backtrack for ever while `re` holds the interpreter: only a process can be stopped.
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _SEARCH],
            input=json.dumps([pattern, list(names)]).encode(),
            capture_output=True,
            timeout=limit_s,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise BadLabels(f"the group pattern took over {limit_s:g} s: make it simpler") from None
    except subprocess.CalledProcessError:
        raise BadLabels("the group pattern cannot be run on these file names") from None
    found: list[str | None] = json.loads(done.stdout)
    return found


def _check_pattern(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise BadLabels(f"the group pattern is over {MAX_PATTERN} characters")
    try:
        groups = re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise BadLabels(f"the group pattern is not a regular expression: {error}") from None
    if not groups:
        raise BadLabels("the group pattern has no group (…) to capture the source")
