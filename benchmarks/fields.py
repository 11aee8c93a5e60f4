"""How many leukocytes of a field are found, how many frames hold none, whether the classes of cells found in
fields are as right as those of single cells, which are marked for review, and how long the search takes.

python -m benchmarks.fields                 # the data in LEUKO_DATA, default ../shared/data
python -m benchmarks.fields --misses FOLDER # also write pictures of misses and false alarms
python -m benchmarks.fields --only mosaics  # some of the sets
"""

from __future__ import annotations

import argparse
import csv
import io
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from threadpoolctl import threadpool_limits

from app.engine.classifier import Classifier, load_classifier
from app.errors import EngineError
from app.imaging.decode import decode
from app.imaging.framing import Frame, Preprocessing, frame_cell, frame_cells
from app.imaging.leukocytes import find_leukocytes
from app.imaging.nucleus import Nucleus
from app.imaging.quality import CUT_OFF, SEVERAL_CELLS, QualityLimits
from app.imaging.thumbnail import Thumbnail
from training.fields.scenes import (
    DATA,
    Box,
    Scene,
    bccd,
    crops,
    draaslan,
    mosaics,
    pasted,
    restained,
    turned,
    white_of,
)

BUNDLE = Path(__file__).parents[1] / "models" / "wbc-resnet18"
MOSAICS = 12
RED_CELL, NUCLEUS = (0.12, 0.33, 0.27), (0.75, 0.95, 0.30)  # optical densities, typical of both laboratories
STAINS = {  # what they become
    "red cells blue": ((0.42, 0.42, 0.15), (0.95, 1.00, 0.30)),
    "red cells grey": ((0.28, 0.34, 0.20), (0.75, 0.95, 0.30)),
    "stain weak": ((0.05, 0.14, 0.11), (0.32, 0.41, 0.13)),
    "stain strong": ((0.19, 0.53, 0.43), (1.20, 1.52, 0.48)),
}
CLOSE, CUT, WELL_INSIDE = 3.0, 0.7, 0.02  # see `mark`: pixels, sides of a box, share of the width
SAME = 1.0  # pixels by which equal frames may differ
ROUNDS = 20  # of each time, the least of which counts


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


def at_edge(scene: Scene) -> bool:
    width, height = scene.image.size
    return any(min(box[0], box[1]) < 20 or box[2] > width - 20 or box[3] > height - 20 for box in scene.boxes)


def measure(scenes: Iterable[Scene], folder: Path | None = None) -> Tally:
    tally = Tally()
    for scene in scenes:
        thumbnail = Thumbnail.of(scene.image)
        _ = thumbnail.white
        began = time.perf_counter()
        nuclei = find_leukocytes(scene.image, thumbnail)
        missed, alarms = tally.add(scene.boxes, nuclei, time.perf_counter() - began)
        if folder is not None and (missed or alarms):
            draw_misses(scene, nuclei, missed, alarms).save(folder / f"{Path(scene.name).stem}.png")
    return tally


def draw_misses(scene: Scene, nuclei: list[Nucleus], missed: list[Box], alarms: list[Nucleus]) -> Image.Image:
    drawn = scene.image.copy()
    draw = ImageDraw.Draw(drawn)
    for box in scene.boxes:
        draw.rectangle(box, outline=(255, 160, 0) if box in missed else (0, 160, 0), width=2)
    for nucleus in nuclei:
        side = nucleus.extent
        corners = (nucleus.x - side, nucleus.y - side, nucleus.x + side, nucleus.y + side)
        draw.rectangle(corners, outline=(255, 0, 0) if nucleus in alarms else (0, 0, 255), width=1)
    return drawn


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
    tiled = Image.new("RGB", (4000, 3000), white_of(scene.image))
    boxes: list[Box] = []
    for y in range(0, 3000 - scene.image.height + 1, scene.image.height):
        for x in range(0, 4000 - scene.image.width + 1, scene.image.width):
            tiled.paste(scene.image, (x, y))
            boxes += [(box[0] + x, box[1] + y, box[2] + x, box[3] + y) for box in scene.boxes]
    yield Scene("tiled", tiled, boxes)
    yield turned(scene, 0, 4000 / scene.image.width)


