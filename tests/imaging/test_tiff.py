"""TIFF: every combination of tags is read as it is meant, or refused by the name of what is not read."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.errors import TooLarge, UndecodableImage
from app.imaging.decode import decode
from app.imaging.limits import STRIP_PIXELS, ImageLimits
from app.imaging.tiff_layout import OTHER_COMPRESSION, OTHER_PHOTOMETRIC
from tests.pictures import encode, levels_apart, pixels, real
from tests.running import ROOT
from tests.tiffs import COMPRESSIONS, Tags, page, write

WIDTH, HEIGHT = 37, 29  # no multiple of a tile's side, nor of a strip's rows


def cell() -> NDArray[np.uint8]:
    """Return RGB that is different in each corner and channel, from 0 to 255."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    shades = np.stack([x / (WIDTH - 1), y / (HEIGHT - 1), 1 - x / WIDTH * 0.6 - y / HEIGHT * 0.4], axis=-1)
    whole: NDArray[np.uint8] = np.rint(255 * shades).astype(np.uint8)
    return whole


CELL = cell()
GREY = CELL[..., :1] // 2 + CELL[..., 1:2] // 2
OPAQUE = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)


def stored(shades: NDArray[np.uint8], kind: str, bits: int) -> NDArray[np.generic]:
    """Return 8-bit shades as samples of another type, over its whole range from 0."""
    if kind == "f":
        return (shades / 255).astype(f"f{bits // 8}")
    white = 2 ** (bits - (kind == "i")) - 1
    size = 1 if bits <= 8 else 2 if bits <= 16 else 4
    samples: NDArray[np.generic] = np.rint(shades.astype(np.float64) * white / 255).astype(f"{kind}{size}")
    return samples


def one(samples: NDArray[np.generic], photometric: int, order: str = "<", **options: object) -> bytes:
    return write([page(samples, photometric, order=order, **options)], order)  # type: ignore[arg-type]


