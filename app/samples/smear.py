"""Draw synthetic Wright–Giemsa smears with one leukocyte or a field of them, for demonstrations and tests.

Sizes and colours are those of the BCCD photographs; lengths are in pixels of an image 320 pixels wide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageFilter

from app.samples.shapes import Blob, Patch, Plane, Stain, rough

Rng = np.random.Generator
Mark = Callable[[Patch, Plane], None]  # draws a dot, given its surroundings and its cover

LEAST_SIDE = 8  # pixels; nothing can be drawn in one
RED_CELLS = 110  # places that are tried for red cells, on 320 by 240 pixels
BACKGROUND = (209.0, 211.0, 206.0)
BROWN_RED_CELL, PINK_RED_CELL = np.array([0.12, 0.31, 0.32]), np.array([0.10, 0.28, 0.19])
PRECIPITATE: Stain = (0.9, 1.1, 0.5)  # stain that has dried
PARASITE: Stain = (0.40, 0.55, 0.05)
PLATELET: Stain = (0.26, 0.31, -0.03)
GRANULE: Stain = (0.03, 0.40, 0.33)


def draw_smear(label: str, *, seed: int = 0, width: int = 320, height: int = 240) -> Image.Image:
    """Return an RGB image; the same arguments give the same image.

    width and height: LEAST_SIDE or more; seed: 0 or more. Raises ValueError for others, or an unknown class.
    """
    if label not in LEUKOCYTES:
        raise ValueError(f"{label!r} is not a class; use {', '.join(LEUKOCYTES)}")
    if min(width, height) < LEAST_SIDE:
        raise ValueError(
            f"a smear of {width} by {height} pixels is too small; the least is {LEAST_SIDE} a side"
        )
    if seed < 0:
        raise ValueError(f"the seed {seed} is below 0")
    rng = np.random.default_rng([seed, *label.encode()])
    draw, radius = LEUKOCYTES[label]
    scale = min(width / 320, height / 240)
    smear = Patch.blank(width, height, scale)
    x, y = (float(rng.uniform(0.36, 0.64)) * side / scale for side in (width, height))
    cell = rough(rng, x, y, radius * float(rng.uniform(0.94, 1.08)), stretch=0.15)
    _draw_red_cells(smear, rng, [cell], RED_CELLS)
    _draw_platelets(smear, rng, [cell], int(rng.integers(3, 7)))
    draw(smear.around(x, y, 1.5 * cell.radius), rng, cell)
    return _develop(smear, rng, scale)


@dataclass(frozen=True)
class DrawnCell:
    """A leukocyte of a field: where its centre is and its radius, in the image's pixels."""

    label: str
    x: float
    y: float
    radius: float


def draw_field(
    labels: Sequence[str],
    *,
    seed: int = 0,
    width: int = 640,
    height: int = 480,
    scale: float = 1.0,
    touching: bool = False,
    debris: bool = True,
) -> tuple[Image.Image, list[DrawnCell]]:
    """Return an RGB image with a leukocyte of each label, red cells and platelets, and where the leukocytes
    are.

    scale: pixels of the image in one of an image 320 pixels wide; a red cell is 47 of these wide. touching:
    each leukocyte touches the one before. debris: parasites in red cells, giant platelets and dried stain
    too. Raise ValueError for an unknown class, or if there is no room.
    """
    if unknown := [label for label in labels if label not in LEUKOCYTES]:
        raise ValueError(f"{unknown[0]!r} is not a class; use {', '.join(LEUKOCYTES)}")
    rng = np.random.default_rng([seed, width, height])
    smear = Patch.blank(width, height, scale)
    cells: list[Blob] = []
    for label in labels:
        cells.append(_place(rng, cells, LEUKOCYTES[label][1], width / scale, height / scale, touching))
    share = width * height / scale**2 / (320 * 240)
    _draw_red_cells(smear, rng, cells, round(RED_CELLS * share))
    _draw_platelets(smear, rng, cells, round(5 * share))
    if debris:
        _draw_debris(smear, rng, cells, round(4 * share))
    for label, cell in zip(labels, cells, strict=True):
        LEUKOCYTES[label][0](smear.around(cell.x, cell.y, 1.5 * cell.radius), rng, cell)
    drawn = [
        DrawnCell(label, cell.x * scale, cell.y * scale, cell.radius * scale)
        for label, cell in zip(labels, cells, strict=True)
    ]
    return _develop(smear, rng, scale), drawn


