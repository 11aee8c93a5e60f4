"""`python -m tests.fuzz --seconds 60`: fuzzes the code that reads untrusted files."""

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

TURN = 500  # inputs for one target before the next one


def main() -> int:
    """Return 1 if there are findings. An input that ends the process stays in `--out` as *.latest."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="length of the run [%(default)s]")
    parser.add_argument("--seed", type=int, default=time.time_ns(), help="of an earlier run, to repeat it")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fuzz"), help="folder for inputs with findings [%(default)s]"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("error")
    random = Random(arguments.seed)
    campaigns = [Campaign(module.target(), random, arguments.out) for module in (fuzz_decode, fuzz_archive)]
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        for campaign in campaigns:
            campaign.run(TURN)
    return _report(campaigns, arguments.seed)


def _report(campaigns: list[Campaign], seed: int) -> int:
    for campaign in campaigns:
        campaign.close()
        print(*campaign.findings, campaign.report(), sep="\n")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"seed {seed}; peak memory {peak_mib:.0f} MiB")
    return 1 if any(campaign.findings for campaign in campaigns) else 0


if __name__ == "__main__":
    sys.exit(main())
