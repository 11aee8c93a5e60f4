"""The commands of docs/containers.md, run one after another in one shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.containers import call, engine, image
from tests.running import ROOT, free_port
from tests.test_lis import examples

GUIDE = (ROOT / "docs/containers.md").read_text()
OURS = ("leuko", "leuko-before")


@pytest.mark.ops
def test_the_guide_s_commands_build_run_limit_verify_update_and_roll_back(tmp_path: Path) -> None:
    name = image()
    if shutil.which("curl") is None:
        pytest.skip("curl is absent")
    there = {*call("ps", "--all", "--format", "{{.Names}}").split(), *call("volume", "ls", "--quiet").split()}
    if there & {*OURS, "leuko-state"}:
        pytest.skip("a container or volume with a name of the guide is here")
    (tmp_path / "docker").symlink_to(str(shutil.which(engine())))
    script = "\n".join(examples("sh", GUIDE)).replace("127.0.0.1:8000", f"127.0.0.1:{free_port()}")
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ENGINE": engine()}
    try:
        done = subprocess.run(
            ["sh", "-ec", script], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    finally:
        call("rm", "--force", *OURS, check=False)
        call("volume", "rm", "--force", "leuko-state", check=False)
        (ROOT / "inventory.json").unlink(missing_ok=True)
    assert done.stdout.count('"label":"') == 3
    assert "healthy 0 false" in done.stdout or "starting 0 false" in done.stdout
    assert "CapEff:\t0000000000000000" in done.stdout
    assert name in call("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
