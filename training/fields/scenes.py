"""Fields with the boxes of their leukocytes, read from the data or composed of such: `Scene`."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import cos, hypot, radians, sin
from pathlib import Path

import numpy as np
from PIL import Image

from app.imaging.decode import decode
from app.imaging.thumbnail import Thumbnail

DATA = Path(os.environ.get("LEUKO_DATA", Path(__file__).parents[2] / "../shared/data"))
MOST_PIXELS = 25_000_000  # of a mosaic

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Scene:
    """A picture and the boxes of its leukocytes. label: of the cells, if it is known."""

    name: str
    image: Image.Image
    boxes: list[Box]
    label: str = ""


def bccd(*, held_out: bool) -> Iterator[Scene]:
    """Yield the photos with boxes of one half, by the hash of their names."""
    boxes: dict[str, list[Box]] = {}
    with (DATA / "bccd-boxes.csv").open() as file:
        for row in csv.DictReader(file):
            left, top, right, bottom = (float(row[side]) for side in ("left", "top", "right", "bottom"))
            boxes.setdefault(row["photo"], []).append((left, top, right, bottom))
    with zipfile.ZipFile(DATA / "bccd-originals.zip") as archive:
        paths = {Path(name).name: name for name in archive.namelist()}
        for photo, cells in boxes.items():
            if (sha256(photo.encode()).digest()[0] % 2 == 1) == held_out:
                yield Scene(photo, decode(archive.read(paths[photo])), cells)


def draaslan() -> Iterator[Scene]:
    """Yield the 100 fields. Three of the 103 boxes hold no leukocyte that one can see."""
    with zipfile.ZipFile(DATA / "draaslan-fields.zip") as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("draaslan-fields/boxes.csv").decode())))
        for name in sorted(name for name in archive.namelist() if name.endswith(".jpg")):
            image = decode(archive.read(name))
            boxes = [
                (
                    float(row["left"]) * image.width,
                    float(row["top"]) * image.height,
                    float(row["right"]) * image.width,
                    float(row["bottom"]) * image.height,
                )
                for row in rows
                if row["image"] == Path(name).name
            ]
            yield Scene(Path(name).name, image, boxes)


def crops(archive: str, part: str = "", *, cells: bool = True, every: int = 1) -> Iterator[Scene]:
    """Yield pictures of one centred cell, or of something else. part: of their paths."""
    with zipfile.ZipFile(DATA / archive) as file:
        names = sorted(
            name
            for name in file.namelist()
            if part in name and name.lower().endswith((".jpg", ".png", ".jpeg"))
        )
        for name in names[::every]:
            image = decode(file.read(name))
            width, height = image.size
            box = (0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height)
            yield Scene(Path(name).name, image, [box] if cells else [], Path(name).parent.name)


def mosaics(scenes: list[Scene], count: int, *, most: int = 60, any_angle: bool = False) -> Iterator[Scene]:
    """Yield pictures made of fields, each turned and scaled by 0.5 to 2, with 2 to `most` cells.

    any_angle: turn each field by any angle, not by quarters.
    """
    rng = np.random.default_rng(0)
    for number in range(count):
        wanted = int(rng.integers(2, most + 1))
        scale = float(2 ** rng.uniform(-1, 1))
        columns = max(1, round((wanted * 0.8) ** 0.5))
        tiles: list[Scene] = []
        while sum(len(tile.boxes) for tile in tiles) < wanted:
            scene = scenes[int(rng.integers(len(scenes)))]
            angle = float(rng.uniform(0, 360)) if any_angle else 90.0 * int(rng.integers(4))
            tiles.append(turned(scene, angle, scale))
        width = max(tile.image.width for tile in tiles)
        height = max(tile.image.height for tile in tiles)
        rows = -(-len(tiles) // columns)
        if columns * width * rows * height > MOST_PIXELS:
            continue
        mosaic = Image.new("RGB", (columns * width, rows * height), white_of(tiles[0].image))
        boxes: list[Box] = []
        for place, tile in enumerate(tiles):
            x, y = place % columns * width, place // columns * height
            mosaic.paste(tile.image, (x, y))
            boxes += [(box[0] + x, box[1] + y, box[2] + x, box[3] + y) for box in tile.boxes]
        yield Scene(f"mosaic-{number}", mosaic, boxes)


def turned(scene: Scene, angle: float, scale: float) -> Scene:
    """Return a field turned by an angle in degrees, on white ground, and scaled; boxes keep their sizes."""
    image = scene.image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=white_of(scene.image))
    across, down = cos(radians(angle)), sin(radians(angle))
    boxes: list[Box] = []
    for left, top, right, bottom in scene.boxes:
        x, y = (left + right - scene.image.width) / 2, (top + bottom - scene.image.height) / 2
        quarter = round(angle / 90) % 2 == 1
        width, height = (bottom - top, right - left) if quarter else (right - left, bottom - top)
        x, y = across * x + down * y + image.width / 2, across * y - down * x + image.height / 2
        boxes.append(
            (
                scale * (x - width / 2),
                scale * (y - height / 2),
                scale * (x + width / 2),
                scale * (y + height / 2),
            )
        )
    size = round(image.width * scale), round(image.height * scale)
    return Scene(scene.name, image.resize(size, Image.Resampling.BICUBIC), boxes)


def white_of(image: Image.Image) -> tuple[int, ...]:
    """Return the colour of an image's background."""
    return tuple(Thumbnail.of(image).white.astype(int).tolist())


