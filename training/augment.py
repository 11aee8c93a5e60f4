"""What training sees and what evaluation sees, side by side.

Both end in RGB uint8 [size, size, 3]; normalisation is the network's own first layer.
"""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageEnhance

from app.vision.engine import Pixels
from app.vision.framing import Frame, Preprocessing, choose_frame, frame_cell, shrink, whiten
from training.config import Augmentation


def evaluation_pixels(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    return frame_cell(image, preprocessing).pixels


def training_pixels(
    image: Image.Image, preprocessing: Preprocessing, augmentation: Augmentation, rng: random.Random
) -> Pixels:
    thumbnail = shrink(image)
    frame = choose_frame(image, thumbnail, preprocessing)
    framed = warp(image, frame, preprocessing.size, augmentation, rng)
    if preprocessing.white_point:
        framed = whiten(framed, thumbnail)
    return np.asarray(recolour(soften(framed, augmentation, rng), augmentation, rng))


def warp(image: Image.Image, frame: Frame, size: int, a: Augmentation, rng: random.Random) -> Image.Image:
    """Turn, mirror, shear, scale and shift the frame in one resampling; black where the picture ends."""
    angle = math.radians(rng.uniform(-a.rotation, a.rotation))
    shear = math.tan(math.radians(rng.uniform(-a.shear, a.shear)))
    scale = math.exp(rng.uniform(math.log(a.scale[0]), math.log(a.scale[1])))
    across = scale * frame.width / size * (-1 if a.flip_horizontal and rng.random() < 0.5 else 1)
    down = scale * frame.height / size * (-1 if a.flip_vertical and rng.random() < 0.5 else 1)
    cos, sin = math.cos(angle), math.sin(angle)
    # Output pixel → turned and sheared about the centre → stretched to the frame's own pixels.
    xx, xy = across * cos, across * (cos * shear - sin)
    yx, yy = down * sin, down * (sin * shear + cos)
    x = frame.left + frame.width * (0.5 + rng.uniform(-a.shift, a.shift))
    y = frame.top + frame.height * (0.5 + rng.uniform(-a.shift, a.shift))
    half = size / 2
    matrix = (xx, xy, x - half * (xx + xy), yx, yy, y - half * (yx + yy))
    return image.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def soften(image: Image.Image, a: Augmentation, rng: random.Random) -> Image.Image:
    if rng.random() >= a.blur:
        return image
    size = round(image.width * rng.uniform(0.5, 1.0))
    return image.resize((size, size), Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)


def recolour(image: Image.Image, a: Augmentation, rng: random.Random) -> Image.Image:
    for enhance, amount in (
        (ImageEnhance.Brightness, a.brightness),
        (ImageEnhance.Contrast, a.contrast),
        (ImageEnhance.Color, a.saturation),
    ):
        if amount:
            image = enhance(image).enhance(rng.uniform(1 - amount, 1 + amount))
    if a.stain:
        gains = [rng.uniform(1 - a.stain, 1 + a.stain) for _ in range(3)]
        table = np.minimum(np.outer(gains, np.arange(256)).round(), 255)
        image = image.point(table.ravel().astype(int).tolist())
    return image
