"""The names of a manifest's classes, and which class a file's folder or the table of `--labels` gives it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from app.archives.labelled_archive import class_of
from app.archives.spelling import did_you_mean, find_class, path_key
from app.engine.bundle import check_labels
from training.errors import DataError


def parse_classes(text: str) -> tuple[str, ...]:
    """Parse `basophil,eosinophil,…`; the order is that of the class indices. Raise DataError."""
    names = [name.strip().lower() for name in text.split(",")]
    if not all(names):
        raise DataError(
            f"--classes {text!r} has an empty name: give names with a comma between them, without blanks"
        )
    return check_classes(names)


def check_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names. Raise DataError if they cannot be the labels of a bundle."""
    try:
        checked = check_labels(names)
    except ValueError as error:
        raise DataError(f"the classes {error}") from error
    for place, name in enumerate(checked):
        same = [other for other in checked[:place] if other in (name.removesuffix("s"), f"{name}s")]
        if same:
            raise DataError(f"{same[0]} and {name} are one class: a plural s makes no difference")
    return checked


class FileLabels:
    """Labels of files from a table of two columns: path or pattern, and the label that stands for the folder.

    A pattern has * or ?. Without a slash it is compared with the file's name, else with its whole path; paths
    may begin with the archive's title. The file's own line goes before patterns, which are tried in order.
    """

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = table
        self._patterns = [(name, label) for name, label in table.items() if "*" in name or "?" in name]
        self.unused = set(table)  # lines that were not needed so far

    def find(self, title: str, path: str) -> str | None:
        """Return the label of a file of an archive, None if the table has none."""
        key = path_key(path)
        places = (f"{path_key(title)}/{key}", key)
        for place in places:
            if place in self._table:
                return self._use(place, self._table[place])
        for pattern, label in self._patterns:
            compared = places if "/" in pattern else (PurePosixPath(key).name,)
            if any(fnmatchcase(each, pattern.replace("[", "[[]")) for each in compared):
                return self._use(pattern, label)
        return None

    def _use(self, line: str, label: str) -> str:
        self.unused.discard(line)
        return label


class Labelling:
    """Gives each file of the archives its class, or its type if it is a cell of no class.

    others: names of such types. Raise DataError if one of them is a class.
    """

    def __init__(
        self, classes: Sequence[str], others: Collection[str] = (), files: FileLabels | None = None
    ) -> None:
        self.classes = tuple(classes)
        indices = {label: index for index, label in enumerate(classes)}
        self.kinds = [*classes]
        for other in others:
            if (index := find_class(other, indices)) is not None:
                raise DataError(f"{classes[index]} is a class: leave it out of --others, or of --classes")
            self.kinds.append(other.casefold())
        self.places = {kind: place for place, kind in enumerate(self.kinds)}
        self.files = files

    def given(self, title: str, name: str) -> str | None:
        """Return the file's label in the table of `--labels`, None if it has none."""
        return None if self.files is None else self.files.find(title, name)

    def label(self, archive: Path, title: str, name: str) -> str:
        """Return the class or type of a file. Raise DataError if it has none."""
        given = self.given(title, name)
        if given is not None:
            place = find_class(given, self.places)
            fault, texts = f"has the label {given!r} in --labels, which is no class", [given]
        else:
            place = class_of(PurePosixPath(name), self.places)
            fault, texts = "is in no folder named after a class", name.split("/")[:-1]
        if place is None:
            raise DataError(f"{archive}: {name} {fault} ({', '.join(self.classes)}); {self._advice(texts)}")
        return self.kinds[place]

    def _advice(self, texts: Sequence[str]) -> str:
        question = did_you_mean(texts, self.kinds)
        return (
            f"{question}{' Else skip' if question else 'skip'} folders of other classes with --leave-out,"
            " name them with --others, or name all classes with --classes"
        )
