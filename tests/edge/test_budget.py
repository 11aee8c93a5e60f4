from __future__ import annotations

from math import ceil

import pytest

from app.edge.budget import Budget, Reservation
from app.errors import QueueFull, TooLarge


def budget(*, max_requests: int = 1000, max_bytes: int = 1000, largest: int = 1) -> Budget:
    return Budget(max_requests=max_requests, max_bytes=max_bytes, largest=largest)


def fill(budget: Budget, caller: str, step: int = 1) -> Reservation:
    """Reserve for one request of a caller as much as it can have."""
    reservation = budget.admit(caller, int)
    while True:
        try:
            reservation.cover(reservation.bytes + step)
        except (QueueFull, TooLarge):
            return reservation


def test_a_caller_alone_can_have_three_quarters_of_the_memory_and_of_the_places() -> None:
    memory, places = budget(), budget(max_requests=100)
    assert fill(memory, "a").bytes == memory.most_bytes == 750
    for _ in range(75):
        places.admit("a", int)
    with pytest.raises(QueueFull, match="of this caller"):
        places.admit("a", int)


def test_something_is_always_left_for_another_caller() -> None:
    shared = budget(max_bytes=10_000)
    held = [fill(shared, f"key:{number}").bytes for number in range(5)]
    assert held == sorted(held, reverse=True)
    assert min(held) > 0
    assert sum(held) < shared.max_bytes


def test_several_requests_of_a_caller_have_one_share() -> None:
    shared = budget()
    first, second = fill(shared, "a"), shared.admit("a", int)
    with pytest.raises(QueueFull, match="of this caller"):
        second.cover(1)
    shared.admit("b", int).cover(1)
    first.close()
    second.cover(1)


def test_a_caller_without_a_request_gets_the_last_place_and_no_one_gets_more() -> None:
    shared = budget(max_requests=2)
    shared.admit("a", int)
    with pytest.raises(QueueFull, match="of this caller"):
        shared.admit("a", int)
    shared.admit("b", int)
    with pytest.raises(QueueFull, match="Too many requests are in flight"):
        shared.admit("c", int)


def test_the_largest_body_fits_into_an_idle_service_however_small_its_limit() -> None:
    shared = budget(max_bytes=1, largest=1000)
    shared.admit("a", int).cover(1000)
    with pytest.raises(QueueFull):
        shared.admit("a", int).cover(1000)


def test_a_body_counts_with_the_memory_that_its_kind_takes_and_413_if_that_never_fits() -> None:
    reservation = budget().admit("a", lambda size: ceil(2.5 * size))
    reservation.cover(3)
    assert reservation.bytes == 8
    reservation.cover(300)
    with pytest.raises(TooLarge, match="takes 753 bytes of memory; one caller can have 750"):
        reservation.cover(301)
    assert reservation.bytes == 750


def test_what_is_covered_stays_and_what_is_given_back_is_free() -> None:
    shared = budget()
    reservation = shared.admit("a", int)
    reservation.cover(10)
    reservation.cover(5)
    assert (reservation.covers(10), reservation.covers(11), shared.bytes) == (True, False, 10)
    reservation.keep(7)
    reservation.keep(9)
    assert (reservation.bytes, shared.bytes) == (7, 7)
    reservation.close()
    assert (shared.bytes, shared.requests) == (0, 0)
    assert fill(shared, "b").bytes == 750


def test_a_response_holds_its_size_but_never_more_than_a_caller_can_have() -> None:
    shared = budget()
    reservation = shared.admit("a", int)
    for size, held in ((10, 10), (5, 10), (10_000, 750)):
        reservation.reserve(size)
        assert (reservation.bytes, shared.bytes) == (held, held)
    reservation.close()
    assert shared.bytes == 0


def test_what_somebody_else_still_holds_is_given_back_once_all_have_closed_it() -> None:
    shared = budget()
    reservation = shared.admit("a", int)
    reservation.cover(10)
    reservation.hold()
    reservation.close()
    assert (shared.bytes, shared.requests) == (10, 1)
    reservation.close()
    assert (shared.bytes, shared.requests) == (0, 0)
