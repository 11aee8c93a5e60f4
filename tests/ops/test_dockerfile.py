"""The Dockerfile as text: what can be known without an engine. tests/ops/test_image.py runs what it makes."""

from __future__ import annotations

import re

from tests.running import ROOT

TEXT = (ROOT / "Dockerfile").read_text()


def stages() -> dict[str, tuple[str, str]]:
    """Return each stage by its name: the image that it starts from, and its instructions."""
    parts = re.split(r"^FROM (\S+) AS (\S+)\n", TEXT, flags=re.MULTILINE)[1:]
    return {name: (base, text) for base, name, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def test_both_targets_run_as_a_user_that_is_not_root() -> None:
    assert stages()["cpu"][0] == stages()["cuda"][0] == "runtime"
    assert "\nUSER 10001:10001\n" in stages()["runtime"][1]
    assert not any("USER" in stages()[target][1] for target in ("cpu", "cuda"))


def test_only_the_gpu_s_target_installs_torch() -> None:
    assert [name for name, (_, text) in stages().items() if "--extra torch" in text] == ["cuda-build"]
    assert "from=cuda" not in stages()["cpu"][1]


def test_the_small_image_is_made_by_default() -> None:
    assert [*stages()][-1] == "cpu"


def test_everything_that_is_copied_is_there_and_let_in() -> None:
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.+)$", TEXT, re.M) for source in line.split()[:-1]
    }
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert [source for source in copied if not (ROOT / source).exists()] == []
