"""How many leukocytes of a field are found, how many frames hold none, and how long the search takes.

python -m benchmarks.fields                 # the data in LEUKO_DATA, default ../shared/data
python -m benchmarks.fields --misses FOLDER # also write pictures of misses and false alarms
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from app.imaging.decode import decode
from app.imaging.leukocytes import find_leukocytes
from app.imaging.nucleus import Nucleus
from app.imaging.thumbnail import Thumbnail

DATA = Path(os.environ.get("LEUKO_DATA", Path(__file__).parents[1] / "../shared/data"))
MOSAICS = 30
WHITE = (235, 232, 236)

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Scene:
    name: str
    image: Image.Image
    boxes: list[Box]


@dataclass
class Tally:
    scenes: int = 0
    cells: int = 0
    found: int = 0
    false: int = 0
    twice: int = 0  # further frames in a box that has one
    exact: int = 0  # scenes with as many frames as boxes
    seconds: list[float] = field(default_factory=list, repr=False)

    def add(self, boxes: list[Box], nuclei: list[Nucleus], seconds: float) -> tuple[list[Box], list[Nucleus]]:
        """Count a scene; return its missed boxes and false alarms."""
        hits = [sum(inside(nucleus, box) for nucleus in nuclei) for box in boxes]
        alarms = [nucleus for nucleus in nuclei if not any(inside(nucleus, box) for box in boxes)]
        self.scenes += 1
        self.cells += len(boxes)
        self.found += sum(hit > 0 for hit in hits)
        self.twice += sum(max(0, hit - 1) for hit in hits)
        self.false += len(alarms)
        self.exact += len(nuclei) == len(boxes)
        self.seconds.append(seconds)
        return [box for box, hit in zip(boxes, hits, strict=True) if not hit], alarms


def inside(nucleus: Nucleus, box: Box) -> bool:
    left, top, right, bottom = box
    return left <= nucleus.x <= right and top <= nucleus.y <= bottom


def bccd(held_out: bool) -> Iterator[Scene]:
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
    with zipfile.ZipFile(DATA / "draaslan-fields.zip") as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("draaslan-fields/boxes.csv").decode())))
        for name in sorted(name for name in archive.namelist() if name.endswith(".jpg")):
            image = decode(archive.read(name))
            width, height = image.size
            cells = [
                (
                    float(row["left"]) * width,
                    float(row["top"]) * height,
                    float(row["right"]) * width,
                    float(row["bottom"]) * height,
                )
                for row in rows
                if row["image"] == Path(name).name
            ]
            yield Scene(Path(name).name, image, cells)


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
            yield Scene(Path(name).name, image, [box] if cells else [])


def mosaics(scenes: list[Scene], count: int = MOSAICS) -> Iterator[Scene]:
    """Yield pictures made of fields, each turned by a quarter and scaled, with 2 to 60 cells."""
    rng = np.random.default_rng(0)
    for number in range(count):
        wanted = int(rng.integers(2, 61))
        scale = float(2 ** rng.uniform(-1, 1))
        columns = max(1, round((wanted * 0.8) ** 0.5))
        tiles: list[Scene] = []
        while sum(len(tile.boxes) for tile in tiles) < wanted:
            tiles.append(turned(scenes[int(rng.integers(len(scenes)))], int(rng.integers(4)), scale))
        width = max(tile.image.width for tile in tiles)
        height = max(tile.image.height for tile in tiles)
        rows = -(-len(tiles) // columns)
        ground = tuple(Thumbnail.of(tiles[0].image).white.astype(int).tolist())
        mosaic = Image.new("RGB", (columns * width, rows * height), ground)
        boxes: list[Box] = []
        for place, tile in enumerate(tiles):
            x, y = place % columns * width, place // columns * height
            mosaic.paste(tile.image, (x, y))
            boxes += [(box[0] + x, box[1] + y, box[2] + x, box[3] + y) for box in tile.boxes]
        if mosaic.width * mosaic.height <= 25_000_000:
            yield Scene(f"mosaic-{number}", mosaic, boxes)


def at_edge(scene: Scene) -> bool:
    return any(min(box[0], box[1]) < 20 or box[2] > 620 or box[3] > 460 for box in scene.boxes)


def turned(scene: Scene, quarters: int, scale: float) -> Scene:
    image, boxes = scene.image, scene.boxes
    for _ in range(quarters):
        height = image.height
        image = image.transpose(Image.Transpose.ROTATE_270)  # clockwise
        boxes = [(height - bottom, left, height - top, right) for left, top, right, bottom in boxes]
    size = round(image.width * scale), round(image.height * scale)
    return Scene(
        scene.name,
        image.resize(size, Image.Resampling.BICUBIC),
        [(box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale) for box in boxes],
    )


def measure(scenes: Iterator[Scene], folder: Path | None = None) -> Tally:
    tally = Tally()
    for scene in scenes:
        thumbnail = Thumbnail.of(scene.image)
        _ = thumbnail.white
        began = time.perf_counter()
        nuclei = find_leukocytes(scene.image, thumbnail)
        missed, alarms = tally.add(scene.boxes, nuclei, time.perf_counter() - began)
        if folder is not None and (missed or alarms):
            drawn = scene.image.copy()
            draw = ImageDraw.Draw(drawn)
            for box in scene.boxes:
                draw.rectangle(box, outline=(255, 160, 0) if box in missed else (0, 160, 0), width=2)
            for nucleus in nuclei:
                side = nucleus.extent
                corners = (nucleus.x - side, nucleus.y - side, nucleus.x + side, nucleus.y + side)
                draw.rectangle(corners, outline=(255, 0, 0) if nucleus in alarms else (0, 0, 255), width=1)
            drawn.save(folder / f"{Path(scene.name).stem}.png")
    return tally


def line(name: str, tally: Tally) -> str:
    found = f"{tally.found / tally.cells:.4f}" if tally.cells else "–"
    milliseconds = 1000 * float(np.median(tally.seconds))
    return (
        f"| {name} | {tally.scenes} | {tally.cells} | {found} | {tally.false / tally.scenes:.3f} "
        f"| {tally.twice} | {tally.exact / tally.scenes:.3f} | {milliseconds:.1f} |"
    )


def large(scenes: list[Scene]) -> Iterator[Scene]:
    """Yield pictures of 12 megapixels: one field many times, and one field blown up."""
    scene = scenes[0]
    tiled = Image.new("RGB", (4000, 3000), WHITE)
    boxes: list[Box] = []
    for y in range(0, 3000, scene.image.height):
        for x in range(0, 4000, scene.image.width):
            tiled.paste(scene.image, (x, y))
            boxes += [(box[0] + x, box[1] + y, box[2] + x, box[3] + y) for box in scene.boxes]
    yield Scene("tiled", tiled, boxes)
    factor = 4000 / scene.image.width
    blown = scene.image.resize((4000, round(scene.image.height * factor)), Image.Resampling.BICUBIC)
    yield Scene("blown up", blown, [tuple(side * factor for side in box) for box in scene.boxes])  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--misses", type=Path, help="folder for pictures of misses and false alarms")
    parser.add_argument("--only", default="", help="part of the names of the sets to measure")
    arguments = parser.parse_args()

    sets: dict[str, Callable[[], Iterator[Scene]]] = {
        "BCCD, half used": lambda: bccd(False),
        "BCCD, half held out": lambda: bccd(True),
        "draaslan": draaslan,
        "LISC, one cell": lambda: crops("lisc-cells.zip"),
        "Raabin, one cell": lambda: crops("raabin-cells.zip"),
        "PBC, one cell, every 20th": lambda: crops("pbc-cells.zip", every=20),
        "PBC basophils": lambda: crops("pbc-others.zip", "basophil", every=5),
        "PBC immature granulocytes": lambda: crops("pbc-others.zip", "/ig/", every=5),
        "PBC erythroblasts": lambda: crops("pbc-others.zip", "erythroblast", every=5),
        "PBC platelets, none to be found": lambda: crops("pbc-others.zip", "platelet", cells=False, every=5),
        "BCCD held out, mosaics": lambda: mosaics(list(bccd(True))),
        "draaslan, mosaics": lambda: mosaics(list(draaslan())),
        "12 megapixels": lambda: large([scene for scene in bccd(True) if not at_edge(scene)][:1]),
    }
    print("| Set | fields | cells | found | false alarms a field | twice | right count | ms |")
    print("|---|---|---|---|---|---|---|---|")
    for name, scenes in sets.items():
        if arguments.only in name:
            folder = arguments.misses and arguments.misses / name.split(",")[0].replace(" ", "-")
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
            print(line(name, measure(scenes(), folder)), flush=True)


if __name__ == "__main__":
    main()
