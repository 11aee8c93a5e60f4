"""A service that must never write a file; Linux."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.running import Running, running
from tests.safety.unshaken import UNSHAKEN


@dataclass(frozen=True)
class Sandbox:
    """A service that cannot write a byte to any file, and the folder for temporary ones."""

    service: Running
    temporary: Path

    def evaluate(self, archive: bytes) -> httpx.Response:
        with self.service.client() as client:
            return client.post("/evaluate", files={"archive": ("set.zip", archive)})

    def refusal(self, archive: bytes) -> tuple[int, str]:
        """Status and code of an answer that left nothing behind."""
        # A file that came and went would change its folder as well.
        before = self.temporary.stat().st_mtime_ns
        answer = self.evaluate(archive)
        assert self.temporary.stat().st_mtime_ns == before
        assert not list(self.temporary.iterdir())
        return answer.status_code, answer.json()["code"]


@contextmanager
def sealed(temporary: Path) -> Iterator[Sandbox]:
    with running(UNSHAKEN, environ={"TMPDIR": str(temporary)}, prepare=_forbid_files) as service:
        yield Sandbox(service, temporary)


def _forbid_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
