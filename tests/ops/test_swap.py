"""A running service with the shipped network, whose bundle is replaced and restored under load."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest

from app.engine.bundle import FILES
from tests.running import REAL, ROOT, Running, running, wait_until

SHIPPED = ROOT / "models/wbc-resnet18"
pytestmark = [
    pytest.mark.ops,
    pytest.mark.skipif(not SHIPPED.exists(), reason="the shipped bundle is absent"),
]
CLIENTS = 4


def renamed(folder: Path, version: str) -> Path:
    """Copy the shipped bundle with another version."""
    folder.mkdir()
    for name in FILES:
        shutil.copy(SHIPPED / name, folder / name)
    config = json.loads((SHIPPED / "config.json").read_text()) | {"version": version}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write(file: Path, *lines: str) -> None:
    draft = file.with_suffix(".draft")
    draft.write_text("\n".join(lines))
    draft.replace(file)


def served(service: Running) -> str:
    return str(httpx.get(f"{service.address}/model", timeout=30).json()["version"])


def metric(service: Running, name: str, label: str = "") -> float:
    lines = httpx.get(f"{service.address}/metrics", timeout=30).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and label in line)


def test_a_bundle_is_swapped_under_load_and_back_without_a_failed_request(tmp_path: Path) -> None:
    file, image = tmp_path / "models.toml", (SHIPPED / "known-answer.png").read_bytes()
    new = renamed(tmp_path / "new", "9.0.0")
    default = f'[[models]]\nbundle = "{SHIPPED}"'
    write(file, default)
    seen: Counter[tuple[int, str]] = Counter()
    over = threading.Event()

    def ask(service: Running) -> None:
        with service.client() as client:
            while not over.is_set():
                answer = client.post("/predict", content=image, headers={"content-type": "image/png"})
                seen[answer.status_code, answer.json().get("model", {}).get("version", "")] += 1

    with running(REAL, "--models", str(file), "--probation-s", "0") as service:
        shipped = served(service)
        clients = [threading.Thread(target=ask, args=(service,)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            write(file, f'[[models]]\nbundle = "{new}"')
            wait_until(lambda: served(service) == "9.0.0")
            (new / "model.int8.onnx").write_bytes(b"what is loaded is not read again")
            write(
                file,
                f'[[models]]\nbundle = "{new}"',
                f'[[models]]\nbundle = "{renamed(tmp_path / "x", "9.1.0")}"',
            )
            wait_until(lambda: metric(service, "leuko_model_info{") == 2)
            write(file, default, f'[[models]]\nbundle = "{tmp_path / "x"}"\nshadow = true')
            wait_until(lambda: served(service) == shipped)
        finally:
            over.set()
            for client in clients:
                client.join()
        assert {status for status, _ in seen} == {200}
        assert {version for _, version in seen} == {shipped, "9.0.0"}
        assert httpx.post(
            f"{service.address}/predict", content=image, headers={"content-type": "image/png"}
        ).is_success
        wait_until(lambda: metric(service, "leuko_shadow_images_total{", 'outcome="agreed"') > 0)
        assert metric(service, "leuko_shadow_images_total{", 'outcome="failed"') == 0
        assert metric(service, "leuko_shadow_disagreements_total{") == 0
        assert service.end() == 0
