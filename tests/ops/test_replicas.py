"""Two services behind the nginx that is shipped: one is killed, and both are replaced, while clients ask."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app.vision.bundle import CLASSES
from tests.fake_classifier import png
from tests.fakes import GREYS
from tests.proxying import Proxy, free_port, here, proxying
from tests.running import Running, wait_until
from tests.safety.faulty import GO, HELD, HOLD, faulty

pytestmark = here
CLIENTS = 4


@dataclass
class Replicas:
    """By slot: where each listens, the folder of its faults, and who is there now."""

    folder: Path
    ports: tuple[int, int]
    running: dict[int, tuple[Running, ExitStack]] = field(default_factory=dict)

    def start(self, slot: int) -> None:
        stack = ExitStack()
        service = stack.enter_context(faulty(self.faults(slot), "--port", str(self.ports[slot])))
        self.running[slot] = service, stack

    def end(self, slot: int, sig: int) -> None:
        service, stack = self.running.pop(slot)
        assert service.end(sig) == (0 if sig == signal.SIGTERM else -sig)
        stack.close()

    def wait_until_asked(self, slot: int) -> None:
        """nginx has seen that it is back: before that, the other one must not go."""
        service, _ = self.running[slot]
        counted = 'leuko_images_total{outcome="ok"}'
        wait_until(lambda: counted in httpx.get(f"{service.address}/metrics").text)

    def faults(self, slot: int) -> Path:
        return self.folder / f"faults-{slot}"


@contextmanager
def replicated(folder: Path) -> Iterator[tuple[Replicas, Proxy]]:
    replicas = Replicas(folder, (free_port(), free_port()))
    one, other = replicas.ports
    changes = {
        f"    server 127.0.0.1:{one} max_fails=0;": "    #",
        f"# server 127.0.0.1:{one} max_fails=2": f"server 127.0.0.1:{one} max_fails=2",
        "# server 127.0.0.1:8001": f"server 127.0.0.1:{other}",
        "rate=100r/s": "rate=10000r/s",
    }
    for slot in (0, 1):
        replicas.faults(slot).mkdir()
        replicas.start(slot)
    try:
        with proxying(folder, one, changes) as proxy:
            yield replicas, proxy
    finally:
        for _, stack in replicas.running.values():
            stack.close()


@contextmanager
def asked(proxy: Proxy) -> Iterator[Counter[str]]:
    """Clients that go on asking, and what became of it."""
    seen: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        with proxy.client() as client:
            while not over.is_set():
                for grey, label in zip(GREYS, CLASSES, strict=True):
                    seen[outcome(client, grey, label)] += 1

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield seen
    finally:
        over.set()
        for client in clients:
            client.join()


def outcome(client: httpx.Client, grey: int, label: str) -> str:
    sent = client.post("/predict", content=png(grey), headers={"content-type": "image/png"})
    if sent.status_code != 200:
        return f"{sent.status_code} {sent.text}"
    return "right" if sent.json()["predictions"][0]["label"] == label else f"wrong {sent.text}"


def wait_for(seen: Counter[str], more: int) -> None:
    goal = seen.total() + more
    wait_until(lambda: seen.total() >= goal)


def test_no_request_is_lost_with_the_replica_that_it_was_given_to(tmp_path: Path) -> None:
    with replicated(tmp_path) as (replicas, proxy):
        answers: list[str] = []

        def ask() -> None:
            with proxy.client() as client:
                answers.append(outcome(client, HOLD, CLASSES[0]))

        held = [threading.Thread(target=ask) for _ in range(2)]
        for thread in held:
            thread.start()
        for slot in (0, 1):
            wait_until((replicas.faults(slot) / HELD).exists)
        replicas.end(0, signal.SIGKILL)
        (replicas.faults(1) / GO).touch()
        for thread in held:
            thread.join()
        assert answers == ["right", "right"]


def test_under_load_one_is_killed_and_nobody_notices(tmp_path: Path) -> None:
    with replicated(tmp_path) as (replicas, proxy):
        with asked(proxy) as seen:
            wait_for(seen, 40)
            replicas.end(0, signal.SIGKILL)
            wait_for(seen, 40)
            replicas.start(0)
            replicas.wait_until_asked(0)
            replicas.end(1, signal.SIGKILL)
            wait_for(seen, 40)
        assert set(seen) == {"right"}


def test_a_rolling_restart_fails_no_request(tmp_path: Path) -> None:
    with replicated(tmp_path) as (replicas, proxy):
        with asked(proxy) as seen:
            for slot in (0, 1):
                wait_for(seen, 40)
                replicas.end(slot, signal.SIGTERM)
                replicas.start(slot)
                replicas.wait_until_asked(slot)
        assert set(seen) == {"right"}
