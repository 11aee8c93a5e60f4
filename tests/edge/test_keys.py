from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli.main import main
from app.edge.keys import GRACE_S, REREAD_S, Keys, add_key, make_key, parse_keys
from app.errors import SettingsError
from app.units import MIB
from app.watched_file import WatchedFile
from tests.disk import full_beyond


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float = REREAD_S) -> None:
        self.now += seconds


def test_a_key_is_known_by_its_secret_and_the_file_does_not_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first, second = add_key(path, "lab-1", ["predict"]), add_key(path, "lab-1", ["predict", "metrics"])
    keys = Keys(path)
    assert first not in path.read_text()
    assert (key := keys.find(first)) is not None
    assert (key.id, key.scopes) == ("lab-1", frozenset({"predict"}))
    assert (key := keys.find(second)) is not None
    assert key.scopes == {"predict", "metrics"}
    assert keys.find(first[:-1]) is keys.find(first + "x") is keys.find("") is keys.find("é") is None


def test_a_short_secret_is_no_key_even_if_the_file_has_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    # SHA-256 of `secret`
    path.write_text("a predict 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n")
    assert Keys(path).find("secret") is None


def test_a_new_file_is_readable_by_its_owner_only_and_an_existing_one_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, "a", ["predict"])
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    path.write_text(path.read_text() + "# no line end")
    add_key(path, "b", ["evaluate"])
    assert [key.id for key in parse_keys(path.read_text())] == ["a", "b"]


@pytest.mark.parametrize("room", [0, 20])
@pytest.mark.parametrize("before", ["", "# no line end", f"a predict {'0' * 64}\n", "# \udcff\n"])
def test_a_key_is_written_whole_or_not_at_all(tmp_path: Path, before: str, room: int) -> None:
    path = tmp_path / "keys"
    path.write_text(before, errors="surrogateescape")
    content = path.read_bytes()
    inode = path.stat().st_ino
    with full_beyond(len(content) + room), pytest.raises(OSError, match="File too large"):
        add_key(path, "b", ["predict"])
    assert path.read_bytes() == content
    add_key(path, "b", ["predict"])
    assert path.read_bytes().startswith(content)
    assert path.stat().st_ino == inode
    assert [key.id for key in parse_keys(path.read_text(errors="replace"))][-1] == "b"


