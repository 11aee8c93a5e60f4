"""Scenarios 51 to 56 once more: files that grow, hold commands for a terminal, or cannot be listed."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from app.edge.keys import add_key
from app.units import MIB
from tests.fake_classifier import png
from tests.running import FAKE, running, wait_until


def test_51_a_key_file_that_grows_without_limit_delays_nobody_and_keeps_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    secret = add_key(path, "lab-1", ["predict", "metrics"])
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "image/png"}
    with running(FAKE, "--keys", str(path)) as service, httpx.Client(base_url=service.address) as client:
        with path.open("ab") as file:
            for _ in range(400):
                file.write(b"#" * MIB)
        began = time.monotonic()
        wait_until(lambda: "\nleuko_keys_stale 1" in client.get("/metrics", headers=headers).text)
        assert client.post("/predict", content=png(0), headers=headers).status_code == 200
        assert time.monotonic() - began < 10
        assert service.end() == 0
    assert any("it has more than 1048576 bytes" in line for line in service.log)
