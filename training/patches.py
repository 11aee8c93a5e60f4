"""Patches: training images, decoded and framed once, with a margin for rotation and shift.

Decoding and framing cost more than the network's own work on a small image. They are done once, into an
array on disk that later epochs, folds and resumed runs read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from app.imaging.framing import Pixels, Preprocessing, choose_frame, whiten
from app.imaging.nucleus import find_nucleus
from app.imaging.thumbnail import Thumbnail
from training.config import Augmentation, TrainConfig
from training.data import Row, fingerprint
from training.drafts import draft_of
from training.images import ImageArchive
from training.verified import read_image

MOST_ROOM = 2.0  # times the frame's side; black beyond that


def room_for(a: Augmentation) -> float:
    """Return the side of a patch, in frame sides, that holds every rotated, scaled and shifted crop."""
    turn = math.radians(min(a.rotation, 45.0))
    reach = a.scale[1] * (math.cos(turn) + math.sin(turn)) * (1 + math.tan(math.radians(a.shear)))
    return min(MOST_ROOM, reach + 2 * a.shift)


def cut_patch(image: Image.Image, preprocessing: Preprocessing, side: int, room: float) -> Pixels:
    """Return RGB uint8 [side, side, 3], `room` times as wide as the frame in its middle.

    It is black outside the image.
    """
    thumbnail = Thumbnail.of(image)
    frame = choose_frame(image.size, find_nucleus(image, thumbnail), preprocessing)
    width, height = room * frame.width, room * frame.height
    left, top = frame.left + (frame.width - width) / 2, frame.top + (frame.height - height) / 2
    reduction = max(1, int(min(width, height) / side))  # averages pixels that bilinear sampling would skip
    reduced = image.reduce(reduction) if reduction > 1 else image
    across, down = width / side / reduction, height / side / reduction
    matrix = (across, 0, left / reduction, 0, down, top / reduction)
    patch = reduced.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(whiten(patch, thumbnail) if preprocessing.white_point else patch)


class PatchCutter(Dataset[Pixels]):
    """Cuts the patch of row i."""

    def __init__(self, rows: Sequence[Row], config: TrainConfig) -> None:
        self.rows = rows
        self.preprocessing = config.preprocessing
        self.room = room_for(config.augmentation)
        self.side = round(config.detail * self.room)
        self.archives = {archive: ImageArchive(Path(archive)) for archive in {row.archive for row in rows}}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pixels:
        row = self.rows[index]
        image = read_image(row, self.archives[row.archive].read(row.path))
        return cut_patch(image, self.preprocessing, self.side, self.room).copy()


class Patches:
    """Patches by row, memory-mapped from their file."""

    def __init__(self, rows: Sequence[Row], pixels: Pixels) -> None:
        self.pixels = pixels
        self.places = {(row.archive, row.path): i for i, row in enumerate(rows)}

    def __getitem__(self, row: Row) -> Pixels:
        patch: Pixels = self.pixels[self.places[row.archive, row.path]]
        return patch


def cut_patches(rows: Sequence[Row], config: TrainConfig, folder: Path) -> Patches:
    """Return the rows' patches, uint8 [side, side, 3]; cut them into a file in `folder` unless it exists."""
    cutter = PatchCutter(rows, config)
    facts = [
        fingerprint(rows),
        [row.path for row in rows],
        asdict(config.preprocessing),
        cutter.side,
        cutter.room,
    ]
    path = folder / f"patches-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.npy"
    if not path.is_file():
        loader = DataLoader(cutter, batch_size=None, num_workers=config.workers)
        with draft_of(path) as draft:
            pixels = open_memmap(draft, "w+", np.uint8, (len(rows), cutter.side, cutter.side, 3))
            for i, patch in enumerate(
                tqdm(loader, "cutting patches", len(rows), unit=" images", disable=None)
            ):
                pixels[i] = patch
            pixels.flush()
    return Patches(rows, np.load(path, mmap_mode="r"))
