"""What `python -m tests.fuzz` does for as long as it is let, for a few seconds."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from app.errors import TooLarge, UndecodableImage
from tests.fuzz import fuzz_archive, fuzz_decode
from tests.fuzz.campaign import Campaign, Target

SEEDS = (b"good", b"bad")


def crashing(data: bytes) -> str:
    if data == SEEDS[0]:
        return "fine"
    raise UndecodableImage("named") if data == SEEDS[1] else ZeroDivisionError


def test_fuzzed_pictures_are_decoded_or_refused_by_a_documented_error() -> None:
    campaign = Campaign(fuzz_decode.target(), Random(0))
    campaign.run(6000)
    assert campaign.findings == []
    assert set(campaign.outcomes) == {"image", "TooLarge", "UndecodableImage", "UnsupportedFormat"}


def test_fuzzed_archives_are_read_or_refused_by_a_documented_error() -> None:
    campaign = Campaign(fuzz_archive.target(), Random(0))
    campaign.run(8000)
    assert campaign.findings == []
    assert set(campaign.outcomes) == {"archive", "some entries corrupt", "TooLarge", "BadArchive"}


@pytest.mark.parametrize("module", [fuzz_decode, fuzz_archive])
def test_the_seeds_reach_what_is_fuzzed(module: object) -> None:
    target: Target = module.target()  # type: ignore[attr-defined]
    campaign = Campaign(target, Random(0))
    for seed in target.seeds:
        campaign.attempt(seed)
    assert campaign.outcomes.most_common(1)[0][0] in {"image", "archive"}
    assert campaign.findings == []


def test_an_error_that_is_not_documented_is_found_once_and_its_bytes_kept(tmp_path: Path) -> None:
    campaign = Campaign(Target("crash", crashing, (UndecodableImage,), SEEDS), Random(0), tmp_path)
    campaign.run(50)
    (finding,) = campaign.findings
    assert "ZeroDivisionError" in finding
    (kept,) = tmp_path.glob("crash-????????????????")
    with pytest.raises(ZeroDivisionError):
        crashing(kept.read_bytes())


def test_an_error_of_another_documented_class_is_a_finding_too() -> None:
    campaign = Campaign(Target("crash", crashing, (TooLarge,), SEEDS), Random(0))
    campaign.attempt(SEEDS[1])
    assert len(campaign.findings) == 1


def test_an_input_that_ends_the_process_stays_behind_and_no_other_does(tmp_path: Path) -> None:
    campaign = Campaign(Target("crash", crashing, (UndecodableImage,), SEEDS), Random(0), tmp_path)
    campaign.run(1)
    assert (tmp_path / "crash.latest").exists()
    campaign.close()
    assert not (tmp_path / "crash.latest").exists()
