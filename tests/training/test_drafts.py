from __future__ import annotations

import sys
from pathlib import Path

import pytest

from training.drafts import Exchange, draft_of_folder, exchange, recover_folder


def cannot(first: Path, second: Path) -> bool:
    """Stand for a system that cannot exchange two folders."""
    assert first.exists()
    assert second.exists()
    return False


def folder(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(text)
    return path


def content(path: Path) -> str:
    return (path / "config.json").read_text()


@pytest.mark.parametrize("way", [exchange, cannot])
def test_a_folder_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path, way: Exchange) -> None:
    bundle = folder(tmp_path / "bundle", "old")
    for text in ("new", "newer"):
        with draft_of_folder(bundle, way) as draft:
            folder(draft, text)
        assert content(bundle) == text
        assert list(tmp_path.iterdir()) == [bundle]


@pytest.mark.parametrize("way", [exchange, cannot])
def test_a_folder_stays_as_it_was_if_its_draft_fails(tmp_path: Path, way: Exchange) -> None:
    bundle = folder(tmp_path / "bundle", "old")

    def fail() -> None:
        with draft_of_folder(bundle, way) as draft:
            folder(draft, "new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert content(bundle) == "old"
    assert list(tmp_path.iterdir()) == [bundle]


def test_a_link_to_a_folder_stays(tmp_path: Path) -> None:
    bundle, link = folder(tmp_path / "bundle", "old"), tmp_path / "current"
    link.symlink_to("bundle")
    with draft_of_folder(link) as draft:
        folder(draft, "new")
    assert link.readlink() == Path("bundle")
    assert content(bundle) == "new"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two paths")
def test_two_folders_are_exchanged_in_one_step(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "é 1", "first"), folder(tmp_path / "2", "second")
    if not exchange(first, second):
        pytest.skip("this file system cannot exchange two paths")
    assert (content(first), content(second)) == ("second", "first")
    assert not exchange(first, tmp_path / "absent")


def test_a_folder_stays_as_it_was_if_its_draft_cannot_be_moved(tmp_path: Path) -> None:
    bundle = folder(tmp_path / "bundle", "old")
    with pytest.raises(FileNotFoundError), draft_of_folder(bundle, lambda _draft, _path: False):
        pass
    assert content(bundle) == "old"
    assert list(tmp_path.iterdir()) == [bundle]


def test_the_next_command_restores_what_a_kill_between_two_renames_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, old = tmp_path / "bundle", folder(tmp_path / ".bundle.old", "old")
    recover_folder(bundle)
    assert content(bundle) == "old"
    said = f"leuko-train: restored {bundle} from {old}: a command was killed while it replaced it\n"
    assert capsys.readouterr().err == said
    recover_folder(bundle)
    assert capsys.readouterr().err == ""


def test_what_a_kill_after_both_renames_left_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = folder(tmp_path / "bundle", "new")
    folder(tmp_path / ".bundle.old", "old")
    with draft_of_folder(bundle, cannot) as draft:
        folder(draft, "newer")
    assert content(bundle) == "newer"
    assert list(tmp_path.iterdir()) == [bundle]
    assert "removed" in capsys.readouterr().err
