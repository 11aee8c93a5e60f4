"""Values that processes share, on a disk that is full."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from app.observability import shared_values
from app.observability.shared_values import CHECK_S, INITIAL_SIZE, LACKING, SharedValues, forget, unshared
from tests.disk import full_beyond
from tests.running import linux

Share = Callable[[Path], SharedValues]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def share(clock: Clock) -> Iterator[Share]:
    """Return a function that opens a file until the end of the test."""
    with ExitStack() as opened:
        opened.callback(shared_values._lacking.clear)

        def share(file: Path) -> SharedValues:
            values = SharedValues(str(file), clock=clock)
            opened.callback(values.close)
            return values

        yield share


def shared(file: Path) -> dict[str, float]:
    """Return what other processes read."""
    read = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]
    return {key: value for key, value, _, _ in read}


def write(values: SharedValues, *keys: str, value: float = 1.0) -> None:
    for key in keys:
        before, _ = values.read_value(key)
        values.write_value(key, before + value, 0.0)


def names(count: int) -> list[str]:
    return [f"{index:0100}" for index in range(count)]


@linux
def test_every_page_is_allocated_before_it_is_written_to(tmp_path: Path, share: Share) -> None:
    file = tmp_path / "counter_1.db"
    values = share(file)
    assert file.stat().st_blocks * 512 >= file.stat().st_size == INITIAL_SIZE
    write(values, *names(1000))
    assert file.stat().st_blocks * 512 >= file.stat().st_size == 2 * INITIAL_SIZE
    assert shared(file) == dict.fromkeys(names(1000), 1.0)
    assert not unshared(str(tmp_path))


def test_values_without_space_stay_in_the_process_until_there_is_some(
    tmp_path: Path, clock: Clock, share: Share, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.observability")
    file = tmp_path / "counter_1.db"
    with full_beyond(INITIAL_SIZE):
        values = share(file)
        write(values, *names(1000))
        write(values, *names(1000))
        assert 400 < len(shared(file)) < 600
        assert set(shared(file).values()) == {2.0}
        assert {values.read_value(name)[0] for name in names(1000)} == {2.0}
        assert unshared(str(tmp_path))
        clock.now += CHECK_S
        shared_values.check()
        write(values, "first")
    assert len(caplog.messages) == 1
    clock.now += CHECK_S
    shared_values.check()
    write(values, "first")
    assert shared(file) == dict.fromkeys([*names(1000), "first"], 2.0)
    assert not unshared(str(tmp_path))
    assert len(caplog.messages) == 2


def test_a_process_without_space_for_a_file_keeps_its_values_and_others_read_none(
    tmp_path: Path, clock: Clock, share: Share
) -> None:
    file = tmp_path / "counter_1.db"
    with full_beyond(0):
        values = share(file)
        write(values, "a")
        assert not file.exists()
        assert unshared(str(tmp_path))
    clock.now += CHECK_S
    shared_values.check()
    write(values, "a")
    assert shared(file) == {"a": 2.0}
    assert [*tmp_path.iterdir()] == [file]


def test_a_folder_that_is_deleted_and_made_again_gets_all_values(
    tmp_path: Path, clock: Clock, share: Share
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "counter_1.db"
    values = share(file)
    write(values, "a", "b")
    file.unlink()
    folder.rmdir()
    clock.now += CHECK_S
    shared_values.check()
    write(values, "a", "c")
    assert unshared(str(folder))
    folder.mkdir()
    clock.now += CHECK_S
    shared_values.check()
    write(values, "a")
    assert shared(file) == {"a": 3.0, "b": 1.0, "c": 1.0}
    assert not unshared(str(folder))


def test_a_process_with_the_number_of_a_dead_one_continues_its_counts(tmp_path: Path, share: Share) -> None:
    file = tmp_path / "counter_1.db"
    for count in (1.0, 2.0):
        values = share(file)
        write(values, "a")
        values.close()
        assert shared(file) == {"a": count}


def test_a_dead_process_lacks_nothing(tmp_path: Path) -> None:
    for pid in (1, 21):
        (tmp_path / f"counter_{pid}.db{LACKING}").touch()
    forget(1, str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == [f"counter_21.db{LACKING}"]
