"""`leuko serve` whose audit log is on a disk that stalls for as long as the file STALLED is in FOLDER."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from app.cli.main import main
from app.observability import audit
from tests.fake_classifier import load
from tests.safety.halting_decoder import FOLDER

STALLING = "import tests.safety.stalling_disk as disk; disk.serve()"
STALLED = "stalled"


def write(file: int, data: bytes) -> int:
    while (Path(os.environ[FOLDER]) / STALLED).exists():
        time.sleep(0.01)
    return os.write(file, data)


def serve() -> None:
    audit._write = write
    sys.exit(main(load=load))
