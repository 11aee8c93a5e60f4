"""ops/prometheus and ops/grafana, run by a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.engine.bundle import CLASSES
from app.evaluation.answer_profile import Seen, dump, summarise
from app.observability.metrics import Telemetry
from tests.fake_classifier import png
from tests.fakes import CUT, serving
from tests.running import FAKE, ROOT, Running, free_port, running, wait_until
from tests.safety.raw import head

OPS = ROOT / "ops/prometheus"
DASHBOARD = ROOT / "ops/grafana/dashboards/leuko.json"
# A test cannot wait for hours: the same rules over seconds.
HASTE = {"[6h]": "[20s]", "[1h]": "[20s]", "[5m]": "[10s]"}
PANEL = {"$instance": ".*", "$__rate_interval": "10s"}


@dataclass(frozen=True)
class Prometheus:
    address: str

    def ask(self, path: str, **params: str) -> Any:
        try:
            sent = httpx.get(f"http://{self.address}/api/v1/{path}", params=params)
        except httpx.TransportError:  # it is still starting
            return None
        return None if sent.status_code == 503 else sent.json().get("data")

    def query(self, expression: str) -> list[float]:
        found = self.ask("query", query=expression) or {"result": []}
        return [float(one["value"][1]) for one in found["result"]]

    def rules(self) -> set[str]:
        found = self.ask("rules") or {"groups": []}
        return {rule["health"] for group in found["groups"] for rule in group["rules"]}

    def firing(self) -> set[str]:
        found = self.ask("alerts") or {"alerts": []}
        return {one["labels"]["alertname"] for one in found["alerts"] if one["state"] == "firing"}


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is absent")
    return found


def hasten(folder: Path, target: str) -> None:
    """Write the shipped configuration and rules to the folder, over seconds."""
    rules = (OPS / "leuko.rules.yml").read_text()
    for slow, fast in HASTE.items():
        assert slow in rules
        rules = rules.replace(slow, fast)
    (folder / "leuko.rules.yml").write_text(re.sub(r"\bfor: \w+", "for: 1s", rules))
    config = (OPS / "prometheus.yml").read_text().replace("15s", "1s").replace("leuko:8000", target)
    (folder / "prometheus.yml").write_text(config)


@contextmanager
def scraping(folder: Path, service: Running) -> Iterator[Prometheus]:
    """Run Prometheus with a scrape every second and the shipped rules over shorter windows."""
    hasten(folder, service.address.removeprefix("http://"))
    address = f"127.0.0.1:{free_port()}"
    command = [program("prometheus"), "--config.file=prometheus.yml", f"--web.listen-address={address}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", "--log.level=error"]
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            yield Prometheus(address)
        finally:
            process.terminate()


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
    promtool(OPS, *arguments)


def promtool(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def try_rules(folder: Path, series: Mapping[str, str], **tests: Any) -> None:
    """Test the shipped rules on series with one sample per minute, as leuko.rules.test.yml does."""
    rules = {"rule_files": [str(OPS / "leuko.rules.yml")], "evaluation_interval": "1m"}
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    (folder / "test.yml").write_text(
        json.dumps(rules | {"tests": [{"interval": "1m", "input_series": inputs} | tests]})
    )
    promtool(folder, "test", "rules", "test.yml")


def test_every_alert_is_tried() -> None:
    alerts = re.findall(r"- alert: (\w+)", (OPS / "leuko.rules.yml").read_text())
    tried = set(
        re.findall(r"alertname: (\w+)\n.*\n +exp_alerts:\n", (OPS / "leuko.rules.test.yml").read_text())
    )
    assert set(alerts) == tried


def test_every_metric_that_a_rule_names_exists() -> None:
    known = Telemetry().render().decode()
    named = set(re.findall(r"\bleuko_[a-z_]+", (OPS / "leuko.rules.yml").read_text()))
    assert len(named) > 8
    for name in named:
        base = re.sub(r"_(bucket|count|sum|total)$", "", name)
        assert re.search(rf"^# TYPE {base}(_total)? ", known, re.MULTILINE), name


def test_probes_and_scrapes_are_no_requests_of_users_and_what_classifies_images_may_be_slow() -> None:
    rules = (OPS / "leuko.rules.yml").read_text()
    [others] = re.findall(r'route!~"([^"]+)"', rules)
    [images] = re.findall(r'route=~"([^"]+)"', rules)
    health = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
    routine = counted_as("GET", *health, "/v2/models/fake/ready", "/v2/models/fake/versions/1.2/ready")
    inference = ("/v2/models/fake/infer", "/v2/models/fake/versions/1.2/infer")
    classifying = counted_as("POST", "/predict", "/v1/predict", "/differential", *inference)
    rest = counted_as("POST", "/evaluate", "/evaluate/predictions", "/nowhere") | counted_as("GET", "/model")
    assert {route for route in routine | classifying | rest if re.fullmatch(others, route)} == routine
    assert {route for route in routine | classifying | rest if re.fullmatch(images, route)} == classifying


def counted_as(method: str, *paths: str) -> set[str]:
    with serving() as client:
        for path in paths:
            client.request(method, path)
        counts = r'^leuko_http_request_duration_seconds_count{.*route="(.*)"}'
        return set(re.findall(counts, client.get("/metrics").text, re.MULTILINE))


@pytest.mark.parametrize(("seconds", "expected"), [(1.1, None), (2.4, None), (2.6, "4.375s"), (6.0, "8.75s")])
def test_a_service_is_slow_when_one_in_twenty_takes_more_than_the_alert_says(
    tmp_path: Path, seconds: float, expected: str | None
) -> None:
    telemetry = Telemetry()
    for number in range(20):
        telemetry.observe_request("/predict", "POST", 200, 0.1 if number % 5 else seconds)
    series = {}
    for family in telemetry.http_request_duration.collect():
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            series[f'{sample.name}{{job="leuko",instance="a",{labels}}}'] = f"0+{sample.value:g}x30"
    alert: dict[str, Any] = {"alertname": "LeukoSlow", "eval_time": "20m"}
    if expected is not None:
        exp_labels = {"severity": "warning", "job": "leuko", "instance": "a", "route": "/predict"}
        summary = f"a: 5% of /predict take over {expected}"
        alert["exp_alerts"] = [{"exp_labels": exp_labels, "exp_annotations": {"summary": summary}}]
    try_rules(tmp_path, series, alert_rule_test=[alert])


def test_the_dashboard_is_right_about_several_replicas_of_which_one_is_gone(tmp_path: Path) -> None:
    series = {
        'up{job="leuko",instance="a"}': "1x20",
        'up{job="leuko",instance="b"}': "1x4 0x16",
        'leuko_model_ready{job="leuko",instance="a"}': "1x20",
        'leuko_model_ready{job="leuko",instance="b"}': "1x4 stale",
        # One cell in four of all: a has three times the work of b.
        'leuko_predictions_total{job="leuko",instance="a",label="monocyte"}': "0+0x20",
        'leuko_predictions_total{job="leuko",instance="a",label="neutrophil"}': "0+30x20",
        'leuko_predictions_total{job="leuko",instance="b",label="monocyte"}': "0+10x20",
    }
    shares = [
        {"labels": '{label="monocyte"}', "value": 0.25},
        {"labels": '{label="neutrophil"}', "value": 0.75},
    ]
    ready, classes = panel("Ready"), panel("Classes, last 6 hours")
    tests = [
        {"expr": ready, "eval_time": "4m", "exp_samples": [{"labels": "{}", "value": 1}]},
        {"expr": ready, "eval_time": "6m", "exp_samples": [{"labels": "{}", "value": 0}]},
        {"expr": classes, "eval_time": "20m", "exp_samples": shares},
    ]
    try_rules(tmp_path, series, promql_expr_test=tests)


def panel(title: str) -> str:
    """Return the first query of a panel."""
    [found] = [one for one in json.loads(DASHBOARD.read_text())["panels"] if one["title"] == title]
    return filled(found["targets"][0]["expr"])


def test_a_service_at_rest_is_scraped_every_rule_evaluated_and_no_alert_fires(tmp_path: Path) -> None:
    program("prometheus")
    with running() as service, scraping(tmp_path, service) as prometheus:
        wait_until(lambda: prometheus.query("leuko_model_ready") == [1])
        wait_until(lambda: prometheus.rules() == {"ok"})
        wait_until(lambda: prometheus.query("leuko:queue:fill") == [0])
        wait_until(lambda: prometheus.query("leuko_predictions_total") == [0] * len(CLASSES))
        # Before its first scrape Prometheus had no target, which counts as down.
        wait_until(lambda: prometheus.firing() == set())


@pytest.mark.ops
def test_under_load_alerts_fire_and_every_panel_of_the_dashboard_shows_something(tmp_path: Path) -> None:
    program("prometheus")
    expected = [Seen(label, 0.9, 1.0, review=False) for label in CLASSES]
    (tmp_path / "expected.json").write_text(json.dumps(dump(summarise(expected, CLASSES, "a quiet week"))))
    arguments = ("--reference", str(tmp_path / "expected.json"), "--max-requests", "1")
    with running(FAKE, *arguments) as service, scraping(tmp_path, service) as prometheus:
        wait_until(lambda: prometheus.query("leuko_model_ready") == [1])
        drift = {"LeukoLabelMix", "LeukoConfidence", "LeukoStrange", "LeukoReviews"}
        with service.client() as client:
            wait_until(lambda: bool(classify(client) and drift <= prometheus.firing()))
            wait_until(lambda: bool(classify(client) and silent_panels(prometheus) == {"Rejected by reason"}))
            with socket.create_connection(("127.0.0.1", service.port)) as slow:
                # The one request that may be in flight never ends, so all others are rejected.
                lines = ("Content-Type: image/png", "Content-Length: 9", "Expect: 100-continue")
                slow.sendall(head("POST /predict HTTP/1.1", *lines))
                assert slow.recv(100).startswith(b"HTTP/1.1 100")
                wait_until(lambda: bool(refused(client) and "LeukoRefusing" in prometheus.firing()))
            # With others answered again: panels look back ten seconds, and a slow machine takes longer.
            wait_until(lambda: bool(classify(client) and silent_panels(prometheus) == set()))


def classify(client: httpx.Client) -> bool:
    """Send forty eosinophils that the fake classifier gives a high ood_score, and one corrupt image."""
    files = [("files", (f"{n}.png", png(n))) for n in range(40)] + [("files", ("cut.png", CUT))]
    return client.post("/predict", files=files).status_code == 200


def refused(client: httpx.Client) -> bool:
    sent = client.post("/predict", content=png(0), headers={"content-type": "image/png"})
    return sent.status_code == 429


def silent_panels(prometheus: Prometheus) -> set[str]:
    """Return the panels with a query that has no result, or no number as a result."""
    return {
        panel["title"]
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel["targets"]
        if not any(value == value for value in prometheus.query(filled(target["expr"])))
    }


def filled(expression: str) -> str:
    for variable, value in PANEL.items():
        expression = expression.replace(variable, value)
    return expression
