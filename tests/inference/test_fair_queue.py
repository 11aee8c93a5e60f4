"""The queue that callers share, on a clock that the tests set."""

from __future__ import annotations

from app.inference.fair_queue import MOST_RECENT, RECENT_S, Caller, FairQueue

HEAVY, LIGHT, OTHER = Caller("key:heavy"), Caller("key:light"), Caller("key:other")


def filled(**items: str) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for id, letters in items.items():
        queue.add(Caller(f"key:{id}"), letters)
    return queue


def taken(queue: FairQueue[str], count: int) -> str:
    return "".join(queue.take(0) or "-" for _ in range(count))


def test_items_of_one_caller_are_taken_in_order() -> None:
    queue = filled(heavy="abc")
    assert taken(queue, 4) == "abc-"
    assert len(queue) == 0


def test_callers_are_served_in_turns() -> None:
    assert taken(filled(heavy="abcdef", light="xyz"), 9) == "axbyczdef"


def test_a_caller_is_served_in_proportion_to_its_weight() -> None:
    queue = filled(light="vwxyz")
    queue.add(Caller("key:heavy", weight=3), "abcdefghi")
    order = taken(queue, 12)
    assert [sum(item in "vwxyz" for item in order[start : start + 4]) for start in (0, 4, 8)] == [1, 1, 1]


def test_a_caller_that_comes_late_does_not_wait_behind_a_backlog() -> None:
    queue = filled(heavy="abcdefgh")
    assert taken(queue, 4) == "abcd"
    queue.add(LIGHT, "x")
    assert taken(queue, 2) == "xe"


def test_turns_that_a_caller_missed_are_not_paid_back() -> None:
    queue = filled(light="x", heavy="abcdefgh")
    assert taken(queue, 7) == "xabcdef"
    queue.add(LIGHT, "uvw")
    assert taken(queue, 4) == "ugvh"


def test_a_caller_that_returns_at_once_takes_no_extra_turn() -> None:
    queue = filled(light="x", heavy="abcdef")
    order = ""
    for _ in range(4):
        order += taken(queue, 2)
        queue.add(LIGHT, "x")
    assert order == "xabxcxdx"


def test_an_item_is_removed_from_the_middle_once() -> None:
    queue = filled(heavy="abc")
    for _ in range(2):
        queue.discard(HEAVY, "b", 0)
    assert (len(queue), queue.depth(HEAVY), list(queue)) == (2, 2, ["a", "c"])
    queue.discard(LIGHT, "b", 0)
    assert taken(queue, 3) == "ac-"


def test_the_share_is_the_weight_beside_those_of_waiting_callers() -> None:
    queue = filled(heavy="ab")
    assert (queue.share(HEAVY), queue.share(LIGHT), queue.share(Caller("key:light", 3))) == (1, 0.5, 0.75)
    queue.add(LIGHT, "x")
    queue.add(OTHER, "u")
    assert queue.share(HEAVY) == 1 / 3
    queue.discard(OTHER, "u", 0)
    assert queue.share(HEAVY) == 0.5


def test_items_can_be_taken_of_callers_with_one_or_with_several_only() -> None:
    queue = filled(heavy="abc", light="x", other="u")
    assert queue.first_is_crowded
    assert [queue.take(0, crowded=False) for _ in range(3)] == ["x", "u", None]
    assert [queue.take(0, crowded=True) for _ in range(3)] == ["a", "b", None]
    assert not queue.first_is_crowded


def test_a_queue_is_contended_if_one_caller_has_several_items_and_another_was_active_lately() -> None:
    queue = filled(heavy="abcd")
    assert not queue.contended(0)
    queue.add(LIGHT, "x")
    assert queue.contended(0)
    queue.discard(LIGHT, "x", 0)
    assert queue.contended(RECENT_S)
    assert not queue.contended(RECENT_S + 0.1)
    queue.add(OTHER, "uvw")
    assert not queue.contended(RECENT_S + 0.1)  # all have several


def test_the_callers_that_are_remembered_are_bounded_in_number() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(MOST_RECENT + 5):
        queue.add(Caller(f"address:{number}"), "x")
        queue.take(0)
    assert (queue.callers, len(queue._idle)) == (0, MOST_RECENT)


def test_a_caller_whose_items_took_more_turns_waits_for_as_many() -> None:
    queue = filled(heavy="abcd", light="wxyz")
    assert taken(queue, 1) == "a"
    queue.charge(HEAVY, 2)
    assert taken(queue, 7) == "wxybzcd"


def test_turns_count_for_a_caller_that_has_no_more_items() -> None:
    queue = filled(heavy="a", light="wxyz")
    assert taken(queue, 1) == "a"
    queue.charge(HEAVY, 2)
    queue.add(HEAVY, "b")
    assert taken(queue, 5) == "wxyzb"
