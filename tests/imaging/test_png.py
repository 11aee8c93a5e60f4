"""PNG: samples of 16 bits, of which only some are used, and alpha that means nothing."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.imaging.decode import decode
from tests.pictures import encode, levels_apart, picture, pixels

CELL = pixels(picture(40, 30))
GREY = CELL[..., :1]
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels → PNG's number


def deep_png(samples: NDArray[np.integer], significant: int = 0) -> bytes:
    """Return a PNG of 16 bits; each row has another filter. significant: for sBIT, 0 for none."""
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1).astype(np.int16)
    size = 2 * channels
    left = np.pad(rows, ((0, 0), (size, 0)))[:, :-size]
    above = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    filtered = [rows, rows - left, rows - above, rows - (left + above) // 2]
    body = b"".join(bytes([y % 4]) + filtered[y % 4][y].astype(np.uint8).tobytes() for y in range(height))
    header = struct.pack(">LLBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    bits = [(b"sBIT", bytes([significant] * channels))] if significant else []
    chunks = [(b"IHDR", header), *bits, (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    packed = (
        struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))
        for name, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def shades(channels: int) -> NDArray[np.uint8]:
    """Return the cell in grey or RGB; the last of an even number of channels is alpha, opaque."""
    colours = GREY if channels < 3 else CELL
    return np.concatenate([colours, np.full_like(GREY, 255)], axis=-1) if channels % 2 == 0 else colours


@pytest.mark.parametrize("significant", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", COLOUR_TYPES)
def test_values_of_fewer_than_sixteen_bits_are_scaled(channels: int, bits: int, significant: bool) -> None:
    samples = np.rint(shades(channels) * ((2**bits - 1) / 255)).astype(np.uint16)
    found = decode(deep_png(samples, bits if significant else 0))
    assert (
        levels_apart(np.broadcast_to(shades(channels)[..., : 3 if channels > 2 else 1], CELL.shape), found)
        <= 1
    )


@pytest.mark.parametrize("channels", COLOUR_TYPES)
def test_values_that_were_shifted_up_as_the_standard_says_are_not_scaled_again(channels: int) -> None:
    samples = np.rint(shades(channels) * (4095 / 255)).astype(np.uint16) << 4
    expected = np.broadcast_to(shades(channels)[..., : 3 if channels > 2 else 1], CELL.shape)
    assert levels_apart(expected, decode(deep_png(samples, 12))) <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_dark_image_that_says_it_has_sixteen_bits_stays_dark(channels: int) -> None:
    dark = shades(channels).astype(np.uint16) * 12
    assert pixels(decode(deep_png(dark, 16))).max() <= 12
    assert pixels(decode(deep_png(dark))).max() > 180  # without a word it is taken for one of 12 bits


@pytest.mark.parametrize("channels", [2, 4])
def test_an_alpha_of_zeros_means_nothing_with_sixteen_bits_too(channels: int) -> None:
    for white in (4095, 65535):
        samples = np.rint(shades(channels) * (white / 255)).astype(np.uint16)
        samples[..., -1] = 0
        expected = np.broadcast_to(shades(channels)[..., : channels - 1], CELL.shape)
        assert levels_apart(expected, decode(deep_png(samples))) <= 1


def test_an_image_that_is_converted_in_pieces_is_whole() -> None:
    large = np.tile(CELL, (35, 35, 1))
    samples = np.rint(large * (4095 / 255)).astype(np.uint16)
    assert levels_apart(large, decode(deep_png(samples))) <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_an_image_that_is_transparent_everywhere_is_opaque(kind: str) -> None:
    image = picture(40, 30).convert("RGBA")
    image.putalpha(0)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert levels_apart(CELL, decode(encode(image, kind, **options))) == 0


def test_a_bitmap_with_an_alpha_mask_and_alpha_of_zeros_is_opaque() -> None:
    assert levels_apart(CELL, decode(bitmap(0))) == 0
    assert (
        levels_apart(np.full_like(CELL, 255), decode(bitmap(0, seen=1))) > 0
    )  # one opaque pixel: it is meant
    assert pixels(decode(bitmap(0, seen=1))).mean() > 254


def bitmap(alpha: int, seen: int = 0) -> bytes:
    """Return a BMP with a header of version 4 and masks. seen: pixels that are opaque."""
    height, width, _ = CELL.shape
    rows = np.concatenate([CELL[::-1, :, ::-1], np.full((height, width, 1), alpha, np.uint8)], axis=-1)
    rows[0, :seen, 3] = 255
    masks = struct.pack("<LLLL", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<LllHHLLllLL", 108, width, height, 1, 32, 3, rows.size, 0, 0, 0, 0) + masks
    return (
        b"BM" + struct.pack("<LHHL", 122 + rows.size, 0, 0, 122) + header.ljust(108, b"\0") + rows.tobytes()
    )


def test_a_palette_that_is_transparent_everywhere_is_opaque() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encode(image, "PNG", transparency=b"\0\0")).getpixel((0, 0)) == (10, 20, 30)
