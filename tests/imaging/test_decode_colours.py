from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from app.errors import UndecodableImage
from app.imaging.decode import decode, recognise, to_rgb
from tests.pictures import colour, encode, grey_tags, picture, pixels, tiff

ORIENTATION = 0x0112


# --- more than one frame ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_only_the_first_frame_is_read(kind: str) -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encode(red, kind, save_all=True, append_images=[blue] * 3, **options)
    red_value, _, blue_value = colour(decode(data))
    assert red_value > 250
    assert blue_value < 5


def test_an_mpo_is_read_as_the_jpeg_that_it_begins_with() -> None:
    data = encode(picture(), "MPO", save_all=True, append_images=[picture()])
    assert recognise(data) == "JPEG"
    assert decode(data).size == (48, 32)


# --- conversion -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (100, 100, 100)),  # transparent everywhere: not meant
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (200, 100, 0, 0), (200, 100, 0)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
    ],
)
def test_each_mode_has_its_documented_colour(mode: str, value: Any, expected: tuple[int, ...]) -> None:
    assert colour(to_rgb(Image.new(mode, (3, 2), value))) == expected


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    grey = pixels(decode(encode(Image.fromarray(ramp), "PNG")))[..., 0]
    assert np.array_equal(grey, np.arange(256).reshape(16, 16))


def test_big_endian_sixteen_bit_tiff_is_scaled_as_well() -> None:
    ramp = np.linspace(0, 65535, 256).astype(">u2")
    data = tiff(grey_tags(16, 16), ramp.tobytes(), order=">")
    assert np.array_equal(pixels(decode(data))[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("worst", [np.nan, np.inf, 1e9])
def test_floats_with_no_customary_white_are_undecodable(worst: float) -> None:
    image = Image.fromarray(np.array([[0.5, worst]], dtype=np.float32))
    with pytest.raises(UndecodableImage):
        decode(encode(image, "TIFF"))


def test_a_palette_and_its_alpha_are_resolved() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(decode(encode(image, "PNG"))).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    clear = encode(image, "PNG", transparency=b"\xff\x00")
    assert pixels(decode(clear)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_an_eight_bit_colour_key_is_laid_on_white() -> None:
    image = Image.new("RGB", (2, 1), (9, 8, 7))
    image.putpixel((1, 0), (1, 2, 3))
    data = encode(image, "PNG", transparency=(9, 8, 7))
    assert pixels(decode(data)).tolist() == [[[255, 255, 255], [1, 2, 3]]]


def test_a_cmyk_jpeg_has_the_colours_of_the_plain_formula() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = colour(decode(encode(image, "JPEG", quality=95)))
    assert (red > 250, green < 5, blue < 5) == (True, True, True)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("profile", ["valid", "broken"])
def test_a_colour_profile_changes_nothing(kind: str, profile: str) -> None:
    valid = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode(picture(), kind, icc_profile={"valid": valid, "broken": b"\xff" * 300}[profile])
    assert np.array_equal(pixels(decode(data)), pixels(decode(encode(picture(), kind))))


# --- orientation ------------------------------------------------------------------------------------


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    block[0x013B] = "Doe^John"
    return block


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encode(picture(), kind, exif=exif(orientation), **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels(decode(data)), pixels(upright.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "block",
    [b"", b"II*\0\xff\xff\xff\xff", b"\xff" * 90, b"MM\0*\0\0\0\x08\xff\xff"],
)
def test_a_broken_exif_block_is_ignored(kind: str, block: bytes) -> None:
    data = encode(picture(), kind, exif=b"Exif\0\0" + block)
    assert np.array_equal(pixels(decode(data)), pixels(decode(encode(picture(), kind))))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "PA"])
def test_an_image_of_many_strips_has_the_same_pixels_as_its_parts(mode: str) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (3000, 1000), dtype=np.uint8)
    grey = Image.fromarray(levels)
    whole = grey.convert("P").convert("PA") if mode == "PA" else grey.convert(mode)
    if mode in ("LA", "RGBA", "PA"):
        whole.putalpha(grey.transpose(Image.Transpose.FLIP_TOP_BOTTOM))
    found = pixels(to_rgb(whole))
    # Small enough for one strip, and across the bounds of those of the whole.
    part = to_rgb(whole.crop((0, 1000, 1000, 2000)))
    assert found.shape == (3000, 1000, 3)
    assert np.array_equal(found[1000:2000], pixels(part))
