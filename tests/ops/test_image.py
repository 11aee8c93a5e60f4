"""The image `leuko:cpu`, built from this checkout and run by a container engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

import app
from app.samples.smear import draw_smear
from app.units import MIB
from benchmarks.client import MULTIPART
from benchmarks.stalls import pattern
from tests.containers import Container, call, contained, engine, hardened, image
from tests.ops.test_swap import SHIPPED, renamed, write
from tests.pictures import encode
from tests.running import ROOT, wait_until
from tests.safety.intruder import ERRORS, FOLDER, INTRUDED, KILLED, SECRET, SECRETS, attack
from tests.safety.sending import alone
from tests.safety.test_bodies import JSON, MANY_ERRORS, NAMES, WORST
from tests.safety.test_decoders import WORST as WORST_IMAGES

pytestmark = [
    pytest.mark.ops,
    pytest.mark.skipif(sys.platform != "linux", reason="containers are reached by their own addresses"),
]
USER = 10001  # of the image
CLIENTS = 4
PATIENT_S = 600  # for what must end with an answer, on a busy machine too
MOST_ADDED = 350_000_000  # bytes beside the base
SITE = "/opt/leuko/lib/python3.*/site-packages"


@pytest.fixture(scope="module")
def service() -> Iterator[Container]:
    """A container as in docker-compose.yml, which each test leaves as it is."""
    with contained(*hardened()) as container:
        yield container


def cell(label: str = "neutrophil") -> bytes:
    return encode(draw_smear(label), "JPEG")


def predict(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.post("/predict", content=cell(), headers={"content-type": "image/jpeg", **headers})


def shared(folder: Path) -> Path:
    """Return a folder that the image's user can write to."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    return folder


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[{{ ]", line))


# --- what is in it ----------------------------------------------------------------------------------


def test_the_image_adds_no_more_than_its_share_and_says_what_it_is() -> None:
    [found] = json.loads(call("image", "inspect", image()))
    labels = found["Config"]["Labels"]
    base = f"{labels['org.opencontainers.image.base.name']}"
    [below] = json.loads(call("image", "inspect", base))
    added = found["Size"] - below["Size"]
    print(f"{found['Size']} bytes, of which {added} beside {base}, {labels.get('leuko.base', 'as pulled')}")
    assert added < MOST_ADDED
    assert labels["org.opencontainers.image.version"] == app.__version__
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels["org.opencontainers.image.revision"])
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert found["Config"]["User"] == f"{USER}:{USER}"


def test_its_inventory_lists_what_is_installed(service: Container) -> None:
    document = json.loads(service.run("cat", "/opt/leuko/share/leuko.cdx.json"))
    assert (document["bomFormat"], document["metadata"]["component"]["version"]) == (
        "CycloneDX",
        app.__version__,
    )
    listed = {(re.sub(r"[-_.]+", "-", one["name"]).lower(), one["version"]) for one in document["components"]}
    code = "import json; from importlib.metadata import distributions as d; "
    code += "print(json.dumps([[one.name, one.version] for one in d()]))"
    installed = {
        (re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in json.loads(service.python(code))
    }
    model = json.loads((SHIPPED / "config.json").read_text())
    assert listed - installed == {(model["name"], model["version"])}
    assert installed - listed == {("leuko", app.__version__)}


def test_it_has_no_package_that_nothing_imports(service: Container) -> None:
    code = """
import importlib, json, pkgutil, sys
from importlib.metadata import distributions, packages_distributions, requires
import app
for module in pkgutil.walk_packages(app.__path__, "app."):
    if not module.name.startswith(("app.bulk", "app.engine.torch", "app.engine.resnet18")):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
for name in sys.argv[1:]:
    importlib.import_module(name)
tops = {name.partition(".")[0] for name in sys.modules}
used = {owner for top, owners in packages_distributions().items() if top in tops for owner in owners}
print(json.dumps(sorted({one.name for one in distributions()} - used)))
"""
    lazily = (
        "openvino pydicom.pixels huggingface_hub uvloop httptools rich.progress safetensors.numpy PIL.Image"
        " cykooz_resizer opentelemetry.sdk.trace.export opentelemetry.exporter.otlp.proto.http.trace_exporter"
    )
    # What rich draws with, what uvicorn falls back to, and what the Hub's library imports once it downloads.
    late = {"markdown-it-py", "mdurl", "Pygments", "h11"}
    late |= {"filelock", "fsspec", "hf-xet", "httpcore2", "httpx2", "packaging", "PyYAML", "truststore"}
    assert {*json.loads(service.python(code, *lazily.split()))} <= late
    assert (
        service.run("sh", "-c", f"ls -d {SITE}/torch {SITE}/scipy {SITE}/sklearn 2>/dev/null || true") == ""
    )


def test_it_has_nothing_of_the_build_that_nobody_uses_or_that_everybody_can_write_to(
    service: Container,
) -> None:
    found = "find /opt/leuko -name '*activate*' -o -name '*.bat' -o -name .lock"
    found += " -o -path '*/numpy/*' -name tests -o -name test_files -o ! -type l -perm /022"
    assert service.run("sh", "-c", found) == ""


def test_a_change_of_the_code_moves_one_small_layer(tmp_path: Path) -> None:
    name = image()
    names = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for path in ["Dockerfile", ".dockerignore", *names]:
        source, target = ROOT / path, tmp_path / path
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, target)
    with (tmp_path / "app/units.py").open("a") as file:
        file.write("# changed\n")
    other = f"leuko:test-{uuid4().hex[:12]}"
    environ = os.environ | {"DOCKER_BUILDKIT": "1"}
    command = [engine(), "build", "--quiet", "--target", "cpu", "--tag", other, str(tmp_path)]
    try:
        subprocess.run(command, env=environ, check=True, capture_output=True)
        before, after = (
            json.loads(call("image", "inspect", each))[0]["RootFS"]["Layers"] for each in (name, other)
        )
        sizes = call("history", "--format", "{{.Size}}\t{{.CreatedBy}}", "--human=false", other).splitlines()
    finally:
        call("image", "rm", other, check=False)
    assert (before[:-1], before[-1] != after[-1]) == (after[:-1], True)  # with the build's cache
    [last] = [line for line in sizes if "/layers/code" in line]
    assert int(last.split("\t")[0]) < 10 * MIB


# --- as in docker-compose.yml -----------------------------------------------------------------------


def test_hardened_it_is_healthy_ready_and_right_and_writes_nothing(service: Container) -> None:
    service.wait_until_healthy()
    with service.client() as client:
        for label in ("eosinophil", "lymphocyte", "monocyte", "neutrophil"):
            [found] = client.post("/predict", files={"files": ("a.jpg", cell(label))}).json()["predictions"]
            assert found["label"] == label
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    assert service.run("id", "-u").strip() == str(USER)
    status = service.run("cat", "/proc/1/status")
    assert re.search(r"^CapEff:\s+0+$", status, re.M)
    assert re.search(r"^CapBnd:\s+0+$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert "Read-only file system" in service.run("sh", "-c", "touch /srv/leuko/a 2>&1 || true")
    assert service.written() == []


def test_decoders_are_confined_within_the_container_s_own_filter(service: Container) -> None:
    code = r"""
import json, os, re
found = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        status, command = open(f"/proc/{pid}/status").read(), open(f"/proc/{pid}/cmdline").read()
    except OSError:
        continue
    if "decode_worker" in command or pid == "1":
        found[pid] = [int(re.search(rf"^{name}:\s+(\d+)$", status, re.M)[1])
                      for name in ("PPid", "Seccomp", "Seccomp_filters")]
print(json.dumps(found))
"""
    found = json.loads(service.python(code))
    forks = {pid for pid, (parent, _, _) in found.items() if parent == 1}
    decoders = {pid for pid, (parent, _, _) in found.items() if str(parent) in forks}
    assert len(decoders) == 3
    _, mode, outer = found["1"]
    assert (mode, outer >= 1) == (2, True)
    assert {mode for _, mode, _ in (found[pid] for pid in decoders)} == {2}
    assert min(filters for _, _, filters in (found[pid] for pid in decoders)) > outer


def test_a_decoder_that_an_image_took_over_can_do_no_more_than_outside(tmp_path: Path) -> None:
    secrets = shared(tmp_path / "secrets")
    (secrets / SECRET).write_bytes(SECRETS)
    (secrets / SECRET).chmod(0o666)
    options = [f"--volume={secrets}:/secrets", f"--env={FOLDER}=/secrets", "--env=PYTHONPATH=/checkout"]
    options += [f"--volume={ROOT}/tests:/checkout/tests:ro"]
    command = ["python", "-c", INTRUDED, "serve", "--decode-workers", "1"]
    with contained(*hardened(), *options, command=command) as container, container.client() as client:
        killed = {name: alone(client, attack(name)) for name in KILLED}
        refused = {name: alone(client, attack(name)) for name in ERRORS}
        assert client.get("/readyz").status_code == 200
    wrong = {name: answer.text for name, answer in killed.items() if "crashes its decoder" not in answer.text}
    wrong |= {name: answer.text for name, answer in refused.items() if "refused: EPERM" not in answer.text}
    assert wrong == {}
    assert [path.name for path in secrets.iterdir()] == [SECRET]
    assert (secrets / SECRET).read_bytes() == SECRETS


def test_a_stop_under_load_loses_no_request_and_ends_within_its_grace() -> None:
    statuses: Counter[object] = Counter()

    def ask(container: Container) -> None:
        """Go to another service when this one is not ready any more, as a balancer would have it."""
        with container.client() as client:
            while client.get("/readyz").status_code == 200:
                statuses[predict(client).status_code] += 1

    with contained(*hardened()) as container, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask, container) for _ in range(CLIENTS)]
        wait_until(lambda: statuses.total() > 40)
        call("stop", container.name)
        for each in clients:
            each.result()
        assert container.state["ExitCode"] == 0  # 137 if the engine had to kill it
    assert set(statuses) == {200}


