"""A queue that callers share: each is served in proportion to its weight, however much others have put in.

Start-time fair queueing (Goyal, Vin and Cheng, 1996, doi:10.1145/248157.248171): the items of a caller are
due one after another, 1 / weight apart on a clock that counts turns, and the item that is due first is taken.
A caller that was away is due at once: it does not wait behind the backlog of others, and gets nothing for the
turns that it missed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, KeysView, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from app.observability.request_context import RequestContext

Item = TypeVar("Item")

RECENT_S = 10.0  # how long a caller counts as active after its last item has left the queue
MOST_RECENT = 1000  # callers that are remembered; the longest idle are forgotten first


class Caller(NamedTuple):
    """Who sent a request: a key or an address. weight: its share is this many times that of a weight of 1."""

    id: str = ""
    weight: int = 1

    @classmethod
    def of(cls, context: RequestContext) -> Caller:
        return cls(context.caller, context.weight)


@dataclass
class _Line(Generic[Item]):
    """The items of one caller, in order: a dict, so that one can be removed from the middle."""

    weight: int = 1
    due: float = 0.0  # of the first item, in turns
    idle_since: float = 0.0
    items: dict[Item, None] = field(default_factory=dict)

    @property
    def crowded(self) -> bool:
        return len(self.items) > 1


class FairQueue(Generic[Item]):
    """Items of callers. Times are in seconds on the event loop's clock."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[Item]] = {}  # of callers with items
        self._idle: dict[str, _Line[Item]] = {}  # of those that had some lately, the longest idle first
        self._count = 0
        self._turns = 0.0  # when the last item that was taken was due

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return (item for line in self._lines.values() for item in line.items)

    def add(self, caller: Caller, items: Iterable[Item]) -> None:
        line = self._lines.get(caller.id)
        if line is None:
            line = self._idle.pop(caller.id, None) or _Line()
            line.due = max(line.due, self._turns)
        before = len(line.items)
        line.weight = caller.weight
        line.items.update(dict.fromkeys(items))
        self._count += len(line.items) - before
        if line.items:
            self._lines[caller.id] = line

    def put_back(self, caller: Caller, items: Sequence[Item]) -> None:
        """Return items that were taken, before those that the caller still has.

        They are due after what others had put in meanwhile.
        """
        line = self._lines.get(caller.id) or self._idle.pop(caller.id, None) or _Line(caller.weight)
        line.items = dict.fromkeys([*items, *line.items])
        turn = 1 / line.weight
        line.due = max(line.due - len(items) * turn, self._turns + turn)
        self._count += len(items)
        self._lines[caller.id] = line

    def charge(self, caller: Caller, turns: int) -> None:
        """Count further turns of a caller, whose items took more than one each."""
        line = self._lines.get(caller.id) or self._idle.get(caller.id)
        if line is not None:
            line.due += turns / line.weight

    def discard(self, caller: Caller, item: Item, now: float) -> bool:
        """Remove an item if it is still in the queue; return whether it was."""
        line = self._lines.get(caller.id)
        if line is None or item not in line.items:
            return False
        self._remove(caller.id, line, item, now)
        return True

    def take(self, now: float, *, crowded: bool | None = None, without: Container[str] = ()) -> Item | None:
        """Return the item that is due first.

        crowded: of callers with several (True) or one (False) only. without: ids of callers to pass over.
        """
        id = self._first(crowded, without)
        if id is None:
            return None
        line = self._lines[id]
        item = next(iter(line.items))
        self._turns = max(self._turns, line.due)
        line.due += 1 / line.weight
        self._remove(id, line, item, now)
        return item

    def depth(self, caller: Caller) -> int:
        """Return the number of a caller's items."""
        line = self._lines.get(caller.id)
        return len(line.items) if line else 0

    def share(self, caller: Caller) -> float:
        """Return a caller's weight as a fraction of that of all callers with items, itself included."""
        others = sum(line.weight for id, line in self._lines.items() if id != caller.id)
        return caller.weight / (caller.weight + others)

    @property
    def ids(self) -> KeysView[str]:
        """Return the ids of callers with items."""
        return self._lines.keys()

    @property
    def callers(self) -> int:
        """Return the number of callers with items."""
        return len(self._lines)

    @property
    def singles(self) -> int:
        """Return the number of callers with one item."""
        return sum(not line.crowded for line in self._lines.values())

    @property
    def first_is_crowded(self) -> bool:
        """Return whether the item that is due first is one of several of its caller."""
        id = self._first()
        return id is not None and self._lines[id].crowded

    def contended(self, now: float) -> bool:
        """Return whether a caller has several items while another, active lately, has one or none."""
        self._forget(now)
        singles = self.singles
        return singles < len(self._lines) and bool(self._idle or singles)

    def _first(self, crowded: bool | None = None, without: Container[str] = ()) -> str | None:
        due = (
            (line.due, id)
            for id, line in self._lines.items()
            if (crowded is None or line.crowded == crowded) and id not in without
        )
        return min(due, default=(0.0, None), key=lambda pair: pair[0])[1]

    def _remove(self, id: str, line: _Line[Item], item: Item, now: float) -> None:
        del line.items[item]
        self._count -= 1
        if not line.items:
            line.idle_since = now
            self._idle[id] = self._lines.pop(id)
            self._forget(now)

    def _forget(self, now: float) -> None:
        while self._idle:
            id = next(iter(self._idle))
            if len(self._idle) <= MOST_RECENT and now - self._idle[id].idle_since <= RECENT_S:
                return
            del self._idle[id]
