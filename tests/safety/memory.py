"""What a running service takes of the machine; Linux."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.running import Running


@contextmanager
def growing_less_than(mib: float, service: Running) -> Iterator[None]:
    """The service never holds so much more than at the start, not even for a moment."""
    folder = Path(f"/proc/{service.process.pid}")
    (folder / "clear_refs").write_text("5")  # has the kernel forget the peak so far
    before = _peak_mib(folder)
    yield
    assert _peak_mib(folder) - before < mib


def _peak_mib(folder: Path) -> float:
    return int((folder / "status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
