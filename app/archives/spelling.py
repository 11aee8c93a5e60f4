"""Names compared as people read them, however a system or a person spelled them."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping
from difflib import SequenceMatcher

_LONGEST = 255  # characters between two slashes that a file system allows; normalising takes their square
_LONGEST_CLASS = 64  # characters of a name that is compared with the classes for likeness
MOST_COMPARED = 100  # names
_LIKE = 0.75  # difflib's ratio from which a name is taken for a misspelled class


def composed(text: str) -> str:
    """Return the text in Unicode's form NFC: an ü is one character, though macOS may have written two."""
    if text.isascii():
        return text
    parts = text.split("/")
    forms = [part if len(part) > _LONGEST else unicodedata.normalize("NFC", part) for part in parts]
    return text if forms == parts else "/".join(forms)


def path_key(path: str) -> str:
    """Return a text that is equal for paths that people take for the same.

    Paths are composed; a backslash is a slash, as in tables made on Windows; a leading `./` is nothing.
    """
    return composed(path.replace("\\", "/")).removeprefix("./")


def find_class(name: str, classes: Mapping[str, int]) -> int | None:
    """Return the class of a folder or label of this name, None if it is none.

    Case, surrounding blanks and a plural s make no difference. classes: casefolded name → index.
    """
    if name in classes:
        return classes[name]
    key = composed(name).casefold().strip()
    spellings = (key, key.removesuffix("s"), f"{key}s")
    return next((classes[spelling] for spelling in spellings if spelling in classes), None)


def did_you_mean(names: Iterable[str], classes: Collection[str]) -> str:
    """Return a question that names the classes which some of the names are nearly, else an empty text.

    The names themselves are not repeated: they may be a patient's.
    """
    meant: set[str] = set()
    for name, _ in zip(names, range(MOST_COMPARED), strict=False):
        key = composed(name[:_LONGEST_CLASS]).casefold().strip()
        meant.update(one for one in classes if _is_like(key, one))
    return f"did you mean {', '.join(sorted(meant))}?" if meant else ""


def _is_like(name: str, label: str) -> bool:
    return label in name or SequenceMatcher(None, name, label, autojunk=False).ratio() >= _LIKE