def test_a_container_that_is_killed_comes_back_and_nothing_was_written() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can kill a container's process without the engine, which would not restart it")
    with contained(*hardened(), "--restart=unless-stopped") as container:
        with container.client() as client:
            assert predict(client).status_code == 200
        os.kill(container.state["Pid"], signal.SIGKILL)
        wait_until(lambda: container.restarts == 1)
        container.wait_until_ready()
        with container.client() as client:
            assert predict(client).status_code == 200
        assert container.written() == []


def test_without_a_network_it_starts_answers_and_tries_to_reach_nobody() -> None:
    watched = [f"--volume={ROOT}/tests/safety/watched:/watched:ro", "--env=PYTHONPATH=/watched"]
    ask = """
import json, sys, urllib.request as u
data = open("/opt/cell", "rb").read()
request = u.Request("http://127.0.0.1:8000/predict", data, {"content-type": "image/png"})
print(json.load(u.urlopen(request))["predictions"][0]["label"])
"""
    picture = SHIPPED / "known-answer.png"
    options = ["--network=none", "--env=HOME=/tmp/home", f"--volume={picture}:/opt/cell:ro", *watched]
    with contained(*hardened(), *options, ready=False) as container:
        container.wait_until_healthy()
        assert container.python(ask).strip() in ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
        record = container.run("cat", "/tmp/home.record").splitlines()
    events = [line.partition(" ") for line in record]
    reached = {what for event, _, what in events if event.startswith("socket.")}
    assert reached <= {"127.0.0.1"}  # the health check, and this test
    written = {what for event, _, what in events if not event.startswith("socket.")}
    assert {path for path in written if not path.startswith(("/tmp/", "/dev/null"))} == set()


