from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.regular_file import Refused, open_regular, open_trusted

ANOTHER = 12345  # a user that neither runs the tests nor is root
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to somebody else")


def content(path: Path) -> bytes:
    file = open_trusted(path)
    try:
        return os.read(file, 100)
    finally:
        os.close(file)


def test_a_link_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(Refused, match="it is a symbolic link"):
        open_regular(tmp_path / "link", os.O_WRONLY | os.O_CREAT)
    assert not (tmp_path / "file").exists()


@pytest.mark.usefixtures("bounded")
def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for flags in (os.O_RDONLY, os.O_WRONLY):
        with pytest.raises(Refused, match="it is not a regular file"):
            open_regular(tmp_path / "fifo", flags)


def test_our_own_links_are_followed_also_if_they_are_relative(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(b"here")
    (tmp_path / "first").symlink_to("data/second")
    (tmp_path / "data" / "second").symlink_to("file")
    assert content(tmp_path / "first") == b"here"


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(Refused, match="more than 8 symbolic links"):
        open_trusted(tmp_path / "one")


@root
def test_a_link_of_somebody_else_is_followed_only_in_his_own_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"here")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "link").symlink_to(tmp_path / "file")
    os.lchown(shared / "link", ANOTHER, ANOTHER)
    with pytest.raises(Refused, match="it is a symbolic link of user 12345"):
        open_trusted(shared / "link")
    os.chown(shared, ANOTHER, ANOTHER)
    assert content(shared / "link") == b"here"