def _place(
    rng: Rng, cells: Sequence[Blob], usual: float, width: float, height: float, touching: bool
) -> Blob:
    """Return a cell of about the usual radius, apart from the others or in touch with the last.

    Raise ValueError.
    """
    for _ in range(1000):
        radius = usual * float(rng.uniform(0.94, 1.08))
        if touching and cells:
            last, angle = cells[-1], float(rng.uniform(0, 2 * np.pi))
            away = 0.98 * (last.radius + radius)
            x, y = last.x + away * float(np.cos(angle)), last.y + away * float(np.sin(angle))
        else:
            x, y = float(rng.uniform(radius, width - radius)), float(rng.uniform(radius, height - radius))
        others = cells[:-1] if touching else cells
        inside = radius <= x <= width - radius and radius <= y <= height - radius
        if inside and all(np.hypot(x - a.x, y - a.y) > 1.25 * (radius + a.radius) for a in others):
            return rough(rng, x, y, radius, stretch=0.15)
    raise ValueError(f"there is no room for {len(cells) + 1} cells in {width:g} by {height:g}")


def _draw_debris(smear: Patch, rng: Rng, cells: Sequence[Blob], count: int) -> None:
    """Draw what a search for leukocytes must not take for one."""
    kinds = [(float(rng.uniform(2.5, 4)), PARASITE), (float(rng.uniform(6, 8)), PLATELET), (3.0, PRECIPITATE)]
    for number, (x, y) in enumerate(_spots(smear, rng, count).tolist()):
        radius, stain = kinds[number % len(kinds)]
        blob = rough(rng, x, y, radius, dent=0.1, stretch=0.6)
        if all(np.hypot(x - cell.x, y - cell.y) > 1.4 * cell.radius for cell in cells):
            patch = smear.around(x, y, 2.5 * radius)
            patch.add(patch.cover(blob, 1.5), stain)


def _develop(smear: Patch, rng: Rng, scale: float) -> Image.Image:
    """Turn density into light, seen through a slightly unfocused lens by a noisy sensor."""
    tint = np.asarray(BACKGROUND) * rng.uniform(0.98, 1.04) + rng.normal(0, 1.5, 3)
    across, down = rng.uniform(-1e-4, 1e-4, 2)
    lamp = 1 + across * (smear.x - 160) + down * (smear.y - 120)
    light = np.clip(tint * lamp[..., None] * np.exp(-smear.density), 0, 255).astype(np.uint8)
    sharp = Image.fromarray(light).filter(ImageFilter.GaussianBlur(0.7 * scale))
    noise = rng.normal(0, 0.8, light.shape) + 0.6 * smear.grain(rng, 3)[..., None]
    return Image.fromarray(np.clip(np.asarray(sharp) + noise, 0, 255).astype(np.uint8))


