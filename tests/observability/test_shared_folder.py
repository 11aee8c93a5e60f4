from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from app.observability.shared_folder import PREFIX, hold, restore, shared_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_behind(parent: Path, name: str = "old") -> Path:
    folder = parent / f"{PREFIX}{name}"
    folder.mkdir()
    (folder / "counter_1.db").write_bytes(b"metrics")
    return folder


def test_a_folder_left_behind_is_deleted_and_one_in_use_is_not(temporary: Path) -> None:
    old, used = left_behind(temporary), left_behind(temporary, "used")
    lock = hold(str(used))
    other = temporary / "other"
    other.mkdir()
    with shared_folder() as folder:
        assert {*temporary.iterdir()} == {used, other, Path(folder)}
        with shared_folder() as second:
            assert {*temporary.iterdir()} == {used, other, Path(folder), Path(second)}
    os.close(lock)
    assert {*temporary.iterdir()} == {used, other}
    assert not old.exists()


def test_links_files_and_what_links_lead_to_are_left_alone(
    temporary: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").touch()
    (temporary / f"{PREFIX}link").symlink_to(elsewhere)
    (temporary / f"{PREFIX}file").touch()
    (left_behind(temporary) / "link").symlink_to(elsewhere)
    with shared_folder():
        pass
    assert {path.name for path in temporary.iterdir()} == {f"{PREFIX}link", f"{PREFIX}file"}
    assert (elsewhere / "precious").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders of other users")
def test_a_folder_of_another_user_is_left_alone(temporary: Path) -> None:
    old = left_behind(temporary)
    os.chown(old, 12345, 12345)
    with shared_folder():
        pass
    assert old.exists()


def test_a_folder_that_was_deleted_is_made_again_for_its_owner_only(temporary: Path) -> None:
    with shared_folder() as folder:
        assert not restore(folder)
        Path(folder).rmdir()
        assert restore(folder)
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        with shared_folder():
            assert Path(folder).exists()  # held
        Path(folder).rmdir()
    assert not [*temporary.iterdir()]
