"""The names, labels and buckets that dashboards and alerts are built on."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.engine.bundle import CLASSES
from app.evaluation.answer_profile import Seen, summarise
from app.inference.batcher import BatchStats
from app.observability.metrics import Telemetry
from app.observability.shared_folder import SHARED
from tests.running import ROOT

LATENCIES = "0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 2.5 5.0 10.0 +Inf"
PROCESS = """
from app.observability.metrics import Telemetry
telemetry = Telemetry()
telemetry.watch(depth=lambda: 1, ready=lambda: {ready}, keys_stale=lambda: not {ready})
print(telemetry.render().decode())
"""


def families(telemetry: Telemetry) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(telemetry.render().decode())}


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, labels)


def test_every_instrument_of_the_design_is_there() -> None:
    names = set(families(Telemetry()))
    assert {name for name in names if name.startswith("leuko_") and not name.endswith("_created")} == {
        "leuko_http_request_duration_seconds",
        "leuko_queue_depth",
        "leuko_queue_capacity",
        "leuko_queue_wait_seconds",
        "leuko_queue_first_wait_seconds",
        "leuko_queue_callers",
        "leuko_queue_share_refused",
        "leuko_stage_duration_seconds",
        "leuko_batch_size",
        "leuko_images",
        "leuko_rejected",
        "leuko_predictions",
        "leuko_prediction_confidence",
        "leuko_ood_score",
        "leuko_reviews",
        "leuko_review_reasons",
        "leuko_reference_share",
        "leuko_reference_confidence",
        "leuko_reference_ood_score",
        "leuko_reference_review_share",
        "leuko_model_info",
        "leuko_model_ready",
        "leuko_engine_restarts",
        "leuko_decoders_lost",
        "leuko_keys_stale",
        "leuko_models_stale",
        "leuko_shadow_images",
        "leuko_shadow_disagreements",
        "leuko_audit_failing",
        "leuko_metrics_unshared",
    }
    assert "python_info" in names


def test_latencies_share_their_buckets() -> None:
    telemetry = Telemetry()
    telemetry.observe_request("/predict", "POST", 200, 0.2)
    telemetry.observe_batch(BatchStats(size=2, waits=(0.1, 0.2), first_waits=(0.1,), seconds=0.3))
    with telemetry.stage("infer"):
        pass
    for name in ("http_request_duration", "queue_wait", "stage_duration"):
        samples = families(telemetry)[f"leuko_{name}_seconds"].samples
        edges = [sample.labels["le"] for sample in samples if sample.name.endswith("_bucket")]
        assert " ".join(edges) == LATENCIES


def test_a_request_is_counted_under_its_route_method_and_status() -> None:
    telemetry = Telemetry()
    telemetry.observe_request("/predict", "POST", 200, 0.2)
    name = "leuko_http_request_duration_seconds"
    assert value(telemetry, f"{name}_count", route="/predict", method="POST", code="200") == 1
    assert value(telemetry, f"{name}_sum", route="/predict", method="POST", code="200") == 0.2


def test_values_from_a_client_create_no_new_series() -> None:
    telemetry = Telemetry()
    for number in range(100):
        telemetry.observe_request(None, f"BREW{number}", 404, 0.1)
    name = "leuko_http_request_duration_seconds_count"
    assert value(telemetry, name, route="unmatched", method="other", code="404") == 100


def test_a_batch_counts_its_size_and_its_waits() -> None:
    telemetry = Telemetry()
    telemetry.observe_batch(BatchStats(size=2, waits=(0.1, 0.2), first_waits=(0.1,), seconds=0.5))
    assert value(telemetry, "leuko_batch_size_sum") == 2
    assert value(telemetry, "leuko_queue_wait_seconds_count") == 2
    assert value(telemetry, "leuko_queue_first_wait_seconds_count") == 1


def test_a_stage_is_timed_while_its_block_runs() -> None:
    telemetry = Telemetry()
    with telemetry.stage("decode"):
        assert not value(telemetry, "leuko_stage_duration_seconds_count", stage="decode")
    assert value(telemetry, "leuko_stage_duration_seconds_count", stage="decode") == 1


def test_images_refusals_and_predictions_are_counted() -> None:
    telemetry = Telemetry()
    telemetry.count_image()
    telemetry.count_image("undecodable_image")
    telemetry.count_rejected("queue_full")
    telemetry.observe_prediction("monocyte", 0.97, 1.2, ["low_confidence", "blurred"])
    assert value(telemetry, "leuko_images_total", outcome="ok") == 1
    assert value(telemetry, "leuko_images_total", outcome="undecodable_image") == 1
    assert value(telemetry, "leuko_rejected_total", reason="queue_full") == 1
    assert value(telemetry, "leuko_predictions_total", label="monocyte") == 1
    assert value(telemetry, "leuko_prediction_confidence_sum") == 0.97
    assert value(telemetry, "leuko_ood_score_sum") == 1.2
    assert value(telemetry, "leuko_reviews_total") == 1
    assert value(telemetry, "leuko_review_reasons_total", reason="blurred") == 1
    telemetry.observe_prediction("monocyte", 0.99, 1.0, [])
    assert value(telemetry, "leuko_reviews_total") == 1


def test_the_reference_profile_is_exported() -> None:
    telemetry = Telemetry()
    seen = [Seen("monocyte", 0.9, 1.0, False)] * 3 + [Seen("neutrophil", 0.5, 2.0, True)]
    telemetry.describe_reference(summarise(seen, CLASSES, "four cells"), CLASSES)
    assert value(telemetry, "leuko_reference_share", label="monocyte") == 0.75
    assert value(telemetry, "leuko_reference_share", label="eosinophil") == 0
    assert value(telemetry, "leuko_reference_confidence") == 0.8
    assert value(telemetry, "leuko_reference_ood_score") == 1.25
    assert value(telemetry, "leuko_reference_review_share") == 0.25
    telemetry.describe_reference(None, CLASSES)
    for name, labels in (
        ("leuko_reference_share", {"label": "monocyte"}),
        ("leuko_reference_confidence", {}),
    ):
        reference = value(telemetry, name, **labels)
        assert reference is not None
        assert math.isnan(reference)


def test_a_class_of_a_model_before_is_expected_no_more() -> None:
    telemetry = Telemetry()
    telemetry.describe_reference(None, CLASSES)
    labels = ("basophil", "neutrophil")
    seen = [Seen(label, 0.9, 1.0, review=False) for label in labels]
    telemetry.describe_reference(summarise(seen, labels, "two cells"), labels)
    shares = {
        label: value(telemetry, "leuko_reference_share", label=label) for label in (*CLASSES, "basophil")
    }
    assert shares == dict.fromkeys(CLASSES, 0) | {"basophil": 0.5, "neutrophil": 0.5}
    telemetry.describe_reference(None, labels)
    assert math.isnan(value(telemetry, "leuko_reference_share", label="monocyte") or 0)


def test_every_class_is_counted_from_0_before_its_first_answer() -> None:
    telemetry = Telemetry()
    telemetry.describe_reference(None, CLASSES)
    assert [value(telemetry, "leuko_predictions_total", label=label) for label in CLASSES] == [0] * 4
    telemetry.observe_prediction("monocyte", 0.97, 1.2, [])
    telemetry.describe_reference(None, CLASSES)
    assert value(telemetry, "leuko_predictions_total", label="monocyte") == 1


def test_several_processes_are_ready_if_all_are_and_stale_if_any_is(tmp_path: Path) -> None:
    environ = {**os.environ, SHARED: str(tmp_path)}
    for ready, expected in ((True, ("1.0", "0.0")), (False, ("0.0", "1.0")), (True, ("0.0", "1.0"))):
        command = [sys.executable, "-c", PROCESS.format(ready=ready)]
        done = subprocess.run(command, env=environ, cwd=ROOT, check=True, capture_output=True, text=True)
        gauges = dict(re.findall(r"^(leuko_\w+) (.*)$", done.stdout, re.MULTILINE))
        assert (gauges["leuko_model_ready"], gauges["leuko_keys_stale"]) == expected


def test_the_queue_and_readiness_are_read_at_each_scrape() -> None:
    telemetry = Telemetry()
    queue: list[str] = []
    telemetry.watch(depth=lambda: len(queue), callers=lambda: len(queue), ready=lambda: bool(queue))
    for expected in (0, 1):
        scraped = families(telemetry)
        assert scraped["leuko_queue_depth"].samples[0].value == expected
        assert scraped["leuko_queue_callers"].samples[0].value == expected
        assert scraped["leuko_model_ready"].samples[0].value == expected
        queue.append("image")


def test_the_models_in_use_are_1_and_replaced_ones_are_0() -> None:
    telemetry = Telemetry()
    telemetry.describe_models([("wbc", "1.0.0", "aa", ""), ("other", "1", "cc", "")])
    telemetry.describe_models([("wbc", "1.1.0", "bb", 'Ward "3"'), ("other", "1", "cc", "")])
    samples = families(telemetry)["leuko_model_info"].samples
    assert {
        (sample.labels["version"], sample.labels["verified_for"], sample.value) for sample in samples
    } == {("1.0.0", "", 0), ("1.1.0", 'Ward "3"', 1), ("1", "", 1)}


def test_two_services_in_one_process_share_nothing() -> None:
    one, other = Telemetry(), Telemetry()
    one.count_rejected("queue_full")
    assert value(other, "leuko_rejected_total", reason="queue_full") is None
