"""The image as docker-compose.yml, nginx' configuration and Kubernetes' manifest deploy it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.edge.keys import make_key
from tests.certificates import OPENSSL, self_signed
from tests.containers import COMPOSE, STARTING_S, Container, call, contained, engine, hardened, image
from tests.ops.test_image import cell, metric, predict, shared
from tests.ops.test_kubernetes import CONTAINER, POD, environ
from tests.ops.test_prometheus import Prometheus, hasten
from tests.ops.test_replicas import asking, wait_for
from tests.proxying import NAME, SHIPPED, Named, trusting
from tests.running import PATIENCE_S, ROOT, free_port, wait_until

pytestmark = [
    pytest.mark.ops,
    pytest.mark.skipif(sys.platform != "linux", reason="containers are reached by their own addresses"),
]
SUBNET = "10.213.77"
# What the tests need beside Leuko, made of Debian's packages on the base that the image has.
PROMETHEUS = """
FROM {base}
RUN apt-get update && apt-get install -y --no-install-recommends prometheus wget
WORKDIR /prometheus
RUN chown 65534:65534 . && rm -r /var/lib/prometheus/metrics2 && ln -s "$PWD" /var/lib/prometheus/metrics2
USER 65534:65534
VOLUME /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
"""
# It answers the health check of Grafana, whose own image is not to be had without a registry.
GRAFANA = """
FROM {base}
RUN apt-get update && apt-get install -y --no-install-recommends wget
WORKDIR /srv/api
RUN touch health
WORKDIR /srv
USER 65534:65534
CMD ["python3", "-m", "http.server", "3000"]
"""
NGINX = """
FROM {base}
RUN apt-get update && apt-get install -y --no-install-recommends nginx-light
CMD ["nginx", "-g", "daemon off;"]
"""
MAIN = """
events { worker_connections 512; }
http { include /etc/nginx/leuko.conf; }
"""


@contextmanager
def built(name: str, dockerfile: str) -> Iterator[str]:
    """Yield the image `name`: as it is here, or else made of Debian's packages until the block ends."""
    image()
    if call("image", "ls", "--quiet", name):
        yield name
        return
    try:
        [base] = re.findall(r"^ARG BASE_TAG=(\S+)", (ROOT / "Dockerfile").read_text(), re.M)
        command = [engine(), "build", "--tag", name, "-"]
        environ = os.environ | {"DOCKER_BUILDKIT": "1"}  # what it keeps is no image
        text = dockerfile.format(base=f"python:{base}")
        done = subprocess.run(command, env=environ, input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        yield name
    finally:
        call("image", "rm", name, check=False)


def test_an_image_that_a_test_makes_is_gone_afterwards_and_one_that_was_there_stays() -> None:
    with built("leuko-test-none", "FROM {base}") as name:
        assert call("image", "ls", "--quiet", name)
        with built(name, "FROM nothing") as same:
            assert same == name
        assert call("image", "ls", "--quiet", name)
    assert not call("image", "ls", "--quiet", name)


# --- docker-compose.yml -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Project:
    """A project of compose. files: docker-compose.yml with this test's ports and rules."""

    name: str
    file: Path
    leuko: int  # ports
    prometheus: int
    grafana: int
    first: set[str] = field(default_factory=set)  # the services that came up with Grafana

    def compose(self, *arguments: str) -> str:
        found = shutil.which("docker-compose")
        command = [found] if found else [engine(), "compose"]
        options = ["--project-name", self.name, "--file", str(self.file), "--project-directory", str(ROOT)]
        done = subprocess.run([*command, *options, *arguments], capture_output=True, text=True)
        if done.returncode and not found and "is not a docker command" in done.stderr:
            pytest.skip("compose is absent")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def has(self, service: str) -> bool:
        return self.compose("ps", "--quiet", service).strip() != ""

    def container(self, service: str) -> Container:
        return Container(self.compose("ps", "--quiet", service).strip())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """All of docker-compose.yml; without a registry, with stand-ins for Prometheus and Grafana."""
    folder = tmp_path_factory.mktemp("compose")
    rules = folder / "rules"
    rules.mkdir()
    hasten(rules, "leuko:8000")
    for each in (folder, rules, *rules.iterdir()):
        each.chmod(0o755)
    project = Project(
        f"leuko-test-{uuid4().hex[:12]}",
        folder / "docker-compose.yml",
        free_port(),
        free_port(),
        free_port(),
    )
    text = (ROOT / "docker-compose.yml").read_text()
    changes = {
        "127.0.0.1:8000:": f"127.0.0.1:{project.leuko}:",
        "127.0.0.1:9090:": f"127.0.0.1:{project.prometheus}:",
        "127.0.0.1:3000:": f"127.0.0.1:{project.grafana}:",
        "./ops/prometheus:": f"{rules}:",
    }
    for shipped, here in changes.items():
        assert shipped in text
        text = text.replace(shipped, here)
    project.file.write_text(text)
    with ExitStack() as stack:
        for service, dockerfile in (("prometheus", PROMETHEUS), ("grafana", GRAFANA)):
            stack.enter_context(built(COMPOSE["services"][service]["image"], dockerfile))
        stack.callback(project.compose, "down", "--volumes")
        project.compose("up", "--detach", "grafana")
        project.first.update(service for service in COMPOSE["services"] if project.has(service))
        project.compose("up", "--detach")
        yield project


def test_all_become_healthy_and_leuko_answers_on_its_published_port(project: Project) -> None:
    for service in COMPOSE["services"]:
        project.container(service).wait_until_healthy()
    for port, path in ((project.grafana, "/api/health"), (project.prometheus, "/-/ready")):
        assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200
    project.container("leuko").wait_until_ready()
    with httpx.Client(base_url=f"http://127.0.0.1:{project.leuko}", timeout=PATIENCE_S) as client:
        assert predict(client).status_code == 200
    inspected = project.container("leuko").inspect()
    assert inspected["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert inspected["HostConfig"]["ReadonlyRootfs"] is True
    assert inspected["HostConfig"]["Memory"] == 5 * 2**30
    assert inspected["Config"]["StopTimeout"] == 45


def test_grafana_brings_up_prometheus_before_it_and_nothing_else(project: Project) -> None:
    assert project.first == {"grafana", "prometheus"}
    started = [project.container(service).state["StartedAt"] for service in ("prometheus", "grafana")]
    assert started == sorted(started)


def test_prometheus_scrapes_it_and_loads_all_rules(project: Project) -> None:
    prometheus = Prometheus(f"127.0.0.1:{project.prometheus}")
    wait_until(lambda: prometheus.query('up{job="leuko"}') == [1.0])
    wait_until(lambda: prometheus.rules() == {"ok"})
    wait_until(lambda: prometheus.query("leuko_model_ready") == [1.0])


def test_an_alert_fires_when_it_is_gone_and_ends_when_it_is_back(project: Project) -> None:
    prometheus = Prometheus(f"127.0.0.1:{project.prometheus}")
    wait_until(lambda: prometheus.query('up{job="leuko"}') == [1.0])
    assert "LeukoDown" not in prometheus.firing()
    project.compose("stop", "leuko")
    assert project.container("leuko").state["ExitCode"] == 0
    wait_until(lambda: "LeukoDown" in prometheus.firing())
    project.compose("start", "leuko")
    wait_until(lambda: "LeukoDown" not in prometheus.firing())


def test_a_service_that_hangs_is_unhealthy_until_it_goes_on(project: Project) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can halt a container's process but not its health checks")
    container = project.container("leuko")
    container.wait_until_healthy()
    os.kill(container.state["Pid"], signal.SIGSTOP)
    try:
        wait_until(lambda: container.health["Status"] == "unhealthy", STARTING_S)
    finally:
        os.kill(container.state["Pid"], signal.SIGCONT)
    container.wait_until_healthy()
    assert container.restarts == 0


# --- behind nginx -----------------------------------------------------------------------------------


@dataclass
class Replicas:
    """Two containers on a network, each by slot with an address that it keeps."""

    network: str
    running: dict[int, tuple[Container, ExitStack]] = field(default_factory=dict)

    def start(self, slot: int) -> None:
        stack = ExitStack()
        options = [f"--network={self.network}", f"--ip={self.address(slot)}"]
        container = stack.enter_context(contained(*hardened(), *options))
        self.running[slot] = container, stack

    def end(self, slot: int, how: str) -> None:
        """how: kill or stop."""
        container, stack = self.running.pop(slot)
        call(how, container.name)
        assert container.state["ExitCode"] == {"kill": 137, "stop": 0}[how]
        stack.close()

    def close(self) -> None:
        for _, stack in self.running.values():
            stack.close()

    def wait_until_asked(self, slot: int) -> None:
        """Wait until nginx uses the container again; only then may the other one end."""
        container, _ = self.running[slot]
        with container.client() as client:
            wait_until(lambda: metric(client, "leuko_images_total") > 0)

    @staticmethod
    def address(slot: int) -> str:
        return f"{SUBNET}.{10 + slot}"


@contextmanager
def proxied(folder: Path) -> Iterator[tuple[Replicas, Callable[[], httpx.Client]]]:
    """Two replicas, and how a client connects to nginx, with the shipped configuration, in a third."""
    self_signed(folder, NAME, "leuko")
    text = SHIPPED.read_text()
    changes = {
        "    server 127.0.0.1:8000 max_fails=0;": "    #",
        "# server 127.0.0.1:8000": f"server {Replicas.address(0)}:8000",
        "# server 127.0.0.1:8001": f"server {Replicas.address(1)}:8000",
        "rate=100r/s": "rate=10000r/s",
    }
    for shipped, here in changes.items():
        assert shipped in text
        text = text.replace(shipped, here)
    (folder / "leuko.conf").write_text(text)
    (folder / "nginx.conf").write_text(MAIN)
    replicas = Replicas(f"leuko-test-{uuid4().hex[:12]}")
    call("network", "create", f"--subnet={SUBNET}.0/24", replicas.network)
    mounts = [f"--volume={folder}/{name}:/etc/nginx/{name}:ro" for name in ("nginx.conf", "leuko.conf")]
    mounts += [f"--volume={folder}:/etc/nginx/tls:ro", "--tmpfs=/run"]
    address = f"{SUBNET}.2"
    options = [*mounts, f"--network={replicas.network}", f"--ip={address}"]
    with ExitStack() as stack:
        stack.callback(call, "network", "rm", replicas.network, check=False)
        own = stack.enter_context(built("leuko-test-nginx", NGINX))
        stack.callback(replicas.close)
        for slot in (0, 1):
            replicas.start(slot)
        stack.enter_context(contained(*options, of=own, ready=False))
        connect = partial(connected, address, folder)
        wait_until(lambda: answers(connect))
        yield replicas, connect


def connected(address: str, folder: Path) -> httpx.Client:
    return httpx.Client(
        base_url=f"https://{address}",
        headers={"host": NAME},
        transport=Named(verify=trusting(folder)),
        timeout=PATIENCE_S,
    )


def answers(connect: Callable[[], httpx.Client]) -> bool:
    try:
        with connect() as client:
            return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_behind_nginx_one_is_killed_both_are_replaced_and_no_request_is_lost(tmp_path: Path) -> None:
    if OPENSSL is None:
        pytest.skip("openssl is absent")
    data = cell()

    def outcome(client: httpx.Client) -> list[str]:
        sent = client.post("/predict", content=data, headers={"content-type": "image/jpeg"})
        if sent.status_code != 200:
            return [f"{sent.status_code} {sent.text}"]
        return [sent.json()["predictions"][0]["label"]]

    with proxied(shared(tmp_path / "nginx")) as (replicas, connect), asking(connect, outcome) as seen:
        for slot, how in ((0, "kill"), (1, "stop")):
            replicas.wait_until_asked(1 - slot)
            wait_for(seen, 40)
            replicas.end(slot, how)
            wait_for(seen, 40)
            replicas.start(slot)
            replicas.wait_until_asked(slot)
    print(seen)
    assert set(seen) == {"neutrophil"}


# --- as Kubernetes runs it --------------------------------------------------------------------------


def test_with_kubernetes_security_context_limits_and_probes(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give the keys to the group that Kubernetes gives them to")
    security = POD["securityContext"] | CONTAINER["securityContext"]
    limits = CONTAINER["resources"]["limits"]
    keys, group = tmp_path / "keys", security["fsGroup"]
    _, first = make_key("prometheus", ["metrics"])
    mount(keys, "1", group, f"{first}\n")
    options = [
        f"--user={security['runAsUser']}:{security['runAsGroup']}",
        f"--group-add={security['fsGroup']}",
        *(f"--cap-drop={capability}" for capability in security["capabilities"]["drop"]),
        *(["--read-only"] if security["readOnlyRootFilesystem"] else []),
        *([] if security["allowPrivilegeEscalation"] else ["--security-opt=no-new-privileges:true"]),
        f"--cpus={limits['cpu']}",
        f"--memory={limits['memory'].removesuffix('i').lower()}",
        *(f"--env={name}={value}" for name, value in environ().items()),
        "--tmpfs=/tmp:size=192m,mode=1777",
        f"--volume={keys}:/etc/leuko:ro",
        f"--stop-timeout={POD['terminationGracePeriodSeconds']}",
    ]
    with contained(*options) as container, container.client() as client:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            wait_until(partial(succeeds, client, CONTAINER[probe]))
        assert predict(client).status_code == 401
        secret, second = make_key("lab-1", ["predict"])
        mount(keys, "2", group, f"{first}\n{second}\n")
        key = f"Bearer {secret}"
        wait_until(lambda: predict(client, authorization=key).status_code == 200)
        call("stop", container.name)
        assert container.state["ExitCode"] == 0


def succeeds(client: httpx.Client, probe: dict[str, Any]) -> bool:
    return client.get(probe["httpGet"]["path"], timeout=probe["timeoutSeconds"]).status_code == 200


def mount(folder: Path, version: str, group: int, text: str) -> None:
    """Write a secret as the kubelet does: a folder for each version, behind a link that it moves."""
    inner = folder / f"..{version}"
    inner.mkdir(parents=True)
    (inner / "keys.txt").write_text(text)
    for path in (folder, inner, inner / "keys.txt"):
        os.chown(path, 0, group)
        path.chmod(0o750 if path.is_dir() else 0o440)
    (folder / "..new").symlink_to(inner.name)
    (folder / "..new").rename(folder / "..data")
    if not (folder / "keys.txt").is_symlink():
        (folder / "keys.txt").symlink_to("..data/keys.txt")
