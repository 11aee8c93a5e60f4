"""ops/prometheus, by Prometheus itself."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.telemetry import Telemetry
from tests.running import ROOT, running, wait_until

OPS = ROOT / "ops/prometheus"


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is absent")
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "leuko.rules.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("test", "rules", "leuko.rules.test.yml"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=OPS, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    alerts = re.findall(r"- alert: (\w+)", (OPS / "leuko.rules.yml").read_text())
    tried = re.findall(r"exp_alerts:\n", (OPS / "leuko.rules.test.yml").read_text())
    assert len(alerts) == len(set(alerts)) == len(tried)


def test_every_metric_that_a_rule_names_exists() -> None:
    known = Telemetry().render().decode()
    named = set(re.findall(r"\bleuko_[a-z_]+", (OPS / "leuko.rules.yml").read_text()))
    assert len(named) > 8
    for name in named:
        base = re.sub(r"_(bucket|count|sum|total)$", "", name)
        assert re.search(rf"^# TYPE {base}(_total)? ", known, re.MULTILINE), name


def test_prometheus_scrapes_a_service_and_every_rule_can_be_evaluated(tmp_path: Path) -> None:
    prometheus = program("prometheus")
    shutil.copy(OPS / "leuko.rules.yml", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with running() as service:
        config = (OPS / "prometheus.yml").read_text().replace("15s", "1s")
        config = config.replace("leuko:8000", service.address.removeprefix("http://"))
        (tmp_path / "prometheus.yml").write_text(config)
        command = [prometheus, "--config.file=prometheus.yml", f"--web.listen-address={address}"]
        command += [f"--storage.tsdb.path={tmp_path / 'data'}", "--log.level=error"]
        with subprocess.Popen(command, cwd=tmp_path) as process:
            try:
                wait_until(lambda: query(address, "leuko_model_ready") == [1])
                wait_until(lambda: set(rules(address)) == {"ok"})
                wait_until(lambda: query(address, "leuko:queue:fill") == [0])
                assert query(address, 'ALERTS{alertname!=""}') == []
            finally:
                process.terminate()


def ask(address: str, path: str, **params: str) -> Any:
    try:
        return httpx.get(f"http://{address}/api/v1/{path}", params=params).json().get("data")
    except httpx.TransportError:  # it is still starting
        return None


def query(address: str, expression: str) -> list[float]:
    found = ask(address, "query", query=expression) or {"result": []}
    return [float(one["value"][1]) for one in found["result"]]


def rules(address: str) -> list[str]:
    found = ask(address, "rules") or {"groups": []}
    return [rule["health"] for group in found["groups"] for rule in group["rules"]]
