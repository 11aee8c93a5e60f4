"""Scenarios 5 and 6 of the safety plan: what becomes of every kind of pixel, and of turned pictures."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from app.imaging.decode import decode
from tests.pictures import encode, levels_apart, pixels, real
from tests.running import REAL, ROOT, Running, running
from tests.safety.sending import alone

RGB = [(255, 0, 0), (0, 128, 255), (7, 8, 9)]
ORIENTATION = 0x0112
# What an EXIF orientation has a viewer do, undone.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def row(mode: str, *values: Any) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = row("P", *range(len(colours)))
    image.putpalette([level for colour in colours for level in colour])
    return image


def deep_png(colour_type: int, *values: int) -> bytes:
    """One row of 16-bit channels, which Pillow cannot write: 2 is RGB, 4 grey and alpha, 6 RGBA."""
    width = len(values) // {2: 3, 4: 2, 6: 4}[colour_type]
    header = struct.pack(">LLBBBBB", width, 1, 16, colour_type, 0, 0, 0)
    body = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    packed = (struct.pack(">L", len(b)) + n + b + struct.pack(">L", zlib.crc32(n + b)) for n, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def swapping_profile() -> bytes:
    """An ICC profile under which red is blue and blue is red."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")


def found(data: bytes) -> list[tuple[int, ...]]:
    """The pixels of a picture one row high."""
    return [tuple(pixel) for pixel in pixels(decode(data))[0].tolist()]


# --- 5: golden pixels -------------------------------------------------------------------------------


def test_05_cmyk_is_converted_by_the_plain_formula() -> None:
    inks = row("CMYK", (0, 0, 0, 0), (255, 0, 0, 0), (0, 128, 255, 64), (10, 20, 30, 40), (0, 0, 0, 255))
    golden = [(255, 255, 255), (0, 255, 255), (191, 95, 0), (207, 198, 190), (0, 0, 0)]
    assert found(encode(inks, "TIFF")) == golden


def test_05_a_cmyk_jpeg_is_not_taken_for_its_negative() -> None:
    inks = Image.new("CMYK", (16, 16), (10, 20, 30, 40))
    assert found(encode(inks, "JPEG", quality=100))[0] == (207, 198, 190)


def test_05_sixteen_bits_of_grey_are_scaled() -> None:
    levels = (0, 128, 129, 257, 32_768, 65_535)
    golden = [(level,) * 3 for level in (0, 0, 1, 1, 128, 255)]
    image = Image.fromarray(np.array([levels], dtype=np.uint16))
    assert found(encode(image, "PNG")) == golden
    assert found(encode(image, "TIFF")) == golden


def test_05_sixteen_bits_of_colour_keep_their_upper_eight() -> None:
    assert found(deep_png(2, 0, 255, 256, 32_768, 65_279, 65_535)) == [(0, 0, 1), (128, 254, 255)]


def test_05_sixteen_bits_with_alpha_are_laid_on_white() -> None:
    assert found(deep_png(6, 51_400, 25_700, 0, 65_535, 0, 0, 0, 0)) == [(200, 100, 0), (255, 255, 255)]
    assert found(deep_png(4, 25_700, 65_535, 25_700, 0)) == [(100, 100, 100), (255, 255, 255)]


def test_05_a_palette_is_resolved_and_its_alpha_laid_on_white() -> None:
    assert found(encode(palette(*RGB), "PNG")) == RGB
    assert found(encode(palette(*RGB), "GIF")) == RGB
    half = encode(palette(*RGB), "PNG", transparency=b"\xff\x00\x80")
    assert found(half) == [(255, 0, 0), (255, 255, 255), (131, 131, 132)]
    assert found(encode(palette(*RGB), "GIF", transparency=1)) == [(255, 0, 0), (255, 255, 255), (7, 8, 9)]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_05_grey_with_alpha_is_laid_on_white(kind: str) -> None:
    image = row("LA", (100, 255), (100, 128), (100, 0), (0, 128))
    assert found(encode(image, kind)) == [(level,) * 3 for level in (100, 177, 255, 127)]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_05_colour_with_alpha_is_laid_on_white(kind: str) -> None:
    image = row("RGBA", (200, 100, 0, 255), (200, 100, 0, 128), (200, 100, 0, 0))
    data = encode(image, kind, **LOSSLESS[kind], **({"exact": True} if kind == "WEBP" else {}))
    assert found(data) == [(200, 100, 0), (227, 177, 127), (255, 255, 255)]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_05_a_colour_profile_changes_no_pixel(kind: str) -> None:
    profile = swapping_profile()
    image = row("RGB", *RGB)
    heeded = ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB"))
    assert heeded is not None
    assert levels_apart(image, heeded) > 200
    for icc in (profile, b"\xff" * 300, profile[:200]):
        assert found(encode(image, kind, icc_profile=icc, **LOSSLESS[kind])) == RGB


def test_05_black_and_white_are_black_and_white() -> None:
    assert found(encode(row("1", 0, 1), "PNG")) == [(0, 0, 0), (255, 255, 255)]


# --- 6: orientation ---------------------------------------------------------------------------------


def cell() -> Image.Image:
    """A drawn cell, no two of whose corners are alike."""
    image = Image.new("RGB", (96, 80), (225, 205, 210))
    draw = ImageDraw.Draw(image)
    draw.ellipse((18, 10, 74, 66), fill=(190, 170, 205))
    draw.ellipse((26, 18, 52, 60), fill=(95, 50, 140))
    draw.ellipse((48, 20, 68, 38), fill=(105, 60, 150))
    draw.rectangle((80, 66, 95, 79), fill=(200, 120, 130))
    return image


def stored(orientation: int, kind: str) -> bytes:
    """The cell as a camera held that way would write it."""
    turn, exif = STORED_AS[orientation], Image.Exif()
    exif[ORIENTATION] = orientation
    image = cell() if turn is None else cell().transpose(turn)
    return encode(image, kind, exif=exif, **LOSSLESS[kind])


@pytest.fixture(scope="module")
def bundled() -> Iterator[Running]:
    if not (ROOT / "models/wbc-resnet18").exists():
        pytest.skip("the shipped bundle is absent: models/wbc-resnet18 is not there")
    with running(REAL, "--threads", "1") as service:
        yield service


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("orientation", STORED_AS)
def test_06_a_turned_picture_has_the_pixels_of_the_upright_one(kind: str, orientation: int) -> None:
    assert np.array_equal(pixels(decode(stored(orientation, kind))), pixels(cell()))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_06_a_turned_picture_has_the_prediction_of_the_upright_one(bundled: Running, kind: str) -> None:
    with bundled.client() as client:
        answers = [alone(client, stored(turn, kind)).json()["predictions"][0] for turn in STORED_AS]
        sideways = alone(client, encode(cell().transpose(Image.Transpose.ROTATE_90), "PNG"))
    upright = answers[0]["probabilities"]
    for answer in answers:
        assert answer["probabilities"] == pytest.approx(upright, abs=1e-6)
    assert sideways.json()["predictions"][0]["probabilities"] != pytest.approx(upright, abs=1e-4)


def test_06_real_photographs_come_out_upright() -> None:
    folder = real("malformed/exif-orientation")
    images = [decode(file.read_bytes()) for file in sorted(folder.glob("Landscape_[1-8].jpg"))]
    assert len(images) > 4
    upright = pixels(images[0]).astype(float)
    for image in images:
        assert image.size == images[0].size
        assert np.abs(pixels(image) - upright).mean() < 8
