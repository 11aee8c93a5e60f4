"""What requests in flight hold of the service, places and memory, and how much of it one caller may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.errors import QueueFull, TooLarge

# A caller may hold at most this many times what is left free: alone three quarters of all, and whatever
# callers hold, something is left for another one. (Choudhury and Hahne, "Dynamic queue length thresholds
# for shared-memory packet switches", 1998.)
SHARE = 3

Cost = Callable[[int], int]  # bytes of a body → bytes of memory that it takes


@dataclass(eq=False)
class _Held:
    requests: int = 0
    bytes: int = 0


class Budget:
    """Counts the requests in flight and the bytes reserved for them, in total and for each caller.

    max_requests, max_bytes: of all callers together. largest: bytes that one request must be able to reserve
    while nothing else is in flight; max_bytes is raised to what this takes.
    """

    def __init__(self, *, max_requests: int, max_bytes: int, largest: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max(max_bytes, -(-largest * (SHARE + 1) // SHARE))
        self.requests = 0
        self.bytes = 0
        self._callers: dict[str, _Held] = {}

    @property
    def most_bytes(self) -> int:
        """Return the most bytes that a caller can ever hold."""
        return self.max_bytes * SHARE // (SHARE + 1)

    def admit(self, caller: str, cost: Cost) -> Reservation:
        """Return a place for a request of a caller. cost: of its body. Raise QueueFull."""
        held = self._callers.get(caller, _Held())
        free = self.max_requests - self.requests - 1
        if free < 0:
            raise QueueFull("Too many requests are in flight.")
        # A caller without a request in flight may have the last place.
        if held.requests > 0 and held.requests + 1 > SHARE * free:
            raise QueueFull("Too many requests of this caller are in flight.")
        self._callers[caller] = held
        self.requests += 1
        held.requests += 1
        return Reservation(self, caller, held, cost)

    def reserve(self, held: _Held, more: int) -> None:
        free = self.max_bytes - self.bytes - more
        if free < 0:
            raise QueueFull("The bodies of all requests in flight are too large in total.")
        if held.bytes + more > SHARE * free:
            raise QueueFull("The bodies of this caller's requests in flight are too large in total.")
        self.bytes += more
        held.bytes += more

    def release(self, held: _Held, less: int) -> None:
        self.bytes -= less
        held.bytes -= less

    def leave(self, caller: str, held: _Held) -> None:
        self.requests -= 1
        held.requests -= 1
        if held.requests == 0:
            del self._callers[caller]


class Reservation:
    """The place of one request, and the bytes that are reserved for it, until all who hold it close it.

    Whoever made it is the first; the others are threads that still work on the body.
    """

    def __init__(self, budget: Budget, caller: str, held: _Held, cost: Cost) -> None:
        self.bytes = 0
        self._budget = budget
        self._caller = caller
        self._held = held
        self._cost = cost
        self._holders = 1

    def cover(self, body_bytes: int) -> None:
        """Reserve what so many bytes of the body take.

        Raise QueueFull if there is no room for it now, TooLarge if there never is.
        """
        needed = self._cost(body_bytes)
        if needed > self._budget.most_bytes:
            most = self._budget.most_bytes
            raise TooLarge(f"Such a body takes {needed} bytes of memory; one caller can have {most}.")
        self.reserve(needed)

    def reserve(self, size: int) -> None:
        """Have at least `size` bytes reserved, or all that one caller can have. Raise QueueFull."""
        needed = min(size, self._budget.most_bytes)
        if needed > self.bytes:
            self._budget.reserve(self._held, needed - self.bytes)
            self.bytes = needed

    def covers(self, body_bytes: int) -> bool:
        """Return whether so many bytes of the body are reserved."""
        return self.bytes >= self._cost(body_bytes)

    def keep(self, body_bytes: int) -> None:
        """Give back what is reserved for more than so many bytes of the body."""
        surplus = self.bytes - self._cost(body_bytes)
        if surplus > 0:
            self._budget.release(self._held, surplus)
            self.bytes -= surplus

    def hold(self) -> None:
        """Keep everything until `close` is called once more."""
        self._holders += 1

    def close(self) -> None:
        """Give back everything, unless somebody else still holds it."""
        self._holders -= 1
        if self._holders == 0:
            self.keep(0)
            self._budget.leave(self._caller, self._held)