# --- memory and processor ---------------------------------------------------------------------------


def peak_mib(container: Container) -> int:
    files = "/sys/fs/cgroup/memory.peak /sys/fs/cgroup/memory/memory.max_usage_in_bytes"
    return int(container.run("sh", "-c", f"cat {files} 2>/dev/null || true")) // MIB


def still_runs(container: Container) -> None:
    state = container.state
    assert (state["Running"], state["OOMKilled"], container.restarts) == (True, False, 0), container.log
    with container.client() as client:
        assert client.get("/readyz").status_code == 200
        assert predict(client).status_code == 200
        assert metric(client, "leuko_engine_restarts_total") == 0
    assert "replacing it" not in container.log


def test_json_made_to_be_expensive_does_not_end_it_within_a_gigabyte() -> None:
    # One such request of 7.6 MiB ended it at 3 GiB: eight million characters that a parser made objects of.
    with contained(*hardened("mem_limit"), "--memory=1g", "--memory-swap=1g") as container:
        with container.client() as client:
            for path, body in MANY_ERRORS.values():
                answer = post(client, path, JSON, body)
                assert answer.status_code in (400, 413, 422), answer.text[:500]
        print(f"peak {peak_mib(container)} MiB")
        still_runs(container)


def test_the_worst_requests_together_stay_within_the_limit_and_it_is_never_killed() -> None:
    large = ("WebP", "TIFF of 16 bits", "PNG of 12 bits", "DICOM palette", "JPEG CMYK")
    images = [WORST_IMAGES[name][1]() for name in large]
    patient = [f"--env=LEUKO_{name}_S={PATIENT_S}" for name in ("DEADLINE", "BODY_TIMEOUT")]
    with (
        contained(*hardened(), *patient) as container,
        ThreadPoolExecutor(12) as pool,
        container.client(PATIENT_S) as client,
    ):
        decoded = [pool.submit(decode, container, data) for _ in range(3) for data in images]
        cases = {name: (path, JSON, body) for name, (path, body) in MANY_ERRORS.items()} | WORST
        statuses = {name: post(client, *case).status_code for name, case in cases.items()}
        for name, (make, _) in NAMES.items():
            statuses[name] = post(client, "/evaluate", MULTIPART, make()).status_code
        over = threading.Event()
        held = pool.submit(upload, container, 480 * MIB, over)
        slow = pattern()
        others = [pool.submit(post, client, slow.path, slow.media_type, slow.body) for _ in range(2)]
        decoded += [pool.submit(decode, container, data) for data in images]
        statuses["rows beside an archive"] = post(client, *WORST["rows"]).status_code
        codes = Counter(each.result() for each in decoded)
        patterns = [each.result().status_code for each in others]
        over.set()
        statuses["an archive"] = held.result()
        print(f"peak {peak_mib(container)} MiB; images {codes}; patterns {patterns}; {statuses}")
        still_runs(container)
    assert set(codes) == {200}
    assert set(statuses.values()) | {*patterns} <= {200, 400, 413, 415, 422, 429}