def scaled(scenes: Iterable[Scene], scale: float) -> Iterator[Scene]:
    return (turned(scene, 0, scale) for scene in scenes)


def stained(scenes: Iterable[Scene], name: str) -> Iterator[Scene]:
    pairs = [*zip((RED_CELL, NUCLEUS), STAINS[name], strict=True)]
    return (restained(scene, pairs) for scene in scenes)


def with_pasted(
    scenes: Iterable[Scene], part: str, count: int, *, cells: bool, ratio: float
) -> Iterator[Scene]:
    donors = [*crops("pbc-others.zip", part, every=20)]
    for seed, scene in enumerate(scenes):
        yield pasted(scene, donors, count, cells=cells, seed=seed, ratio=ratio)


SETS: dict[str, Callable[[], Iterable[Scene]]] = {
    "BCCD, half used": lambda: bccd(held_out=False),
    "BCCD, half held out": lambda: bccd(held_out=True),
    "draaslan": draaslan,
    "LISC, one cell": lambda: crops("lisc-cells.zip"),
    "Raabin, one cell": lambda: crops("raabin-cells.zip"),
    "PBC, one cell, every 20th": lambda: crops("pbc-cells.zip", every=20),
    "PBC basophils": lambda: crops("pbc-others.zip", "basophil", every=5),
    "PBC immature granulocytes": lambda: crops("pbc-others.zip", "/ig/", every=5),
    "PBC erythroblasts": lambda: crops("pbc-others.zip", "erythroblast", every=5),
    "PBC platelets, none to be found": lambda: crops("pbc-others.zip", "platelet", cells=False, every=5),
    **{
        f"BCCD held out, {name}": lambda name=name: stained(bccd(held_out=True), name)  # type: ignore[misc]
        for name in STAINS
    },
    **{f"draaslan, {name}": lambda name=name: stained(draaslan(), name) for name in STAINS},  # type: ignore[misc]
    "BCCD held out, 6 large platelets pasted": lambda: with_pasted(
        bccd(held_out=True), "platelet", 6, cells=False, ratio=75 / 36
    ),
    "BCCD held out, 6 erythroblasts pasted": lambda: with_pasted(
        bccd(held_out=True), "erythroblast", 6, cells=True, ratio=75 / 36
    ),
    "BCCD held out, scaled by 0.3": lambda: scaled(bccd(held_out=True), 0.3),
    "BCCD held out, scaled by 3": lambda: scaled(bccd(held_out=True), 3),
    "BCCD held out, mosaics": lambda: mosaics([*bccd(held_out=True)], MOSAICS),
    "BCCD held out, mosaics at any angle": lambda: mosaics([*bccd(held_out=True)], MOSAICS, any_angle=True),
    "draaslan, mosaics": lambda: mosaics([*draaslan()], MOSAICS),
    "12 megapixels": lambda: large([scene for scene in bccd(held_out=True) if not at_edge(scene)][:1]),
}


