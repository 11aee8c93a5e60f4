"""`python -m tests.fuzz --seconds 60`: random bytes against everything that reads strangers' files."""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from pathlib import Path
from random import Random

from tests.fuzz import fuzz_archive, fuzz_decode
from tests.fuzz.campaign import Campaign

TURN = 500  # inputs before the other target's turn


def main() -> int:
    """1 where something was found; an input that ends the process is left in `--out` as *.latest."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns(), help="repeats a run")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder for what is found")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("error")
    random = Random(given.seed)
    campaigns = [Campaign(module.target(), random, given.out) for module in (fuzz_decode, fuzz_archive)]
    end = time.monotonic() + given.seconds
    while time.monotonic() < end:
        for campaign in campaigns:
            campaign.run(TURN)
    return _report(campaigns, given.seed)


def _report(campaigns: list[Campaign], seed: int) -> int:
    for campaign in campaigns:
        campaign.close()
        print(*campaign.findings, campaign.report(), sep="\n")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"seed {seed}; peak memory {peak_mib:.0f} MiB")
    return 1 if any(campaign.findings for campaign in campaigns) else 0


if __name__ == "__main__":
    sys.exit(main())
