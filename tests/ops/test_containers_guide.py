"""The commands of docs/containers.md, run one after another in one shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.containers import call, engine, image
from tests.running import ROOT, free_port
from tests.test_lis import examples

GUIDE = (ROOT / "docs/containers.md").read_text()
OURS = ("leuko", "leuko-before")


def steps() -> list[str]:
    """Return the guide's blocks, with two updates of images that differ, and between them one too early."""
    blocks = examples("sh", GUIDE)
    [at] = [number for number, block in enumerate(blocks) if "docker rename leuko leuko-before" in block]
    update, accept = blocks[at : at + 2]
    assert accept == "docker rm leuko-before\n"
    forgotten = f"(set +e\n{update})"
    other = 'BUILD_OPTIONS="--label leuko.test=%d"; export BUILD_OPTIONS'
    more = [f"{SAY}\n{other % 1}", update, SAY, forgotten, SAY, accept, other % 2, update, SAY]
    return [*blocks[:at], *more, blocks[at + 2], SAY, *blocks[at + 3 :]]


SAY = """echo
docker image inspect --format 'now {{.Id}}' leuko:cpu
docker image inspect --format 'before {{.Id}}' leuko:before || true
docker inspect --format 'runs {{.Image}} {{.State.Running}}' leuko"""


def test_the_guide_never_kills_what_serves() -> None:
    *blocks, last = examples("sh", GUIDE)
    assert last.index("docker stop leuko") < last.index("docker rm --force leuko leuko-before")
    assert not [block for block in blocks if re.search(r"docker (kill|rm --force|rm -f)", block)]


@pytest.mark.ops
def test_the_guide_s_commands_build_run_limit_verify_update_and_roll_back(tmp_path: Path) -> None:
    name = image()
    there_first = call("image", "inspect", "--format", "{{.Id}}", name).strip()
    if shutil.which("curl") is None:
        pytest.skip("curl is absent")
    there = {*call("ps", "--all", "--format", "{{.Names}}").split(), *call("volume", "ls", "--quiet").split()}
    there |= {*call("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()}
    if there & {*OURS, "leuko-state", "leuko:before"}:
        pytest.skip("a container, volume or image with a name of the guide is here")
    (tmp_path / "docker").symlink_to(str(shutil.which(engine())))
    script = "\n".join(steps()).replace("127.0.0.1:8000", f"127.0.0.1:{free_port()}")
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ENGINE": engine()}
    try:
        done = subprocess.run(
            ["sh", "-ec", script], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    finally:
        call("rm", "--force", *OURS, check=False)
        call("volume", "rm", "--force", "leuko-state", check=False)
        call("image", "rm", "leuko:before", check=False)
        call("tag", there_first, name)  # of the other tests
        call("image", "rm", *call("image", "ls", "--quiet", "--filter=label=leuko.test").split(), check=False)
        (ROOT / "inventory.json").unlink(missing_ok=True)
    predicted, updates = done.stdout.count('"label":"'), 3
    assert predicted == 1 + updates + 1  # at first, and when it was rolled back
    said = re.findall(r"^(?:now|before|runs) .+$", done.stdout, re.M)
    first, one, two = (said[number].removeprefix("now ") for number in (0, 2, 8))
    assert len({first, one, two}) == 3
    expected = [(first, None, first), (one, first, one), (one, first, one), (two, one, two), (one, one, one)]
    assert said == [line for now, before, runs in expected for line in described(now, before, runs)]
    assert re.findall(r"^[ACD] /.*$", done.stdout, re.M) == ["A /state"]  # of `docker diff`
    assert "healthy 0 false" in done.stdout or "starting 0 false" in done.stdout
    assert "CapEff:\t0000000000000000" in done.stdout
    assert name in call("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()


def described(now: str, before: str | None, runs: str) -> list[str]:
    """Return what SAY prints."""
    return [f"now {now}", *([f"before {before}"] if before else []), f"runs {runs} true"]