def restained(scene: Scene, pairs: Sequence[tuple[tuple[float, ...], tuple[float, ...]]]) -> Scene:
    """Return a field in other stains. pairs: optical densities before and after, of red cells, say."""
    white = np.maximum(Thumbnail.of(scene.image).white, 1)
    density = -np.log(np.maximum(np.asarray(scene.image, np.float64), 1) / white)
    before, after = (np.array(colours).T for colours in zip(*pairs, strict=True))
    # The least change of colours that takes the ones to the others.
    matrix = np.eye(3) + (after - before) @ np.linalg.pinv(before)
    light = white * np.exp(-density @ matrix.T)
    return Scene(
        scene.name, Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)), scene.boxes, scene.label
    )


def pasted(scene: Scene, donors: list[Scene], count: int, *, cells: bool, seed: int, ratio: float) -> Scene:
    """Return a field with the middle of `count` other pictures pasted on places without leukocytes.

    cells: they are to be found. ratio: magnification of the field ÷ that of the others.
    """
    rng = np.random.default_rng(seed)
    image, boxes, taken = scene.image.copy(), list(scene.boxes), list(scene.boxes)
    for _ in range(count):
        donor = donors[int(rng.integers(len(donors)))]
        part = donor.image.crop(donor_box(donor, 0.5 if cells else 0.25))
        width, height = (max(1, round(side * ratio)) for side in part.size)
        part = part.resize((width, height), Image.Resampling.BICUBIC)
        x, y = (int(rng.integers(0, side - own)) for side, own in zip(image.size, part.size, strict=True))
        box = (float(x), float(y), float(x + part.width), float(y + part.height))
        if any(overlap(box, other) for other in taken):
            continue
        gain = np.array(white_of(image)) / np.maximum(white_of(donor.image), 1)
        pixels = np.clip(np.asarray(part) * gain, 0, 255).astype(np.uint8)
        rows, columns = np.indices(pixels.shape[:2]) + 0.5
        reach = np.hypot(columns / part.width - 0.5, rows / part.height - 0.5)
        mask = Image.fromarray((255 * np.clip((0.5 - reach) * 10, 0, 1)).astype(np.uint8))
        image.paste(Image.fromarray(pixels), (x, y), mask)
        taken.append(box)
        if cells:
            boxes.append(box)
    return Scene(scene.name, image, boxes)


def donor_box(scene: Scene, share: float) -> Box:
    """Return the middle of a picture, `share` of its width."""
    width, height = scene.image.size
    return (
        (1 - share) / 2 * width,
        (1 - share) / 2 * height,
        (1 + share) / 2 * width,
        (1 + share) / 2 * height,
    )


def overlap(one: Box, other: Box) -> bool:
    apart = hypot(one[0] + one[2] - other[0] - other[2], one[1] + one[3] - other[1] - other[3]) / 2
    return apart < 0.6 * max(one[2] - one[0] + other[2] - other[0], one[3] - one[1] + other[3] - other[1])
