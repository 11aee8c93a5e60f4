"""What texts on the command line stand for."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from datetime import UTC, datetime


def moment(text: str) -> datetime:
    """ISO 8601; without an offset it is UTC, as the audit log is."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a time such as 2026-11-01T08:00+01:00") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if match is None or math.prod(found := (int(match[1]), int(match[2]))) == 0:
        raise ArgumentTypeError(f"{text!r} is not a width and height such as 320x240")
    return found
