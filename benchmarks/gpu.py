"""The torch engine on a GPU: images a second from pixels in memory to logits in memory, by batch size."""

from __future__ import annotations

import os

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from app.settings import Settings
from app.vision.classifier import load_classifier
from app.vision.decode import decode
from app.vision.framing import frame_cell
from benchmarks.engine import draw, engine_rate, machine

BATCHES = (1, 8, 32, 64, 256)
REACH = 20_000  # images a second, on an H100 or its like
SECONDS = 4.0


def main() -> int:
    console = Console()
    if not torch.cuda.is_available():
        console.print("not measured: there is no CUDA device here")
        return 0
    classifier = load_classifier(Settings.from_environ(os.environ).bundle, "torch")
    console.print(machine(classifier), highlight=False)
    classifier.warm_up(classifier.engine.batch)
    cells = [
        frame_cell(decode(data), classifier.bundle.preprocessing)
        for data in draw(classifier.bundle.labels, 32)
    ]
    pixels = np.stack([cells[index % len(cells)].pixels for index in range(max(BATCHES))])
    result = Table("batch", "images/s", f"÷ {REACH}")
    for n in BATCHES:
        rate = engine_rate(classifier, pixels[:n], SECONDS)
        result.add_row(str(n), f"{rate:.0f}", f"{rate / REACH:.2f}")
    console.print(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
