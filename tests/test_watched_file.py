from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import SettingsError
from app.watched_file import MOST_BYTES, WatchedFile


def test_a_file_over_the_limit_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * MOST_BYTES)
    file = WatchedFile(path)
    assert len(file.read()) == MOST_BYTES
    with path.open("ab") as sparse:
        sparse.truncate(2**40)
    assert file.changed
    with pytest.raises(SettingsError, match="it has more than 1048576 bytes"):
        file.read()
    assert not file.changed


def test_a_file_that_comes_back_as_it_was_counts_as_changed(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_text("a")
    file = WatchedFile(path)
    for look in (lambda: file.changed, file.read):
        file.read()
        path.parent.rename(tmp_path / "aside")  # which changes nothing of the file itself
        with pytest.raises(FileNotFoundError):
            look()
        (tmp_path / "aside").rename(path.parent)
        assert file.changed
