"""Pictures that fields are composed of, with the leukocytes in them: `read_sources`.

All are stored as optical density at two magnifications, at which red cells are 20 and 10 pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from app.imaging.leukocytes import find_leukocytes
from app.imaging.nucleus import Nucleus, find_nucleus, nucleus_at
from app.imaging.thumbnail import Thumbnail
from app.samples.smear import LEUKOCYTES, draw_field
from training.fields.scenes import Box, Scene, bccd, crops, draaslan

RED_CELL = {  # pixels of its diameter, by eye
    "bccd": 75.0,
    "draaslan": 42.0,
    "lisc": 40.0,
    "raabin": 55.0,
    "pbc": 36.0,
    "others": 36.0,
    "platelet": 36.0,
    "drawn": 28.2,
}
FINE, COARSE = 20.0, 10.0  # pixels of a red cell's diameter in a source
STAINED = 0.12  # optical density in green light of what is not background
USUAL_RED_CELL, USUAL_NUCLEUS = (0.12, 0.32, 0.25), (0.7, 0.9, 0.25)  # optical densities
CELL = 0.95  # radius of a cell ÷ its nucleus's extent, where there is no box
DRAWN = 70

Spot = tuple[float, ...]  # x, y, extent of the nucleus, radius of the cell; or x, y, radius


@dataclass(frozen=True)
class Source:
    """A picture. Lengths are in pixels at the fine magnification.

    fine, coarse: optical densities [3, h, w]. cells: the leukocytes. middle: those and, in a picture of one
    cell, what is in its middle. ignored: discs in which there may be leukocytes. red_cell, nucleus: typical
    optical densities [3].
    """

    laboratory: str
    fine: torch.Tensor
    coarse: torch.Tensor
    cells: list[Spot]
    middle: list[Spot]
    ignored: list[Spot] = field(default_factory=list)
    red_cell: torch.Tensor = field(default_factory=lambda: torch.tensor(USUAL_RED_CELL))
    nucleus: torch.Tensor = field(default_factory=lambda: torch.tensor(USUAL_NUCLEUS))


def read_sources() -> Iterator[Source]:
    """Yield BCCD's photos but those held out, draaslan's fields, crops and drawn fields."""
    yield from (of_field("bccd", scene) for scene in bccd(held_out=False))
    yield from (of_field("draaslan", scene) for scene in draaslan())
    kinds: list[tuple[str, Iterable[Scene]]] = [
        ("lisc", crops("lisc-cells.zip")),
        ("raabin", crops("raabin-cells.zip")),
        ("pbc", crops("pbc-cells.zip", every=5)),
        *(
            ("others", crops("pbc-others.zip", part, every=2))
            for part in ("basophil", "/ig/", "erythroblast")
        ),
        ("platelet", crops("pbc-others.zip", "platelet", every=2)),
    ]
    for laboratory, scenes in kinds:
        yield from filter(None, (of_crop(laboratory, scene.image) for scene in scenes))
    yield from drawn(DRAWN)


def of_field(laboratory: str, scene: Scene) -> Source:
    """Make a source of a field whose leukocytes have boxes."""
    cells: list[Spot] = []
    ignored: list[Spot] = []
    for box in scene.boxes:
        radius = (box[2] - box[0] + box[3] - box[1]) / 4
        nucleus = _nucleus_in(scene.image, box)
        if nucleus is None:
            ignored.append(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, 1.3 * radius))
        else:
            cells.append((nucleus.x, nucleus.y, nucleus.extent, radius))
    # Cells that the edge cuts have no boxes.
    ignored += [(x, y, 1.6 * extent) for x, y, extent, cut in _others(scene.image, cells) if cut > 0.1]
    return _source(laboratory, scene.image, cells, cells, ignored)


def of_crop(laboratory: str, image: Image.Image) -> Source | None:
    """Make a source of a picture with one cell or platelet in its middle; None if no nucleus is there."""
    nucleus = find_nucleus(image, Thumbnail.of(image))
    width, height = image.size
    if nucleus is None or max(abs(nucleus.x / width - 0.5), abs(nucleus.y / height - 0.5)) > 0.25:
        return None
    middle: list[Spot] = [(nucleus.x, nucleus.y, nucleus.extent, CELL * nucleus.extent)]
    platelet = laboratory == "platelet"
    ignored: list[Spot] = [
        (x, y, 1.6 * extent)
        for x, y, extent, cut in _others(image, middle)
        if not platelet or cut > 0.1 or extent > 0.7 * RED_CELL[laboratory]
    ]
    return _source(laboratory, image, [] if platelet else middle, middle, ignored)


def drawn(count: int) -> Iterator[Source]:
    """Yield drawn fields of up to three leukocytes."""
    names = list(LEUKOCYTES)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        labels = [names[i] for i in rng.integers(0, 4, rng.integers(0, 4))]
        try:
            image, cells = draw_field(
                labels, seed=1000 + seed, width=300, height=240, scale=0.6, touching=seed % 3 == 0
            )
        except ValueError:  # no room
            continue
        thumbnail = Thumbnail.of(image)
        places = [(cell.x, cell.y, 1.2 * cell.radius) for cell in cells]
        spots: list[Spot] = []
        for i, place in enumerate(places):
            nucleus = nucleus_at(image, thumbnail, place, places[:i] + places[i + 1 :])
            if nucleus is not None:
                spots.append((nucleus.x, nucleus.y, nucleus.extent, cells[i].radius))
        yield _source("drawn", image, spots, spots, [])


def _nucleus_in(image: Image.Image, box: Box) -> Nucleus | None:
    left, top, right, bottom = box
    margin = 0.3 * max(right - left, bottom - top)
    x, y = max(0, int(left - margin)), max(0, int(top - margin))
    part = image.crop((x, y, min(image.width, int(right + margin)), min(image.height, int(bottom + margin))))
    nucleus = find_nucleus(part, Thumbnail.of(part))
    if nucleus is None or not (left <= nucleus.x + x <= right and top <= nucleus.y + y <= bottom):
        return None
    return Nucleus(nucleus.x + x, nucleus.y + y, nucleus.extent, nucleus.contrast, nucleus.cut)


def _others(image: Image.Image, known: list[Spot]) -> Iterator[tuple[float, float, float, float]]:
    """Yield x, y, extent and cut of what the shipped network finds beside the known cells."""
    for found in find_leukocytes(image, Thumbnail.of(image)):
        if all(math.hypot(found.x - x, found.y - y) >= 1.1 * extent for x, y, extent, _ in known):
            yield found.x, found.y, found.extent, found.cut


def _source(
    laboratory: str, image: Image.Image, cells: list[Spot], middle: list[Spot], ignored: list[Spot]
) -> Source:
    white = np.maximum(Thumbnail.of(image).white, 1)
    fine, coarse = (_density(image, white, size / RED_CELL[laboratory]) for size in (FINE, COARSE))
    scale = fine.shape[2] / image.width

    def scaled(spots: list[Spot]) -> list[Spot]:
        return [tuple(scale * length for length in spot) for spot in spots]

    red_cell, nucleus = _colours(fine.float(), scaled(middle))
    return Source(laboratory, fine, coarse, scaled(cells), scaled(middle), scaled(ignored), red_cell, nucleus)


def _density(
    image: Image.Image, white: np.ndarray[tuple[int], np.dtype[np.float32]], scale: float
) -> torch.Tensor:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    light = np.asarray(image.resize(size, Image.Resampling.BOX), np.float32)
    density = np.clip(-np.log(np.maximum(light, 1) / white), -0.2, 2.5)
    return torch.from_numpy(density.transpose(2, 0, 1).copy()).half()


def _colours(density: torch.Tensor, middle: list[Spot]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return typical densities of red cells and of the nucleus."""
    red_cell, nucleus = torch.tensor(USUAL_RED_CELL), torch.tensor(USUAL_NUCLEUS)
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in density.shape[1:]), indexing="ij")
    if middle:
        x, y, extent = middle[0][:3]
        near = torch.hypot(columns - x, rows - y) < 0.35 * extent
        if near.any():
            nucleus = density[:, near].mean(1)
    colour = density[0] + density[1] - 2 * density[2]
    least = 0.35 * float(nucleus[0] + nucleus[1] - 2 * nucleus[2])
    red = (density[1] > STAINED) & (colour < least) & (density.amax(0) < 1.5)
    return density[:, red].mean(1) if red.sum() > 20 else red_cell, nucleus