def as_rgb(shades: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.broadcast_to(shades, (HEIGHT, WIDTH, 3))


# --- read right -------------------------------------------------------------------------------------

DEPTHS = [("u", 8), ("u", 10), ("u", 12), ("u", 14), ("u", 16), ("u", 32)]
DEPTHS += [("i", 8), ("i", 16), ("i", 32), ("f", 16), ("f", 32), ("f", 64)]
COLOURS = {"WhiteIsZero": 0, "BlackIsZero": 1, "RGB": 2, "CMYK": 5}
EXTRAS: dict[str, list[int]] = {"none": [], "undeclared": [-1], "other": [0], "associated": [1], "alpha": [2]}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(("kind", "bits"), DEPTHS)
def test_every_combination_is_read_right_or_refused_by_name(
    colour: str, kind: str, bits: int, extra: str
) -> None:
    shades = {"WhiteIsZero": 255 - GREY, "BlackIsZero": GREY, "RGB": CELL}.get(colour)
    expected = as_rgb(GREY) if colour != "RGB" else CELL
    if shades is None:
        shades = np.concatenate([255 - CELL, 0 * GREY], axis=-1)  # without black ink the formula is exact
        expected = CELL
    # Half of the extra sample is not opaque; 255 in each channel of the image that is then seen is white.
    cover = OPAQUE.copy()
    if extra != "none":
        cover[: HEIGHT // 2] = 0
        shades = np.concatenate([shades, cover], axis=-1)
    if extra in ("associated", "alpha"):
        expected = np.where(cover == 0, np.uint8(255), expected)
    if extra == "associated":
        shades = np.where(cover == 0, np.uint8(0), shades)
        shades[..., -1:] = cover
    tags = {338: EXTRAS[extra]} if EXTRAS[extra] and EXTRAS[extra] != [-1] else {}
    refused = (colour in ("WhiteIsZero", "BlackIsZero") and extra in ("undeclared", "other")) or (
        extra == "associated" and colour in ("WhiteIsZero", "CMYK")
    )
    samples = stored(shades, kind, bits)
    for order, planar, tile in product("<>", (False, True), (0, 16)):
        data = one(
            samples, COLOURS[colour], order, bits=bits, planar=planar, tile=tile, compression=8, tags=tags
        )
        if refused:
            with pytest.raises(UndecodableImage, match=r"channels|associated alpha"):
                decode(data)
        else:
            assert levels_apart(expected, decode(data)) <= 1, (order, planar, tile)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(("kind", "bits"), [*DEPTHS, ("u", 1), ("u", 2), ("u", 4), ("u", 6)])
def test_every_depth_is_read_with_every_compression(kind: str, bits: int, compression: int) -> None:
    samples = stored(CELL, kind, bits)
    white = 1 if kind == "f" else 2 ** (bits - (kind == "i")) - 1
    expected = np.rint(samples.astype(np.float64) * 255 / white).astype(np.uint8)
    for order, planar, tile in product("<>", (False, True), (0, 16)):
        data = one(samples, 2, order, bits=bits, planar=planar, tile=tile, compression=compression)
        assert levels_apart(expected, decode(data)) <= 1, (order, planar, tile)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("old", [False, True])
def test_palettes_have_sixteen_bits_or_the_eight_of_old_writers(bits: int, old: bool) -> None:
    colours = np.random.default_rng(bits).integers(0, 256, (2**bits, 3))
    samples = np.random.default_rng(1).integers(0, 2**bits, (HEIGHT, WIDTH, 1))
    table = (colours * (1 if old else 257)).T.ravel()
    for order, compression in (("<", 1), (">", 5), ("<", 8)):
        data = one(
            samples.astype(np.uint16 if bits > 8 else np.uint8),
            3,
            order,
            bits=bits,
            compression=compression,
            tags={320: table.tolist()},
        )
        assert np.array_equal(pixels(decode(data)), colours[samples[..., 0]])


def test_the_predictors_are_undone() -> None:
    grey = stored(GREY, "u", 16).astype(np.int64)
    differences = np.diff(grey, axis=1, prepend=0).astype(np.uint16)
    for order in "<>":
        data = one(differences, 1, order, compression=8, tags={317: [2]})
        assert levels_apart(as_rgb(GREY), decode(data)) == 0
    rows = stored(GREY, "f", 32)[..., 0].astype(">f4").view(np.uint8).reshape(HEIGHT, WIDTH, 4)
    planes = rows.transpose(0, 2, 1).reshape(HEIGHT, -1)
    octets = np.diff(planes.astype(np.int16), axis=1, prepend=0).astype(np.uint8)
    samples = octets.reshape(HEIGHT, WIDTH, 4).copy().view("<f4")
    assert levels_apart(as_rgb(GREY), decode(one(samples, 1, compression=8, tags={317: [3]}))) == 0


def test_bits_in_reversed_order_are_turned() -> None:
    reversed_bits = np.packbits(np.unpackbits(CELL, axis=-1).reshape(HEIGHT, WIDTH, 3, 8)[..., ::-1], axis=-1)
    for compression in (1, 32773):
        parts = reversed_bits[..., 0]
        if compression == 1:
            assert levels_apart(CELL, decode(one(parts, 2, tags={266: [2]}))) == 0
    # The compressed bytes themselves are reversed.
    tags, strips = page(CELL, 2, compression=8, rows=HEIGHT, tags={266: [2]})
    turned = np.packbits(np.unpackbits(np.frombuffer(strips[0], np.uint8)[:, None], axis=1)[:, ::-1], axis=1)
    assert levels_apart(CELL, decode(write([(tags, [turned.tobytes()])]))) == 0


def test_ycbcr_is_converted_and_refused_where_it_is_subsampled_outside_jpeg() -> None:
    ycbcr = np.asarray(Image.fromarray(CELL).convert("YCbCr"))
    for planar, compression in product((False, True), COMPRESSIONS):
        data = one(ycbcr, 6, planar=planar, compression=compression, tags={530: [1, 1]})
        assert levels_apart(CELL, decode(data)) <= 3
        with pytest.raises(UndecodableImage, match="subsampled"):
            decode(one(ycbcr, 6, planar=planar, compression=compression))


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr", "CMYK"])
def test_jpegs_have_the_pixels_that_pillow_gives(mode: str) -> None:
    data = encode(Image.fromarray(CELL).convert(mode), "TIFF", compression="jpeg", quality=95)
    assert levels_apart(Image.open(io.BytesIO(data)).convert("RGB"), decode(data)) == 0


def test_white_is_zero_is_the_negative_of_black_is_zero_in_a_jpeg_too() -> None:
    data = encode(Image.fromarray(GREY[..., 0]), "TIFF", compression="jpeg")
    negative = data.replace(struct.pack("<HHLL", 262, 3, 1, 1), struct.pack("<HHLL", 262, 3, 1, 0))
    assert levels_apart(255 - pixels(decode(data)), decode(negative)) == 0


# --- which value is white ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", ["u", "i"])
def test_values_of_fewer_bits_than_the_sample_are_scaled_by_the_greatest(
    kind: str, size: int, bits: int
) -> None:
    white = min(2**bits - 1, 2 ** (8 * size - (kind == "i")) - 1)
    samples = np.rint(CELL.astype(np.float64) * white / 255).astype(f"{kind}{size}")
    assert levels_apart(CELL, decode(one(samples, 2))) <= 1


@pytest.mark.parametrize("white", [1, 255, 1023, 4095, 16383, 65535])
def test_floats_are_scaled_by_the_lowest_usual_white(white: int) -> None:
    assert levels_apart(CELL, decode(one((CELL / 255 * white).astype(np.float32), 2))) <= 1


@pytest.mark.parametrize("tags", [{341: [65535.0] * 3}, {340: [0.0], 341: [65535.0]}, {281: [65535] * 3}])
def test_a_dark_image_that_says_its_white_stays_dark(tags: Tags) -> None:
    dark = CELL.astype(np.uint16) * 8
    assert levels_apart(np.rint(dark / 257).astype(np.uint8), decode(one(dark, 2, tags=tags))) == 0
    assert pixels(decode(one(dark, 2))).max() > 120  # without a word it is taken for one of 12 bits


def test_the_declared_least_and_greatest_sample_are_black_and_white() -> None:
    samples = np.rint(100 + CELL / 255 * 2900).astype(np.uint16)
    tags = {340: [100.0] * 3, 341: [3000.0] * 3}
    assert levels_apart(CELL, decode(one(samples, 2, tags=tags))) <= 1
    signed = (samples.astype(np.int32) - 2000).astype(np.int16)
    tags = {340: [-1900.0] * 3, 341: [1000.0] * 3}
    assert levels_apart(CELL, decode(one(signed, 2, tags=tags))) <= 1


def test_eight_bits_are_taken_as_they_are() -> None:
    dark = CELL // 4
    assert levels_apart(dark, decode(one(dark, 2, tags={341: [63.0] * 3, 281: [63] * 3}))) == 0


def test_an_alpha_of_twelve_bits_is_opaque_where_the_colours_are_white() -> None:
    samples = np.rint(np.concatenate([CELL, OPAQUE], axis=-1).astype(np.float64) * 4095 / 255)
    assert levels_apart(CELL, decode(one(samples.astype(np.uint16), 2, tags={338: [2]}))) <= 1


@pytest.mark.parametrize("meaning", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [False, True])
def test_an_alpha_of_zeros_means_nothing(meaning: int, bits: int, planar: bool) -> None:
    samples = stored(np.concatenate([CELL, 0 * OPAQUE], axis=-1), "u", bits)
    assert levels_apart(CELL, decode(one(samples, 2, planar=planar, tags={338: [meaning]}))) == 0


def test_an_alpha_below_zero_is_transparent() -> None:
    samples = np.concatenate([CELL / 255, OPAQUE / 255], axis=-1)
    samples[0, 0, 3] = -1e300
    image = decode(one(samples, 2, tags={338: [2]}))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert levels_apart(CELL[1:], image.crop((0, 1, WIDTH, HEIGHT))) <= 1


def test_half_transparent_pixels_are_laid_on_white() -> None:
    half = np.full((HEIGHT, WIDTH, 1), 128, np.uint8)
    expected = np.rint(CELL * (128 / 255) + 127)
    multiplied = np.rint(CELL * (128 / 255)).astype(np.uint8)
    plain = one(np.concatenate([CELL, half], axis=-1), 2, tags={338: [2]})
    associated = one(np.concatenate([multiplied, half], axis=-1), 2, tags={338: [1]})
    assert levels_apart(expected.astype(np.uint8), decode(plain)) <= 1
    assert levels_apart(expected.astype(np.uint8), decode(associated)) <= 1


@pytest.mark.parametrize(("planar", "tile", "rows"), [(False, 0, 100), (False, 0, 1160), (True, 256, 0)])
@pytest.mark.parametrize("compression", [1, 8])
def test_an_image_that_is_converted_in_pieces_is_whole(
    compression: int, planar: bool, tile: int, rows: int
) -> None:
    large = np.tile(CELL, (40, 30, 1))  # 1.3 million pixels
    assert large.shape[0] * large.shape[1] > STRIP_PIXELS
    samples = large.astype(np.uint16) * 257
    data = one(samples, 2, planar=planar, tile=tile, rows=rows, compression=compression)
    assert levels_apart(large, decode(data, ImageLimits(max_bytes=len(data)))) == 0


# --- pages that are channels ------------------------------------------------------------------------

COMPOSITE = b"ImageJ=1.54f\nimages=3\nchannels=3\nmode=composite\nloop=false\n\0"
RAMP = bytes(range(256))
TABLES = {"red": RAMP + bytes(512), "green": bytes(256) + RAMP + bytes(256), "blue": bytes(512) + RAMP}
TABLES["grey"] = 3 * RAMP


def channels(
    description: bytes,
    order: Sequence[int] = (0, 1, 2),
    bits: int = 8,
    endian: str = "<",
    tags: Tags | None = None,
    **options: object,
) -> bytes:
    """Return a file whose pages are the channels of the cell, in this order."""
    samples = stored(CELL, "u", bits)
    first: Tags = {270: description, **(tags or {})}
    pages = [
        page(samples[..., n : n + 1], 1, order=endian, tags=first if place == 0 else {}, **options)  # type: ignore[arg-type]
        for place, n in enumerate(order)
    ]
    return write(pages, endian)


def tables(*names: str, endian: str = "<") -> Tags:
    """Return ImageJ's own tags with a colour table for each channel."""
    head = {"<": b"JIJI", ">": b"IJIJ"}[endian] + struct.pack(
        f"{endian}4s" if endian == ">" else "4s", b"luts" if endian == ">" else b"stul"
    )
    head += struct.pack(f"{endian}L", len(names))
    content = head + b"".join(TABLES[name] for name in names)
    return {50839: content, 50838: [len(head), *(768 for _ in names)]}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_a_composite_of_imagej_is_read_as_rgb(endian: str, bits: int) -> None:
    for options in (
        {},
        {"compression": 8},
        {"tile": 16},
        {"tags": tables("red", "green", "blue", endian=endian)},
    ):
        assert levels_apart(CELL, decode(channels(COMPOSITE, bits=bits, endian=endian, **options))) == 0
    swapped = channels(
        COMPOSITE, (2, 0, 1), endian=endian, tags=tables("blue", "red", "green", endian=endian)
    )
    assert levels_apart(CELL, decode(swapped)) == 0


def ome(colours: Sequence[str], *, order: str = "XYCZT", z: int = 1, data: str = "<TiffData/>") -> bytes:
    every = "".join(f'<Channel ID="Channel:0:{n}" SamplesPerPixel="1" {c}/>' for n, c in enumerate(colours))
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="I:0">'
        f'<Pixels DimensionOrder="{order}" SizeC="{len(colours)}" SizeT="1" SizeZ="{z}" Type="uint8">'
        f"{every}{data}</Pixels></Image></OME>\0"
    ).encode()


RED, GREEN, BLUE = (f'Color="{value}"' for value in (-16776961, 16711935, 65535))


def test_channels_of_ome_are_read_as_rgb_by_their_colours_or_names() -> None:
    names = [f'Name="{name}"' for name in ("Red", "green", "B")]
    assert levels_apart(CELL, decode(channels(ome([RED, GREEN, BLUE])))) == 0
    assert levels_apart(CELL, decode(channels(ome(names)))) == 0
    assert levels_apart(CELL, decode(channels(ome([BLUE, RED, GREEN]), (2, 0, 1)))) == 0
    listed = "".join(f'<TiffData FirstC="{n}" IFD="{n}" PlaneCount="1"/>' for n in range(3))
    assert levels_apart(CELL, decode(channels(ome([RED, GREEN, BLUE], data=listed)))) == 0


@pytest.mark.parametrize(
    ("description", "tags"),
    [
        (COMPOSITE.replace(b"composite", b"grayscale"), {}),
        (COMPOSITE.replace(b"channels=3", b"channels=2"), {}),
        (COMPOSITE.replace(b"channels=3", b"channels=4"), {}),
        (COMPOSITE, tables("red", "green", "grey")),
        (b"ImageJ=1.11a\nimages=6\nchannels=2\nslices=3\nhyperstack=true\nmode=color\n\0", {}),
        (ome([RED, GREEN]), {}),
        (ome([RED, GREEN, GREEN]), {}),
        (ome(["", "", ""]), {}),
        (ome([RED, GREEN, BLUE], order="XYZCT", z=2), {}),
        (ome([RED, GREEN, BLUE], data='<TiffData IFD="0" FirstC="2"/>'), {}),
        (b'{"shape": [3, 29, 37], "axes": "CYX"}\0', {}),
        (b"", {}),
    ],
)
def test_channels_without_the_colours_red_green_and_blue_are_refused(description: bytes, tags: Tags) -> None:
    with pytest.raises(UndecodableImage, match="channels"):
        decode(channels(description, tags=tags))


def test_channels_that_are_missing_or_differ_are_refused() -> None:
    grey = page(GREY, 1, tags={270: COMPOSITE})
    small = page(GREY[:20], 1)
    inverted = page(GREY, 0)
    palette: Tags = {320: list(range(256)) * 3}
    for pages in (
        [page(GREY, 3, tags={270: COMPOSITE, **palette})] + [page(GREY, 3, tags=palette)] * 2,
        [grey],
        [grey, page(GREY, 1)],
        [grey, page(GREY, 1), small],
        [grey, inverted, page(GREY, 1)],
    ):
        with pytest.raises(UndecodableImage, match="pages of one size and kind"):
            decode(write(pages))


def test_of_pages_that_are_no_channels_the_first_is_read() -> None:
    second = page(255 - GREY, 1)
    stack = b"ImageJ=1.54f\nimages=2\nslices=2\n\0"
    for first in (
        page(GREY, 1, tags={270: stack}),
        page(GREY, 1, tags={270: ome([""])}),
        page(GREY, 1, tags={254: [2]}),
    ):
        assert levels_apart(as_rgb(GREY), decode(write([first, second]))) == 0
    thumbnail = page(GREY[:10, :10], 1)
    assert levels_apart(as_rgb(GREY), decode(write([page(GREY, 1), thumbnail]))) == 0
    assert levels_apart(CELL, decode(write([page(CELL, 2), page(255 - CELL, 2)]))) == 0


# --- refused by name --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ({262: None}, "does not say its photometric"),
        ({262: [4]}, "transparency mask"),
        ({262: [8]}, "CIELab"),
        ({262: [9]}, "ICCLab"),
        ({262: [10]}, "ITULab"),
        ({262: [32803]}, "colour filter array"),
        ({262: [34892]}, "LinearRaw"),
        ({262: [77]}, "photometric interpretation, 77"),
        ({258: [8, 8, 16]}, "differ in their bits"),
        ({258: [5, 6, 5]}, "differ in their bits"),
        ({258: [24] * 3}, "unsigned integers of 24 bits"),
        ({258: [64] * 3}, "unsigned integers of 64 bits"),
        ({339: [2] * 3, 258: [12] * 3}, "signed integers of 12 bits"),
        ({339: [3] * 3, 258: [24] * 3}, "floats of 24 bits"),
        ({339: [1, 1, 3]}, "differ"),
        ({339: [5] * 3}, "complex"),
        ({339: [6] * 3}, "complex"),
        ({259: [2]}, "fax"),
        ({259: [4]}, "fax"),
        ({259: [6]}, "old-style JPEG"),
        ({259: [34712]}, "JPEG 2000"),
        ({259: [50001]}, "WebP"),
        ({259: [34887]}, "LERC"),
        ({259: [7], 258: [12] * 3}, "JPEG of 12 bits"),
        ({277: [2]}, "samples per pixel, 2"),
        ({277: [99]}, "samples per pixel, 99"),
        ({284: [3]}, "planar"),
        ({317: [2]}, "predictor"),
        ({317: [4]}, "predictor"),
        ({262: [5], 277: [4], 258: [8] * 4, 332: [2]}, "ink set"),
        ({262: [3], 277: [1], 258: [8], 339: [1]}, "palette is missing"),
        ({262: [6]}, "subsampled"),
        ({262: [6], 258: [16] * 3}, "YCbCr of 16 bits"),
        ({262: [6], 530: [1, 1], 532: [15, 235, 128, 240, 128, 240]}, "other coefficients"),
        ({256: None}, "lacks a tag"),
        ({273: None}, "lacks some of its strips"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(tags: Tags, name: str) -> None:
    with pytest.raises(UndecodableImage, match=name):
        decode(one(np.concatenate([CELL, CELL], axis=-1)[..., :4], 2, tags={277: [3], 258: [8] * 3, **tags}))


def test_the_documentation_names_what_is_refused() -> None:
    text = (ROOT / "docs/images.md").read_text()
    for name in (*OTHER_COMPRESSION.values(), *OTHER_PHOTOMETRIC.values()):
        assert name.removesuffix("24") in text


@pytest.mark.parametrize("kind", ["i2", "f4"])
def test_samples_below_zero_are_refused_without_a_declared_black(kind: str) -> None:
    with pytest.raises(UndecodableImage, match="below zero"):
        decode(one((CELL.astype(np.int16) - 100).astype(kind), 2))


@pytest.mark.parametrize("worst", [np.nan, np.inf, 1e9])
def test_floats_without_a_usual_white_are_refused(worst: float) -> None:
    samples = (CELL / 255).astype(np.float32)
    samples[3, 4, 1] = worst
    with pytest.raises(UndecodableImage, match="brighter than every usual white"):
        decode(one(samples, 2))


def test_samples_outside_the_declared_range_are_refused() -> None:
    with pytest.raises(UndecodableImage, match="outside its SMinSampleValue"):
        decode(one(CELL.astype(np.uint16) * 257, 2, tags={341: [4095.0]}))


# --- hostile files ----------------------------------------------------------------------------------


def test_strips_that_share_bytes_count_as_often_as_they_are_decoded() -> None:
    tags, parts = page(CELL, 2, compression=8, rows=1)
    strip = parts[0] + bytes(100_000)
    data = write([({**tags, 273: [8] * HEIGHT, 279: [len(strip)] * HEIGHT}, [strip])])
    with pytest.raises(TooLarge, match="strips"):
        decode(data, ImageLimits(max_bytes=1_000_000))


def test_an_image_whose_strip_needs_more_memory_than_there_is_is_refused_by_the_header() -> None:
    samples = np.zeros((64, 64, 8), np.float64)
    data = one(samples, 2, compression=8, rows=64)
    decode(data)
    with pytest.raises(TooLarge, match="memory"):
        decode(data, ImageLimits(max_pixels=64 * 64))


def test_pages_that_lead_back_to_themselves_end() -> None:
    data = bytearray(one(GREY, 1))
    data[-4:] = data[4:8]
    assert levels_apart(as_rgb(GREY), decode(bytes(data))) == 0


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_file_cut_anywhere_is_an_error(compression: int) -> None:
    data = channels(COMPOSITE, compression=compression)
    for end in range(9, len(data) - 4, 7):
        with pytest.raises(UndecodableImage):
            decode(data[:end])


# --- the files of the reports -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["planar-16.tif", "imagej-composite.tif", "alpha0-bitfields.bmp", "12in16-rgb.png"]
)
def test_the_reported_files_have_the_pixels_of_the_reference(name: str) -> None:
    folder = real(".").resolve().parent / "cases/files"
    if not folder.exists():
        pytest.skip("the reported files are absent")
    reference = decode((folder / "reference.png").read_bytes())
    assert levels_apart(reference, decode((folder / name).read_bytes())) <= 1