def post(client: httpx.Client, path: str, media_type: str, body: bytes) -> httpx.Response:
    path = path.replace("/models/fake/", "/models/wbc-resnet18/")
    return client.post(path, content=body, headers={"content-type": media_type})


def decode(container: Container, data: bytes) -> int:
    with container.client(PATIENT_S) as client:
        return client.post("/predict", files={"files": ("a", data)}).status_code


def upload(container: Container, size: int, over: threading.Event) -> int:
    """Send a body that is no archive, its end only once the others are done."""

    def body() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="archive"; filename="a.zip"\r\n\r\n'
        for _ in range(size // MIB - 1):
            yield bytes(MIB)
        over.wait(PATIENT_S / 2)  # less than a body may take
        yield bytes(MIB) + b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    with container.client(PATIENT_S) as client:
        return client.post("/evaluate", content=body(), headers=headers).status_code


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1, 1), (1.5, 2), (3, 3)])
def test_threads_and_decoders_follow_the_container_s_share(cpus: float, threads: int) -> None:
    cores = len(os.sched_getaffinity(0))
    if cores <= cpus:
        pytest.skip(f"no limit below the machine's {cores} cores")
    environ = ["--env=LEUKO_HOST=0.0.0.0", "--env=LEUKO_WITHOUT_KEYS=anywhere"]
    with contained(*hardened("environment"), *environ, f"--cpus={cpus}") as container:
        found = container.python("from app.cores import *; print(threads_within_limit())")
        assert int(found) == threads
        wait_until(lambda: container.decoders == threads + 1)


def test_two_processes_serve_and_one_that_is_killed_is_replaced() -> None:
    with contained(*hardened(), "--env=LEUKO_PROCESSES=2") as container:
        first = processes(container)
        assert len(first) == 2
        container.python(f"import os; os.kill({min(first)}, 9)")
        wait_until(lambda: len(processes(container) - first) == 1 and container.is_ready())
        container.wait_until_ready()
        with container.client() as client:
            assert predict(client).status_code == 200
            assert metric(client, "leuko_images_total") == 1
        call("stop", container.name)
        assert container.state["ExitCode"] == 0


