"""What is printed of texts that others chose, such as the names of files."""

from __future__ import annotations

import sys
from collections.abc import Sequence

MOST_NAMED = 5  # files or folders in a message


def printable(text: str) -> str:
    """Replace unprintable characters: a file name may hold terminal commands and bytes outside UTF-8."""
    return "".join(character if character.isprintable() else "�" for character in text)


def few(texts: Sequence[str], joint: str = "; ") -> str:
    """Join texts; of many only the first, and how many there are beside them."""
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return joint.join(texts[:MOST_NAMED]) + more


def complain(text: str, command: str = "leuko") -> None:
    """Print a line on standard error."""
    print(f"{command}: {printable(text)}", file=sys.stderr)
