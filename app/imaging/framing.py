"""Crop a decoded image to squares around cells that are the network's input.

`frame_cell` crops a square around the nucleus, in proportion to its size, so that cells look alike at any
magnification. If no nucleus is found, the whole image is used, as in the paper. `frame_cells` does the same
for each leukocyte of a field.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import TooLarge
from app.imaging.leukocytes import count_leukocytes, find_leukocytes
from app.imaging.nucleus import Nucleus, find_nucleus
from app.imaging.quality import Quality, measure
from app.imaging.resize import resize
from app.imaging.thumbnail import Thumbnail

WHITE = 240.0  # where white-point normalisation puts the smear's background

Pixels = NDArray[np.uint8]  # RGB [h, w, 3], or [n, h, w, 3] of a batch


@dataclass(frozen=True)
class Preprocessing:
    """A bundle's preprocessing, part of its `config.json`; the same in training and service."""

    size: int = 224  # pixels, width and height
    framing: Literal["nucleus", "whole"] = "nucleus"
    margin: float = 2.6  # side of the crop ÷ square root of the nucleus's area
    white_point: bool = True  # scale the channels so that the background is white
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0 to 1; applied by the network
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Frame:
    """The part of the image that is used, in the image's pixels; nucleus: it is around a nucleus."""

    left: float
    top: float
    width: float
    height: float
    nucleus: bool

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.left + self.width, self.top + self.height


@dataclass(frozen=True)
class Cell:
    """The engine's input for one cell: RGB uint8 [size, size, 3]; cam: return a class-activation map.

    style: `style.describe` of the pixels, float32, where a decoder has computed it.
    """

    pixels: Pixels
    frame: Frame
    quality: Quality
    cam: bool = False
    style: NDArray[np.float32] | None = None


def frame_cell(image: Image.Image, preprocessing: Preprocessing) -> Cell:
    """Crop and normalise an RGB image of any size, and measure its quality."""
    thumbnail = Thumbnail.of(image)
    nucleus, leukocytes = find_nucleus(image, thumbnail), 1
    if preprocessing.framing == "nucleus":
        if nucleus is not None:
            leukocytes = count_leukocytes(image, thumbnail, nucleus)
        elif nuclei := find_leukocytes(image, thumbnail):  # too small for the thumbnail
            nucleus, leukocytes = nearest_to_middle(image, nuclei), len(nuclei)
    return _frame(image, thumbnail, nucleus, preprocessing, leukocytes)


def nearest_to_middle(image: Image.Image, nuclei: list[Nucleus]) -> Nucleus:
    return min(nuclei, key=lambda nucleus: hypot(nucleus.x - image.width / 2, nucleus.y - image.height / 2))


def frame_cells(image: Image.Image, preprocessing: Preprocessing, most: int) -> list[Cell]:
    """Crop and normalise each leukocyte of an RGB image of any size, in reading order.

    A bundle that classifies whole images (`framing`) has one cell, the image. Raise TooLarge for over `most`
    cells.
    """
    if preprocessing.framing == "whole":
        return [frame_cell(image, preprocessing)]
    thumbnail = Thumbnail.of(image)
    nuclei = find_leukocytes(image, thumbnail)
    if len(nuclei) > most:
        raise TooLarge(f"the image has {len(nuclei)} leukocytes; at most {most} are accepted")
    return [
        _frame(image, thumbnail, nucleus, preprocessing, 1 + nucleus.crowded, found=True)
        for nucleus in nuclei
    ]


def _frame(
    image: Image.Image,
    thumbnail: Thumbnail,
    nucleus: Nucleus | None,
    preprocessing: Preprocessing,
    leukocytes: int = 1,
    *,
    found: bool = False,
) -> Cell:
    """Frame the nucleus, or the image without one. leukocytes, found: see `Quality`."""
    frame = choose_frame(image.size, nucleus, preprocessing)
    framed = cut_out(image, frame, preprocessing.size)
    quality = measure(thumbnail, nucleus, framed, leukocytes, found=found)
    if preprocessing.white_point:
        framed = whiten(framed, thumbnail)
    return Cell(np.asarray(framed), frame, quality)


def cut_out(image: Image.Image, frame: Frame, size: int) -> Image.Image:
    """Return the frame of an image at size × size pixels."""
    return resize(image, (size, size), Image.Resampling.BILINEAR, frame.box)


def choose_frame(size: tuple[int, int], nucleus: Nucleus | None, preprocessing: Preprocessing) -> Frame:
    """Return a square around the nucleus, shifted to lie inside the image; without one, the image.

    size: width and height of the image.
    """
    width, height = size
    if nucleus is None or preprocessing.framing == "whole":
        return Frame(0.0, 0.0, float(width), float(height), nucleus=False)
    side = min(nucleus.extent * preprocessing.margin, width, height)
    left = min(max(nucleus.x - side / 2, 0.0), width - side)
    top = min(max(nucleus.y - side / 2, 0.0), height - side)
    return Frame(left, top, side, side, nucleus=True)


def whiten(image: Image.Image, thumbnail: Thumbnail) -> Image.Image:
    """Scale each channel so that the background becomes `WHITE`. Gains are limited to 0.8 to 1.6."""
    if not thumbnail.lit.any():
        return image
    gains = np.clip(WHITE / np.maximum(thumbnail.white, 1), 0.8, 1.6)
    table = np.minimum(np.outer(gains, np.arange(256)).round(), 255)
    return image.point(table.ravel().astype(int).tolist())
