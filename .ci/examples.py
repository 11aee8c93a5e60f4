"""Draw the example fields of the page: `python .ci/examples.py`. A test compares the files with these."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageFilter

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from app.samples.smear import draw_field  # noqa: E402

FOLDER = ROOT / "app/api/web/page/examples"
FIELDS = 10
SHARES = {
    "neutrophil": 60,
    "lymphocyte": 30,
    "monocyte": 8,
    "eosinophil": 6,
}  # cells, dealt out to the fields
SCALE = 0.8


def pictures() -> Iterator[tuple[str, Image.Image]]:
    """Yield names with pictures: fields of 104 cells in all, and three that cannot be used."""
    cells = [label for label, count in SHARES.items() for _ in range(count)]
    for number in range(1, FIELDS + 1):
        yield f"field-{number}.webp", draw_field(cells[number - 1 :: FIELDS], seed=number, scale=SCALE)[0]
    pair = draw_field(["neutrophil", "lymphocyte"], seed=21, width=320, height=240, scale=SCALE)[0]
    yield "blurred.webp", pair.filter(ImageFilter.GaussianBlur(6))
    yield "dark.webp", pair.point([level // 8 for level in range(256)] * 3)
    yield "no-cell.webp", draw_field([], seed=22, width=320, height=240, scale=SCALE)[0]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures():
        picture.save(FOLDER / name, "WEBP", quality=75, method=6)