def processes(container: Container) -> set[int]:
    """Return the service processes' ids, as the container counts them: the children of the first one."""
    code = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        parent = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1]
        command = open(f"/proc/{pid}/cmdline").read()
    except OSError:
        continue
    if parent == "1" and not any(other in command for other in ("decode_worker", "tracker")):
        print(pid)
"""
    return {int(pid) for pid in container.python(code).split()}


# --- volumes ----------------------------------------------------------------------------------------


def test_a_bundle_from_a_volume_is_swapped_while_it_serves(tmp_path: Path) -> None:
    models = shared(tmp_path / "models")
    renamed(models / "one", "9.0.0")
    renamed(models / "two", "9.1.0")
    write(models / "models.toml", '[[models]]\nbundle = "/models/one"')
    options = [f"--volume={models}:/models:ro", "--env=LEUKO_MODELS=/models/models.toml"]
    with contained(*hardened(), *options) as container, container.client() as client:
        assert predict(client).json()["model"]["version"] == "9.0.0"
        write(models / "models.toml", '[[models]]\nbundle = "/models/two"')
        wait_until(lambda: client.get("/model").json()["version"] == "9.1.0")
        assert predict(client).json()["model"]["version"] == "9.1.0"
        assert metric(client, "leuko_models_stale") == 0


@contextmanager
def keyed(*options: str) -> Iterator[tuple[Container, str]]:
    """A container with keys and an audit log on volumes that the engine made, and a key."""
    keys = f"leuko-test-{uuid4().hex[:12]}"
    call("volume", "create", keys)
    try:
        # The engine's volumes belong to root until an image's folder gives them another owner.
        call("run", "--rm", "--user=0", f"--volume={keys}:/keys", image(), "chown", str(USER), "/keys")
        made = call(
            "run", "--rm", f"--volume={keys}:/keys", image(), "leuko", "key", "lab-1", "/keys/keys.txt"
        )
        [secret] = re.findall(r"leuko_\S+", made)
        environ = ["--env=LEUKO_HOST=0.0.0.0", "--env=LEUKO_KEYS=/keys/keys.txt"]
        environ += ["--env=LEUKO_AUDIT=/audit/audit.jsonl", "--env=LEUKO_METRICS=open"]
        volume = f"--volume={keys}:/keys:ro"
        with contained(*hardened("environment"), *environ, volume, *options) as container:
            yield container, f"Bearer {secret}"
    finally:
        call("volume", "rm", "--force", keys, check=False)


def test_keys_and_audit_log_are_on_volumes(tmp_path: Path) -> None:
    audit = shared(tmp_path / "audit")
    with keyed(f"--volume={audit}:/audit") as (container, key), container.client() as client:
        assert predict(client).status_code == 401
        answer = predict(client, authorization=key)
        assert answer.status_code == 200
        call("stop", container.name)
    lines = [json.loads(line) for line in (audit / "audit.jsonl").read_text().splitlines()]
    [line] = [one for one in lines if one.get("request_id") == answer.json()["request_id"]]
    assert (
        line["key"],
        line["status"],
        len(line["image_sha256"] if "image_sha256" in line else line["images"]),
    ) == (
        "lab-1",
        200,
        1,
    )
    assert (audit / "audit.jsonl").stat().st_uid == USER


def test_on_a_full_volume_it_takes_no_work_until_there_is_room() -> None:
    volume = "--mount=type=tmpfs,destination=/audit,tmpfs-size=64k,tmpfs-mode=1777"
    with keyed(volume) as (container, key), container.client() as client:
        assert predict(client, authorization=key).status_code == 200
        container.run("sh", "-c", "head -c 1000000 /dev/zero > /audit/filler 2>/dev/null || true")
        wait_until(lambda: predict(client, authorization=key).status_code == 503)
        assert client.get("/healthz").status_code == 200
        assert metric(client, "leuko_audit_failing") == 1
        container.run("rm", "/audit/filler")
        wait_until(lambda: predict(client, authorization=key).status_code == 200)
        assert metric(client, "leuko_audit_failing") == 0
