"""Each training picture once, decoded and framed, with room around the frame to turn and shift in.

Decoding and framing cost more than the network's own work on a small picture, so they are done once, into
an array on disk that later epochs, folds and resumed runs read.
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

from app.imaging.decode import decode
from app.imaging.framing import Pixels, Preprocessing, choose_frame, shrink, whiten
from training.config import Augmentation, TrainConfig
from training.data import Row, fingerprint
from training.drafts import draft_of
from training.pictures import Pictures

MOST_ROOM = 2.0  # times the frame; what would lie further out is black


def room_for(a: Augmentation) -> float:
    """How many times the frame's width a turned, scaled and shifted frame can reach."""
    turn = math.radians(min(a.rotation, 45.0))
    reach = a.scale[1] * (math.cos(turn) + math.sin(turn)) * (1 + math.tan(math.radians(a.shear)))
    return min(MOST_ROOM, reach + 2 * a.shift)


def cut_patch(image: Image.Image, preprocessing: Preprocessing, side: int, room: float) -> Pixels:
    """RGB uint8 [side, side, 3]: the frame in the middle, `room` times as wide, black beyond the picture."""
    thumbnail = shrink(image)
    frame = choose_frame(image, thumbnail, preprocessing)
    width, height = room * frame.width, room * frame.height
    left, top = frame.left + (frame.width - width) / 2, frame.top + (frame.height - height) / 2
    reduction = max(1, int(min(width, height) / side))  # averages what bilinear sampling would skip
    source = image.reduce(reduction) if reduction > 1 else image
    across, down = width / side / reduction, height / side / reduction
    matrix = (across, 0, left / reduction, 0, down, top / reduction)
    patch = source.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(whiten(patch, thumbnail) if preprocessing.white_point else patch)


class Cut(Dataset[Pixels]):
    """Row i → its patch."""

    def __init__(self, rows: Sequence[Row], config: TrainConfig) -> None:
        self.rows = rows
        self.preprocessing = config.preprocessing
        self.room = room_for(config.augmentation)
        self.side = round(config.detail * self.room)
        self.pictures = {archive: Pictures(Path(archive)) for archive in {row.archive for row in rows}}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pixels:
        row = self.rows[index]
        image = decode(self.pictures[row.archive].read(row.path))
        return cut_patch(image, self.preprocessing, self.side, self.room).copy()


class Patches:
    """The patches of some rows, mapped from the file that holds them."""

    def __init__(self, rows: Sequence[Row], pixels: Pixels) -> None:
        self.pixels = pixels
        self.places = {(row.archive, row.path): i for i, row in enumerate(rows)}

    def __getitem__(self, row: Row) -> Pixels:
        patch: Pixels = self.pixels[self.places[row.archive, row.path]]
        return patch


def cut_patches(rows: Sequence[Row], config: TrainConfig, folder: Path) -> Patches:
    """Patches uint8 [side, side, 3] of the rows, made in `folder` unless they are there."""
    cut = Cut(rows, config)
    facts = [fingerprint(rows), [row.path for row in rows], asdict(config.preprocessing), cut.side, cut.room]
    path = folder / f"patches-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.npy"
    if not path.is_file():
        loader = DataLoader(cut, batch_size=None, num_workers=config.workers)
        with draft_of(path) as draft:
            made = open_memmap(draft, "w+", np.uint8, (len(rows), cut.side, cut.side, 3))
            for i, patch in enumerate(tqdm(loader, "cutting", len(rows), unit=" pictures", disable=None)):
                made[i] = patch
            made.flush()
    return Patches(rows, np.load(path, mmap_mode="r"))
