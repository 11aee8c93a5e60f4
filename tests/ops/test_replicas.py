"""Two services behind the shipped nginx configuration: one is killed, and both are replaced, under load."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from app.engine.bundle import CLASSES
from app.settings import Settings
from tests.fake_classifier import png
from tests.fakes import GREYS
from tests.proxying import SHIPPED, Proxy, here, proxying
from tests.running import Running, free_port, wait_until
from tests.safety.faulty import GO, HELD, HOLD, faulty

pytestmark = [here, pytest.mark.ops]
CLIENTS = 4


@dataclass
class Replicas:
    """Each by slot: its port, the folder of its faults, and the process that runs now."""

    folder: Path
    ports: tuple[int, int]
    running: dict[int, tuple[Running, ExitStack]] = field(default_factory=dict)

    def start(self, slot: int) -> None:
        stack = ExitStack()
        own = ("--port", str(self.ports[slot]), "--audit", str(self.audit(slot)))
        arguments = (*own, "--without-keys", "anywhere")  # nginx passes the name on that its clients use
        service = stack.enter_context(faulty(self.faults(slot), *arguments))
        self.running[slot] = service, stack

    def end(self, slot: int, sig: int) -> None:
        service, stack = self.running.pop(slot)
        assert service.end(sig) == (0 if sig == signal.SIGTERM else -sig)
        stack.close()

    def wait_until_asked(self, slot: int) -> None:
        """Wait until nginx uses the server again; only then may the other one stop."""
        service, _ = self.running[slot]
        counted = 'leuko_images_total{outcome="ok"}'
        wait_until(lambda: counted in httpx.get(f"{service.address}/metrics").text)

    def is_ready(self, slot: int) -> bool:
        return httpx.get(f"{self.running[slot][0].address}/readyz").is_success

    def answered(self, slot: int, status: int) -> set[str]:
        """Return the request ids in the service's log."""
        lines = [json.loads(line) for line in self.running[slot][0].log]
        return {
            line["request_id"] for line in lines if line.get("status") == status and "summary" not in line
        }

    def audited(self, slot: int) -> set[str]:
        lines = [json.loads(line) for line in self.audit(slot).read_text().splitlines()]
        return {line["request_id"] for line in lines if "summary" not in line}

    def faults(self, slot: int) -> Path:
        return self.folder / f"faults-{slot}"

    def audit(self, slot: int) -> Path:
        return self.folder / f"audit-{slot}.jsonl"


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replicas, Proxy]]:
    """Two replicas that each test leaves running and in use by nginx."""
    folder = tmp_path_factory.mktemp("replicas")
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


def asked(proxy: Proxy) -> AbstractContextManager[Counter[str]]:
    return asking(
        proxy.client,
        lambda client: [outcome(client, *cell) for cell in zip(GREYS, CLASSES, strict=True)],
    )


@contextmanager
def asking(
    connect: Callable[[], httpx.Client], ask_once: Callable[[httpx.Client], list[str]]
) -> Iterator[Counter[str]]:
    """Clients that send requests until they are stopped, and the outcomes."""
    seen: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        with connect() as client:
            while not over.is_set():
                seen.update(ask_once(client))

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


def test_whoever_dies_before_the_deadline_is_followed_and_whoever_hangs_is_not() -> None:
    location = SHIPPED.read_text().partition("non_idempotent;")[2].partition("}")[0]
    [patience] = re.findall(r"proxy_next_upstream_timeout (\d+)s;", location)
    [silence] = re.findall(r"^    proxy_read_timeout (\d+)s;", SHIPPED.read_text(), re.MULTILINE)
    assert Settings().deadline_s < int(patience) < int(silence)


def test_no_request_is_lost_with_the_replica_that_it_was_given_to(
    replicated: tuple[Replicas, Proxy],
) -> None:
    replicas, proxy = replicated
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
    replicas.start(0)


def test_under_load_one_is_killed_and_nobody_notices(replicated: tuple[Replicas, Proxy]) -> None:
    replicas, proxy = replicated
    with asked(proxy) as seen:
        for slot in (0, 1):
            replicas.wait_until_asked(1 - slot)
            wait_for(seen, 40)
            replicas.end(slot, signal.SIGKILL)
            wait_for(seen, 40)
            replicas.start(slot)
        replicas.wait_until_asked(1)
    assert set(seen) == {"right"}


def test_a_rolling_restart_fails_no_request(replicated: tuple[Replicas, Proxy]) -> None:
    replicas, proxy = replicated
    with asked(proxy) as seen:
        for slot in (0, 1):
            wait_for(seen, 40)
            replicas.end(slot, signal.SIGTERM)
            replicas.start(slot)
            replicas.wait_until_asked(slot)
    assert set(seen) == {"right"}


def test_what_one_refuses_because_it_is_not_ready_the_other_answers_under_the_same_id(
    replicated: tuple[Replicas, Proxy],
) -> None:
    replicas, proxy = replicated
    with asked(proxy) as seen:
        replicas.audit(0).unlink()
        replicas.audit(0).mkdir()  # it takes no work while it cannot write
        wait_until(lambda: bool(replicas.answered(0, 503)))
        wait_for(seen, 40)
        refused = replicas.answered(0, 503)
        replicas.audit(0).rmdir()
        wait_until(lambda: replicas.is_ready(0))
    assert set(seen) == {"right"}
    assert refused <= replicas.audited(1)