@pytest.mark.parametrize("room", [0, 20])
def test_a_new_file_that_cannot_be_written_is_named_and_not_left(tmp_path: Path, room: int) -> None:
    (tmp_path / "link").symlink_to("keys")
    for name in ("keys", "link"):
        with full_beyond(room), pytest.raises(OSError, match="File too large") as raised:
            add_key(tmp_path / name, "a", ["predict"])
        assert raised.value.filename == str(tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_what_kept_a_key_from_being_written_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "a", "/dev/full"]) == 1
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no keys in it"),
        ("# nobody\n", "no keys in it"),
        ("a predict", "line 1: expected: ID SCOPE,SCOPE SHA256"),
        ("\na predict " + "g" * 64, "line 2: 'gggggggg'… is not a SHA-256"),
        ("a read " + "0" * 64, "line 1: 'read' are not scopes: expected some of predict, evaluate, metrics"),
        ("ä predict " + "0" * 64, "line 1: 'ä' is not an id"),
        ("a predict " + "0" * 64 + " weight=0", "line 1: expected: ID SCOPE,SCOPE SHA256"),
        ("a predict " + "0" * 64 + " weight=101", "line 1: expected: ID SCOPE,SCOPE SHA256"),
        ("a predict " + "0" * 64 + " weight=2 weight=3", "line 1: expected: ID SCOPE,SCOPE SHA256"),
    ],
)
def test_an_invalid_line_is_named(text: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_keys(text)
    assert caught.value.detail.startswith(complaint)


def test_a_key_has_the_weight_at_the_end_of_its_line_and_1_without() -> None:
    keys = parse_keys(f"a predict {'0' * 64}\nb predict {'1' * 64} weight=3  # thrice\n")
    assert [key.weight for key in keys] == [1, 3]
    assert parse_keys("\n".join(map(str, keys))) == keys


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbf")
    secret = add_key(path, "a", ["predict"])
    found = Keys(path).find(secret)
    assert found is not None
    assert found.id == "a"


def test_a_file_that_cannot_be_read_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        Keys(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        Keys(tmp_path / "binary")


def test_keys_follow_changes_of_the_file(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    old = add_key(path, "old", ["predict"])
    keys = Keys(path, clock)
    new, key = make_key("new", ["predict"])
    (tmp_path / "next").write_text(f"{key}\n")
    (tmp_path / "next").replace(path)
    assert keys.find(old) is not None
    clock.pass_by()
    assert keys.find(old) is None
    assert keys.find(new) is not None


def test_an_invalid_file_keeps_the_current_keys_and_sets_stale(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    secret = add_key(path, "lab", ["predict"])
    keys, text = Keys(path, clock), path.read_text()
    for spoilt in (b"lab predict", b"\xff", text.encode() + b"#" * MIB):
        path.write_bytes(spoilt)
        clock.pass_by(2 * GRACE_S)
        assert keys.find(secret) is not None
        assert keys.stale
    path.write_text(text)
    clock.pass_by()
    assert keys.find(secret) is not None
    assert not keys.stale


def absent(path: Path) -> None:
    path.unlink()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("absent"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def empty(path: Path) -> None:
    path.write_text("")


def only_comments(path: Path) -> None:
    path.write_text("# lab predict\n \n")


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("end", [absent, dangling, folder, fifo, device, empty, only_comments])
def test_a_file_that_is_gone_or_empty_closes_the_service_within_a_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, end: Callable[[Path], None]
) -> None:
    path, clock = tmp_path / "keys", Clock()
    secret = add_key(path, "lab", ["predict"])
    keys, text = Keys(path, clock), path.read_text()
    end(path)
    while keys.find(secret) is not None:
        assert not keys.stale
        clock.pass_by()
    assert clock.now < 1
    assert clock.now > GRACE_S
    assert keys.stale
    clock.pass_by()
    assert keys.find(secret) is None
    assert [record.getMessage() for record in caplog.records if "no key is valid" in record.getMessage()]
    if end is not absent:
        path.rename(tmp_path / "aside")
    path.write_text(text)
    clock.pass_by()
    assert keys.find(secret) is not None
    assert not keys.stale


@pytest.mark.parametrize("spoilt", ["\n", "# nobody\n", "lab predict\n", "#" * MIB + "#"])
def test_a_file_without_keys_or_with_errors_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    path, clock = tmp_path / "keys", Clock()
    secret = add_key(path, "lab", ["predict"])
    keys, text = Keys(path, clock), path.read_text()
    reads = []

    class Counted(WatchedFile):
        def read(self) -> str:
            reads.append(self.path)
            return super().read()

    monkeypatch.setattr(keys, "_file", Counted(path))
    path.write_text(spoilt)
    for _ in range(20):
        clock.pass_by()
        keys.refresh()
    assert keys.stale
    assert len(reads) == 1
    path.write_text(text)
    clock.pass_by()
    assert keys.find(secret) is not None
    assert len(reads) == 2


def test_a_file_that_comes_back_as_it_was_is_read_again(tmp_path: Path) -> None:
    path, clock = tmp_path / "folder" / "keys", Clock()
    path.parent.mkdir()
    secret = add_key(path, "lab", ["predict"])
    keys = Keys(path, clock)
    for aside, seconds in ((tmp_path / "a", REREAD_S), (tmp_path / "b", 2 * GRACE_S)):
        path.parent.rename(aside)  # which changes nothing of the file itself
        for _ in range(2):
            clock.pass_by(seconds)
            keys.refresh()
        aside.rename(path.parent)
        clock.pass_by()
        assert keys.find(secret) is not None
        assert not keys.stale


def test_a_file_that_an_editor_empties_or_removes_for_a_moment_keeps_its_keys(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    secret = add_key(path, "lab", ["predict"])
    keys, text = Keys(path, clock), path.read_text()
    for end in (empty, absent) * 3:
        end(path)
        clock.pass_by()
        assert keys.find(secret) is not None
        path.write_text(text)
        clock.pass_by()
        assert keys.find(secret) is not None
        assert not keys.stale


def test_a_file_whose_time_and_size_are_as_before_is_read_again(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    old = add_key(path, "lab", ["predict"])
    keys, before = Keys(path, clock), path.stat()
    new, key = make_key("lab", ["predict"])
    path.write_text(f"{key}\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    clock.pass_by()
    assert keys.find(old) is None
    assert keys.find(new) is not None


def test_leuko_key_prints_the_secret_once_and_files_its_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys"
    assert main(["key", "lab-1", str(path), "--scopes", "metrics"]) == 0
    key = Keys(path).find(capsys.readouterr().out.strip())
    assert key is not None
    assert (key.id, key.scopes) == ("lab-1", frozenset({"metrics"}))


def test_leuko_key_refuses_an_unknown_scope(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "lab-1", str(tmp_path / "keys"), "--scopes", "all"]) == 2
    assert "'all' are not scopes" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()
