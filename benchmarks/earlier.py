"""The bundle that was shipped before the input became smaller, from the repository's history."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REVISION = "c30cf6a"  # shipped bundle 2.0.0, whose input has 224 pixels
FOLDER = "models/wbc-resnet18"
ROOT = Path(__file__).parents[1]


@contextmanager
def earlier_bundle() -> Iterator[Path]:
    """Yield the folder of bundle 2.0.0. Raise SystemExit if the history does not reach back to it."""
    command = ["git", "-C", str(ROOT), "archive", REVISION, FOLDER]
    archive = subprocess.run(command, stdout=subprocess.PIPE)
    if archive.returncode:
        raise SystemExit(f"bundle 2.0.0 is not in the repository's history: {' '.join(command)} failed")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as file:
            file.extractall(folder, filter="data")
        yield Path(folder) / FOLDER
