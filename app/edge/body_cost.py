"""Memory that a body may take until its request is answered, by route and media type.

The figures are measured: `tests/safety/test_bodies.py` sends the worst body known of each kind. Large JSON is
not in them: it is parsed in one process at a time, with a limit of its own (`app/api/json_bodies.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from app.units import MIB


@dataclass(frozen=True)
class Cost:
    """factor: bytes of memory per byte of body.

    entries: bytes per byte of body that entries, parts or labels take in addition, up to most_entries bytes:
    their number is limited.
    """

    factor: float
    entries: float = 0.0
    most_entries: int = 0

    def of(self, size: int) -> int:
        return ceil(self.factor * size + min(self.entries * size, self.most_entries))


_BYTES = Cost(1.3)  # a buffer that grows by an eighth
_COPIED = Cost(2.1)  # the body beside the images decoded from it
_ARCHIVE = Cost(1.3, entries=12.0, most_entries=448 * MIB)  # 200,000 entries, then as many errors
_FORM = Cost(1.3, entries=6.0, most_entries=2 * MIB)  # a few hundred parts


def cost(route: str, media_type: str, size: int) -> int:
    """Return the bytes to reserve for a body of `size` bytes. route: the template of its path."""
    return _kind(route, media_type).of(size)


def most(size: int) -> int:
    """Return the bytes to reserve for a body of `size` bytes of the most expensive kind."""
    return max(kind.of(size) for kind in (_BYTES, _COPIED, _ARCHIVE, _FORM))


def _kind(route: str, media_type: str) -> Cost:
    if route.endswith("/infer"):
        return _COPIED
    if not media_type.startswith("multipart/"):
        return _BYTES
    return _ARCHIVE if route.endswith("/evaluate") else _FORM