def labels_of_bccd() -> dict[str, str]:
    """Return the class of each photo that has one of the four."""
    with zipfile.ZipFile(DATA / "bccd-originals.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith("labels.csv"))
        rows = list(csv.reader(io.StringIO(archive.read(name).decode())))
    number, kind = rows[0].index("Image"), rows[0].index("Category")
    return {f"BloodImage_{int(row[number]):05}.jpg": row[kind].strip().lower() for row in rows[1:]}


def compare_classes(classifier: Classifier, scenes: Iterable[Scene], labels: dict[str, str]) -> str:
    """Return how many cells of photos with one box get the right class, found and cropped by their boxes."""
    preprocessing = classifier.bundle.preprocessing
    right = {"found in the field": 0, "cells=one of the photo": 0, "cropped by the box": 0}
    count = same = 0
    for scene in scenes:
        label = labels.get(scene.name, scene.label)
        if len(scene.boxes) != 1 or label not in classifier.bundle.labels:
            continue
        (box,) = scene.boxes
        found = [
            cell for cell in frame_cells(scene.image, preprocessing, 256) if frame_meets(cell.frame, box)
        ]
        one = frame_cell(scene.image, preprocessing)
        cropped = frame_cell(scene.image.crop(tuple(round(side) for side in box)), preprocessing)  # type: ignore[arg-type]
        count += 1
        if found:
            same += all(abs(a - b) <= SAME for a, b in zip(found[0].frame.box, one.frame.box, strict=True))
        for name, cell in zip(right, (found[0] if found else None, one, cropped), strict=True):
            answer = classifier.classify([cell])[0] if cell else None
            right[name] += (
                answer is not None and not isinstance(answer, EngineError) and answer.label == label
            )
    ratio = right["found in the field"] / max(1, right["cropped by the box"])
    shares = ", ".join(f"{name} {value / count:.4f}" for name, value in right.items())
    return (
        f"{count} cells; right: {shares}; ratio {ratio:.4f}; frames equal to cells=one's {same / count:.4f}"
    )


def frame_meets(frame: Frame, box: Box) -> bool:
    left, top, right, bottom = frame.box
    return left <= (box[0] + box[2]) / 2 <= right and top <= (box[1] + box[3]) / 2 <= bottom


def off_centre(frame: Frame, box: Box) -> float:
    left, top, right, bottom = frame.box
    return float(np.hypot(left + right - box[0] - box[2], top + bottom - box[1] - box[3]))


def share_of_several(scenes: Iterable[Scene], classifier: Classifier) -> str:
    """Return the share of pictures, sent as one cell, that are marked `several_cells`."""
    marks = [
        frame_cell(scene.image, classifier.bundle.preprocessing).quality.leukocytes > 1 for scene in scenes
    ]
    return f"{sum(marks)} of {len(marks)}: {sum(marks) / len(marks):.4f}"


@dataclass
class Marks:
    """Which cells of fields are marked: `cut_off` for those that are cut plainly and those that are whole,
    `several_cells` for those that are found twice and those found once.
    """

    cut: list[bool] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    twice: list[bool] = field(default_factory=list)
    once: list[bool] = field(default_factory=list)

    def __str__(self) -> str:
        counts = {name: f"{sum(marks)} of {len(marks)}" for name, marks in vars(self).items()}
        return (
            f"cut_off: {counts['cut']} cut plainly, {counts['whole']} whole; "
            f"several_cells: {counts['twice']} found twice, {counts['once']} once"
        )


def mark(scenes: Iterable[Scene]) -> Marks:
    """Frame all cells of fields, and sort the marks of those in a box.

    Plainly cut: the box is at the edge, and one of its sides is less than 0.7 of the other; whole: it ends a
    fiftieth of the image's width before the edge. Twice: another find lies in the same box.
    """
    marks, limits = Marks(), QualityLimits()
    for scene in scenes:
        nuclei = find_leukocytes(scene.image, Thumbnail.of(scene.image))
        cells = frame_cells(scene.image, Preprocessing(), 256)
        boxes = [next((box for box in scene.boxes if inside(nucleus, box)), None) for nucleus in nuclei]
        for cell, box in zip(cells, boxes, strict=True):
            if box is None:
                continue
            reasons = limits.reasons(cell.quality)
            (marks.twice if boxes.count(box) > 1 else marks.once).append(SEVERAL_CELLS in reasons)
            width, height = scene.image.size
            room = min(box[0], box[1], width - box[2], height - box[3])
            least, most = sorted((box[2] - box[0], box[3] - box[1]))
            if room <= CLOSE and least < CUT * most:
                marks.cut.append(CUT_OFF in reasons)
            elif room > WELL_INSIDE * width:
                marks.whole.append(CUT_OFF in reasons)
    return marks


def pairs(scenes: list[Scene], count: int) -> Iterator[Scene]:
    """Yield two fields beside each other."""
    rng = np.random.default_rng(1)
    for number in range(count):
        one, other = (scenes[int(i)] for i in rng.choice(len(scenes), 2, replace=False))
        image = Image.new("RGB", (one.image.width + other.image.width, one.image.height))
        image.paste(one.image, (0, 0))
        image.paste(other.image, (one.image.width, 0))
        yield Scene(f"pair-{number}", image, [])


def times(scene: Scene, classifier: Classifier) -> str:
    """Return milliseconds on this machine, now, and beside decoding the picture as a JPEG."""
    file = io.BytesIO()
    scene.image.save(file, "JPEG", quality=90)
    image, preprocessing = scene.image, classifier.bundle.preprocessing
    works: dict[str, Callable[[], object]] = {
        "decoding": lambda: decode(file.getvalue()),
        "cells=one": lambda: frame_cell(image, preprocessing),
        "cells=all": lambda: frame_cells(image, preprocessing, 256),
        "of that the search": lambda: find_leukocytes(image, Thumbnail.of(image)),
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            taken[name].append(1000 * (time.perf_counter() - began))
    decoding = min(taken["decoding"])
    return ", ".join(
        f"{name} {min(all_):.2f} ms ({min(all_) / decoding:.2f})" for name, all_ in taken.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--misses", type=Path, help="folder for pictures of misses and false alarms")
    parser.add_argument("--only", default="", help="part of the names of the sets to measure")
    arguments = parser.parse_args()
    threadpool_limits(1, "blas")  # as in a decoder

    print("| Set | fields | cells | found | false alarms a field | twice | right count | ms |")
    print("|---|---|---|---|---|---|---|---|")
    for name, scenes in SETS.items():
        if arguments.only in name:
            folder = arguments.misses and arguments.misses / name.replace(",", "").replace(" ", "-")
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
            print(line(name, measure(scenes(), folder)), flush=True)
    classifier = load_classifier(BUNDLE)
    further: dict[str, Callable[[], str]] = {
        "classes, BCCD": lambda: compare_classes(
            classifier, chain(bccd(held_out=True), bccd(held_out=False)), labels_of_bccd()
        ),
        "classes, LISC": lambda: compare_classes(classifier, crops("lisc-cells.zip"), {}),
        "classes, Raabin": lambda: compare_classes(classifier, crops("raabin-cells.zip"), {}),
        "marks, BCCD": lambda: str(mark(chain(bccd(held_out=True), bccd(held_out=False)))),
        "marks, draaslan": lambda: str(mark(draaslan())),
        "marks, mosaics of BCCD": lambda: str(mark(mosaics([*bccd(held_out=True)], MOSAICS))),
        "marks, mosaics of draaslan": lambda: str(mark(mosaics([*draaslan()], MOSAICS))),
        "several_cells, pairs of draaslan": lambda: share_of_several(
            pairs([scene for scene in draaslan() if len(scene.boxes) == 1], 100), classifier
        ),
        "several_cells, pairs of BCCD": lambda: share_of_several(
            pairs([*bccd(held_out=True)], 100), classifier
        ),
        "several_cells, crops of LISC": lambda: share_of_several(crops("lisc-cells.zip"), classifier),
        "several_cells, crops of Raabin": lambda: share_of_several(crops("raabin-cells.zip"), classifier),
        "several_cells, crops of PBC": lambda: share_of_several(crops("pbc-cells.zip", every=20), classifier),
        "times, 640 × 480": lambda: times(next(bccd(held_out=True)), classifier),
        "times, 12 megapixels": lambda: times(turned(next(bccd(held_out=True)), 0, 6.25), classifier),
        "times, 12 megapixels, small cells": lambda: times(
            next(large([next(bccd(held_out=True))])), classifier
        ),
    }
    for name, report in further.items():
        if arguments.only in name:
            print(f"{name}: {report()}", flush=True)


if __name__ == "__main__":
    main()
