"""ops/kubernetes against Kubernetes' schemas, the service and, for the metric, a real Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from kubernetes_validate import utils, validate

from app.edge.keys import REREAD_S, Keys, add_key
from app.server.run import GRACE_S
from app.settings import Settings, variable
from tests.ops.test_prometheus import Prometheus, program
from tests.running import FAKE, ROOT, free_port, running, wait_until

OPS = ROOT / "ops/kubernetes"
OTHERS = {"kustomization.yaml", "prometheus-scrape.yaml", "prometheus-adapter.yaml"}
OLDEST = (1, 30)  # whose pods can sleep before they stop
VERSIONS = sorted({one for one in utils.all_versions() if tuple(map(int, one.split(".")[:2])) >= OLDEST})
META = "__meta_kubernetes_"


def load(path: Path) -> Any:
    [document] = utils.resources_from_file(str(path))
    return document


KUSTOMIZATION = load(OPS / "kustomization.yaml")
MANIFESTS: dict[str, Any] = {one["kind"]: one for one in (load(OPS / n) for n in KUSTOMIZATION["resources"])}
DEPLOYMENT = MANIFESTS["Deployment"]["spec"]
LABELS = DEPLOYMENT["template"]["metadata"]["labels"]
POD = DEPLOYMENT["template"]["spec"]
[CONTAINER] = POD["containers"]
[PORT] = CONTAINER["ports"]
[MEASURE] = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
MEASURED = MEASURE["pods"]["metric"]["name"]


def environ() -> dict[str, str]:
    """Return the environment of the container."""
    return {one["name"]: one["value"] for one in CONTAINER["env"]}


SETTINGS = Settings.from_environ(environ())


def under(node: Any, key: str) -> Iterator[Any]:
    """Yield each value of a key, at any depth."""
    if isinstance(node, dict):
        yield from [node[key]] if key in node else []
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from under(child, key)


def test_every_file_is_a_resource_or_no_manifest() -> None:
    assert {path.name for path in OPS.iterdir()} == {*KUSTOMIZATION["resources"]} | OTHERS
    assert len(MANIFESTS) == len(KUSTOMIZATION["resources"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", MANIFESTS)
def test_every_manifest_is_what_kubernetes_expects(kind: str, version: str) -> None:
    assert validate(MANIFESTS[kind], version, strict=True) == utils.major_minor(version)


def test_kustomize_leaves_the_number_of_pods_to_the_autoscaler_and_all_else_as_it_is(tmp_path: Path) -> None:
    command = [program("kubectl"), "kustomize", str(OPS), "--output", str(tmp_path / "all.yaml")]
    subprocess.run(command, check=True, timeout=60)
    made = {one["kind"]: one for one in utils.resources_from_file(str(tmp_path / "all.yaml"))}
    assert {one["metadata"].pop("namespace") for one in made.values()} == {KUSTOMIZATION["namespace"]}
    assert made["Deployment"]["spec"].setdefault("replicas", 2) == DEPLOYMENT["replicas"]
    assert made == MANIFESTS
    assert MANIFESTS["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == 2


def test_whatever_selects_pods_selects_these() -> None:
    selectors = [DEPLOYMENT["selector"]["matchLabels"], MANIFESTS["Service"]["spec"]["selector"]]
    selectors += [MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]]
    selectors += [MANIFESTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]]
    selectors += [one["labelSelector"]["matchLabels"] for one in POD["topologySpreadConstraints"]]
    assert [one for one in selectors if one != LABELS] == []
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = MANIFESTS["Deployment"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }


def test_every_variable_is_a_setting_and_those_of_the_service_are_kept_away() -> None:
    assert {*environ()} <= {variable(setting) for setting in fields(Settings)}
    assert POD["enableServiceLinks"] is False


def test_the_port_is_the_same_everywhere() -> None:
    assert SETTINGS.port == PORT["containerPort"]
    allowed = MANIFESTS["NetworkPolicy"]["spec"]["ingress"]
    assert [*under(allowed, "port")] == [SETTINGS.port]
    assert {*under(MANIFESTS["Service"], "targetPort")} == {PORT["name"]}
    assert {probe["port"] for probe in under(CONTAINER, "httpGet")} == {PORT["name"]}


def test_files_are_where_something_is_mounted_and_the_keys_are_a_secret() -> None:
    mounted = {one["mountPath"]: one["name"] for one in CONTAINER["volumeMounts"]}
    volumes = {one["name"]: one for one in POD["volumes"]}
    keys = volumes[mounted[str(Path(SETTINGS.keys).parent)]]["secret"]
    assert [one["path"] for one in keys["items"]] == [Path(SETTINGS.keys).name]
    assert keys["optional"] is False
    assert "sizeLimit" in volumes[mounted[str(Path(SETTINGS.cache).parent)]]["emptyDir"]
    assert [*under(CONTAINER, "subPath")] == []  # such a file is never another


def test_a_pod_has_the_time_that_its_end_may_take() -> None:
    asleep = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    # uvicorn waits for requests, then app.inference.service for the engine, each for as long.
    assert POD["terminationGracePeriodSeconds"] >= asleep + GRACE_S + 2 * SETTINGS.drain_s


def test_keys_are_read_again_when_a_kubelet_changes_the_secret(tmp_path: Path) -> None:
    def write(version: str) -> str:
        """Write as a kubelet does: one folder per version, and links to the newest."""
        (tmp_path / version).mkdir()
        secret = add_key(tmp_path / version / "keys.txt", "lab-1", ["predict"])
        (tmp_path / "..data_tmp").symlink_to(version)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        return secret

    old = write("..1")
    (tmp_path / "keys.txt").symlink_to("..data/keys.txt")
    now = [0.0]
    keys = Keys(tmp_path / "keys.txt", clock=lambda: now[0])
    assert keys.find(old) is not None
    new = write("..2")
    now[0] += REREAD_S
    assert keys.find(old) is None
    assert keys.find(new) is not None


def test_what_the_adapter_averages_is_several_scrapes() -> None:
    [job] = load(OPS / "prometheus-scrape.yaml")["scrape_configs"]
    [rule] = load(OPS / "prometheus-adapter.yaml")["rules"]["custom"]
    assert "[1m]" in rule["metricsQuery"]
    assert int(job["scrape_interval"].removesuffix("s")) <= 60 / 4


@pytest.mark.ops
def test_a_pod_answers_its_probes_without_a_key_and_prometheus_gives_the_autoscaler_its_metric(
    tmp_path: Path,
) -> None:
    key = add_key(tmp_path / "keys.txt", "prometheus", ["metrics"])
    (tmp_path / "key").write_text(key)
    with running(FAKE, "--keys", str(tmp_path / "keys.txt"), environ=environ()) as service:
        paths = {probe["path"] for probe in under(CONTAINER, "httpGet")}
        assert {httpx.get(service.address + path).status_code for path in paths} == {200}
        assert httpx.get(f"{service.address}/metrics").status_code == 401
        metrics = httpx.get(f"{service.address}/metrics", headers={"Authorization": f"Bearer {key}"}).text
        assert f"# TYPE {MEASURED} gauge" in metrics
        pod = {f"{META}namespace": "leuko", f"{META}pod_name": "leuko-1"}
        pod[f"{META}pod_container_port_name"] = PORT["name"]
        pod |= {f"{META}pod_label_{re.sub(r'[./]', '_', name)}": value for name, value in LABELS.items()}
        config = load(OPS / "prometheus-scrape.yaml")
        [job] = config["scrape_configs"]
        job["scrape_interval"] = "1s"
        assert job.pop("kubernetes_sd_configs")[0]["namespaces"]["names"] == [KUSTOMIZATION["namespace"]]
        job["authorization"]["credentials_file"] = str(tmp_path / "key")
        target = {"targets": [service.address.removeprefix("http://")]}
        other = pod | {f"{META}pod_name": "other", f"{META}pod_container_port_name": "another"}
        pods = [pod | {f"{META}pod_phase": "Running"}, other]
        ended = ("Failed", "Succeeded")
        pods += [pod | {f"{META}pod_name": phase, f"{META}pod_phase": phase} for phase in ended]
        job["static_configs"] = [target | {"labels": labels} for labels in pods]
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))
        address = f"127.0.0.1:{free_port()}"
        command = [program("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}", "--log.level=error"]
        command += [f"--web.listen-address={address}", f"--storage.tsdb.path={tmp_path / 'data'}"]
        with subprocess.Popen(command) as process:
            try:
                # What the adapter asks for two pods of one namespace.
                [rule] = load(OPS / "prometheus-adapter.yaml")["rules"]["custom"]
                assert rule["name"]["as"] == MEASURED
                query = rule["metricsQuery"].replace("<<.Series>>", MEASURED)
                query = query.replace("<<.LabelMatchers>>", 'namespace="leuko",pod=~"leuko-1|other"')
                prometheus = Prometheus(address)
                wait_until(lambda: prometheus.query(query.replace("<<.GroupBy>>", "pod")) == [0])
                assert prometheus.query(f"count({rule['seriesQuery']})") == [1]
                assert len(prometheus.ask("targets")["activeTargets"]) == 1
            finally:
                process.terminate()
