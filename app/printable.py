"""What is printed of texts that others chose, such as the names of files."""

from __future__ import annotations

import sys


def printable(text: str) -> str:
    """Replace unprintable characters: a file name may hold terminal commands and bytes outside UTF-8."""
    return "".join(character if character.isprintable() else "�" for character in text)


def complain(text: str, command: str = "leuko") -> None:
    """Print a line on standard error."""
    print(f"{command}: {printable(text)}", file=sys.stderr)
