"""What a running service takes of the machine; Linux."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.running import Running


@contextmanager
def growing_less_than(mib: float, service: Running) -> Iterator[None]:
    """The service never holds so much more than at the start, not even for a moment."""
    for pid in service.processes:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # has the kernel forget the peak so far
    before = service.resident_mib("VmHWM")
    yield
    assert service.resident_mib("VmHWM") - before < mib