def _spots(smear: Patch, rng: Rng, tries: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return random points over the image and up to 20 pixels beyond its edges, [tries, 2]."""
    edge = (float(smear.x[0, -1]) + 20, float(smear.y[-1, 0]) + 20)
    return rng.uniform(-20, edge, (tries, 2))


def _draw_red_cells(smear: Patch, rng: Rng, cells: Sequence[Blob], tries: int) -> None:
    pallor = float(rng.uniform(0.4, 0.9))  # how pale the red cells' centres are
    stain = PINK_RED_CELL + float(rng.random()) * (BROWN_RED_CELL - PINK_RED_CELL)
    taken = [(cell.x, cell.y, cell.radius) for cell in cells]
    for x, y in _spots(smear, rng, tries).tolist():
        radius = float(rng.normal(23.5, 2.2))
        if all(np.hypot(x - a, y - b) > 0.74 * (radius + r) for a, b, r in taken):
            taken.append((x, y, radius))
            blob = rough(rng, x, y, radius, dent=0.025, stretch=0.45)
            _draw_red_cell(smear.around(x, y, 1.6 * radius), rng, blob, pallor, stain)


def _draw_red_cell(patch: Patch, rng: Rng, blob: Blob, pallor: float, stain: Stain) -> None:
    """Draw a biconcave disc: thin in the middle, thickest near the rim, with a bright line around it."""
    reach = patch.reach(blob)
    pale = float(np.clip(pallor + rng.normal(0, 0.25), 0, 0.9))
    thickness = patch.cover(blob, 3.0) * (1 - pale * np.exp(-((reach / 0.6) ** 4)))
    halo = np.exp(-(((reach - 1.1) / 0.06) ** 2))
    patch.add(thickness * float(rng.uniform(0.7, 1.05)) - 0.08 * halo, stain)


def _draw_platelets(smear: Patch, rng: Rng, cells: Sequence[Blob], count: int) -> None:
    for x, y in _spots(smear, rng, count).tolist():
        blob = rough(rng, x, y, float(rng.uniform(3, 6)), dent=0.07, stretch=0.5)
        if all(np.hypot(x - cell.x, y - cell.y) > 1.4 * cell.radius for cell in cells):
            patch = smear.around(x, y, 14)
            patch.add(patch.cover(blob, 4.0), PLATELET)


def _draw_lymphocyte(patch: Patch, rng: Rng, cell: Blob) -> None:
    """Draw a small round cell, almost filled by its dense nucleus."""
    _fill(patch, rng, patch.cover(cell), (0.36, 0.32, -0.03), uneven=0.1)
    ((x, y),) = _arc(rng, cell, 1, distance=0.07, step=0.0)
    nucleus = patch.cover(rough(rng, x, y, cell.radius * 0.92, dent=0.012, stretch=0.08))
    _fill(patch, rng, nucleus, (0.62, 0.80, 0.0), uneven=0.09)


def _draw_monocyte(patch: Patch, rng: Rng, cell: Blob) -> None:
    """Draw the largest cell: folded nucleus, grey-blue cytoplasm, vacuoles."""
    _fill(patch, rng, patch.cover(cell, 4.0), (0.20, 0.18, 0.0), uneven=0.2)
    places = _arc(rng, cell, 4, distance=0.42, step=float(rng.uniform(0.7, 0.95)))
    lobes = [rough(rng, x, y, cell.radius * float(rng.uniform(0.36, 0.44)), dent=0.05) for x, y in places]
    _fill(patch, rng, patch.fuse(lobes), (0.30, 0.62, -0.08), uneven=0.13)
    _dot(patch, rng, cell, 9, 2.2, lambda spot, cover: spot.clear(0.7 * cover))


def _draw_neutrophil(patch: Patch, rng: Rng, cell: Blob) -> None:
    """Draw three or four lobes joined by threads, in pale pink cytoplasm with fine granules."""
    _fill(patch, rng, patch.cover(cell), (0.05, 0.18, -0.02), uneven=0.15)
    _dot(patch, rng, cell, 130, 0.9, lambda spot, cover: spot.add(cover, (0.05, 0.17, 0.02)))
    count = int(rng.integers(3, 5))
    places = _arc(rng, cell, count, distance=0.47, step=4.9 / count)
    lobes = [rough(rng, x, y, cell.radius * float(rng.uniform(0.27, 0.33)), dent=0.05) for x, y in places]
    _fill(patch, rng, patch.fuse([*lobes, *_threads(lobes)]), (0.36, 0.70, -0.07), uneven=0.13)


def _draw_eosinophil(patch: Patch, rng: Rng, cell: Blob) -> None:
    """Draw two lobes among coarse orange-pink granules."""
    _fill(patch, rng, patch.cover(cell), (0.06, 0.31, 0.17), uneven=0.15)
    _dot(patch, rng, cell, 170, 2.1, lambda spot, cover: spot.add(cover * 0.5, GRANULE))
    places = _arc(rng, cell, 2, distance=0.48, step=float(rng.uniform(1.9, 2.7)))
    lobes = [rough(rng, x, y, cell.radius * float(rng.uniform(0.38, 0.46)), dent=0.05) for x, y in places]
    _fill(patch, rng, patch.fuse([*lobes, *_threads(lobes)]), (0.44, 0.76, -0.02), uneven=0.12)


LEUKOCYTES: dict[str, tuple[Callable[[Patch, Rng, Blob], None], float]] = {  # how to draw it, and its radius
    "eosinophil": (_draw_eosinophil, 37),
    "lymphocyte": (_draw_lymphocyte, 27),
    "monocyte": (_draw_monocyte, 46),
    "neutrophil": (_draw_neutrophil, 40),
}


def _fill(patch: Patch, rng: Rng, cover: Plane, stain: Stain, uneven: float) -> None:
    patch.clear(cover)
    patch.add(cover * (1 + uneven * patch.grain(rng, 5)), stain)


def _arc(rng: Rng, cell: Blob, count: int, *, distance: float, step: float) -> list[tuple[float, float]]:
    """Return points around the cell's centre, `step` radians apart from a random angle.

    distance: from the centre ÷ the cell's radius.
    """
    start = float(rng.uniform(0, 2 * np.pi))
    angles = [start + step * n for n in range(count)]
    length = distance * cell.radius
    return [(cell.x + length * float(np.cos(a)), cell.y + length * float(np.sin(a))) for a in angles]


def _threads(lobes: Sequence[Blob]) -> list[Blob]:
    """Return thin bridges, half way between neighbouring lobes."""
    return [Blob((a.x + b.x) / 2, (a.y + b.y) / 2, 0.4 * a.radius) for a, b in pairwise(lobes)]


def _dot(patch: Patch, rng: Rng, cell: Blob, count: int, radius: float, mark: Mark) -> None:
    """Draw `count` dots all over the cell with `mark`."""
    for angle, place in rng.uniform((0, 0), (2 * np.pi, 1), (count, 2)).tolist():
        length = 0.92 * cell.radius * place**0.5
        dot = Blob(
            cell.x + length * np.cos(angle), cell.y + length * np.sin(angle), radius * rng.uniform(0.7, 1.3)
        )
        spot = patch.around(dot.x, dot.y, 2 * radius + 2)
        mark(spot, spot.cover(dot, 1.5))
