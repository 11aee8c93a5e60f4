"""What a TIFF's tags say of its samples, checked: what is not supported is refused by its name."""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import TooLarge, UndecodableImage
from app.imaging import tiff_tags as tags
from app.imaging.levels import Kind
from app.imaging.limits import ImageLimits, check_size
from app.imaging.tiff_tags import Page

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
COLOUR_SAMPLES = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
GREY = frozenset({WHITE_IS_ZERO, BLACK_IS_ZERO})
OTHER_PHOTOMETRIC = {
    4: "transparency mask",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "LinearRaw",
}
RAW, JPEG = 1, 7
PACKED = frozenset({5, 8, 32773, 32946, 34925, 50000})  # LZW, deflate, PackBits, deflate, LZMA, Zstandard
PREDICTED = PACKED - {32773}
OTHER_COMPRESSION = {
    2: "CCITT fax",  # libtiff fills a strip that ends early
    3: "CCITT fax",
    4: "CCITT fax",
    6: "old-style JPEG",
    9: "JBIG",
    10: "JBIG",
    32766: "NeXT",
    32809: "ThunderScan",
    32909: "PixarLog",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34676: "SGILog",
    34677: "SGILog24",
    34712: "JPEG 2000",
    34887: "LERC",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
KINDS: dict[int, Kind] = {1: "u", 2: "i", 3: "f", 4: "u"}  # 4: undefined
DEPTHS: dict[Kind, frozenset[int]] = {
    "u": frozenset({*range(1, 17), 32}),
    "i": frozenset({8, 16, 32}),
    "f": frozenset({16, 32, 64}),
}
MAX_SAMPLES = 16
MAX_PARTS = 200_000  # strips or tiles
COVER = 2  # tiles may cover this many times the most pixels, since those at the edges are padded

ASSOCIATED, UNASSOCIATED = 1, 2  # alpha: the colours are multiplied by it, or not


@dataclass(frozen=True)
class Layout:
    """Where the samples are and what they mean. A part is a strip or tile, of `part_width` by `part_height`.

    stride: samples of a pixel in one part, 1 if planes are apart; alpha: which sample it is; offsets and
    sizes: of the parts in the file, in bytes.
    """

    width: int
    height: int
    kind: Kind
    bits: int
    samples: int
    planar: bool
    photometric: int
    compression: int
    predictor: int
    order: str
    reversed_bits: bool
    alpha: int | None
    associated: bool
    tiled: bool
    part_width: int
    part_height: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def colours(self) -> int:
        return COLOUR_SAMPLES[self.photometric]

    @property
    def stride(self) -> int:
        return 1 if self.planar else self.samples

    @property
    def planes(self) -> tuple[int, ...]:
        """The planes that are read: those of the colours and of the alpha."""
        if not self.planar:
            return (0,)
        return (*range(self.colours), *(() if self.alpha is None else (self.alpha,)))

    @property
    def across(self) -> int:
        return -(-self.width // self.part_width)

    @property
    def down(self) -> int:
        return -(-self.height // self.part_height)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of a part."""
        return -(-self.part_width * self.stride * self.bits // 8)


def read_layout(page: Page, limits: ImageLimits) -> Layout:
    """Return the layout of a page. Raises UndecodableImage, TooLarge, struct.error."""
    width, height = page.integer(tags.WIDTH), page.integer(tags.HEIGHT)
    check_size(width, height, limits)
    photometric = _photometric(page)
    samples = _samples(page, photometric)
    kind, bits = _depth(page, samples)
    compression = _compression(page, bits)
    planar = page.integer(tags.PLANAR, 1) == 2 and samples > 1
    alpha, associated = _alpha(page, photometric, samples)
    tiled, (part_width, part_height) = _part(page, width, height)
    if tiled:
        _check_tiles(width, height, part_width, part_height, limits)
    count = -(-width // part_width) * -(-height // part_height) * (samples if planar else 1)
    offsets, sizes = _parts(page, count, tiled=tiled)
    layout = Layout(
        width=width,
        height=height,
        kind=kind,
        bits=bits,
        samples=samples,
        planar=planar,
        photometric=photometric,
        compression=compression,
        predictor=_predictor(page, compression, kind, bits),
        order=page.order,
        reversed_bits=page.integer(tags.FILL_ORDER, 1) == 2,
        alpha=alpha,
        associated=associated,
        tiled=tiled,
        part_width=part_width,
        part_height=part_height,
        offsets=offsets,
        sizes=sizes,
    )
    _check(page, layout)
    return layout


def refuse(what: str) -> UndecodableImage:
    return UndecodableImage(f"the TIFF's {what} is not supported")


def _photometric(page: Page) -> int:
    if tags.PHOTOMETRIC not in page:
        raise UndecodableImage("the TIFF does not say its photometric interpretation")
    number = page.integer(tags.PHOTOMETRIC)
    if number not in COLOUR_SAMPLES:
        raise refuse(f"photometric interpretation, {OTHER_PHOTOMETRIC.get(number, number)},")
    return number


def _samples(page: Page, photometric: int) -> int:
    samples = page.integer(tags.SAMPLES, 1)
    if not COLOUR_SAMPLES[photometric] <= samples <= MAX_SAMPLES:
        raise refuse(f"number of samples per pixel, {samples},")
    return samples


def _depth(page: Page, samples: int) -> tuple[Kind, int]:
    """Return the kind of the samples and their bits."""
    depths = set(page.integers(tags.BITS, (1,), most=samples))
    formats = set(page.integers(tags.FORMAT, (1,), most=samples))
    if len(depths) > 1 or len(formats) > 1:
        raise UndecodableImage(
            "the TIFF's samples differ in their bits or their format, which is not supported"
        )
    bits, number = depths.pop(), formats.pop()
    if number not in KINDS:
        raise refuse(f"sample format, {number} (complex numbers or unknown),")
    kind = KINDS[number]
    if bits not in DEPTHS[kind]:
        names = {"u": "unsigned integers", "i": "signed integers", "f": "floats"}
        raise refuse(f"sample format, {names[kind]} of {bits} bits,")
    return kind, bits


def _compression(page: Page, bits: int) -> int:
    number = page.integer(tags.COMPRESSION, RAW)
    if number not in PACKED | {RAW, JPEG}:
        raise refuse(f"compression, {OTHER_COMPRESSION.get(number, number)},")
    if number == JPEG and bits != 8:
        raise refuse(f"compression, JPEG of {bits} bits,")
    return number


def _alpha(page: Page, photometric: int, samples: int) -> tuple[int | None, bool]:
    """Return the sample that is alpha, and whether the colours are multiplied by it.

    Only what is declared as alpha is alpha. Further samples of a colour image are left out; those of a grey
    one are other channels, and the first alone would be a wrong image.
    """
    first = COLOUR_SAMPLES[photometric]
    extras = page.integers(tags.EXTRAS, most=MAX_SAMPLES)[: samples - first]
    alphas = [place for place, meaning in enumerate(extras) if meaning in (ASSOCIATED, UNASSOCIATED)]
    if photometric in GREY and samples > 1 + len(alphas[:1]):
        raise UndecodableImage(
            f"the TIFF has {samples} channels and does not say their colours; send it as RGB"
        )
    return (first + alphas[0], extras[alphas[0]] == ASSOCIATED) if alphas else (None, False)


def _part(page: Page, width: int, height: int) -> tuple[bool, tuple[int, int]]:
    """Return whether the image is tiled, and the width and height of its tiles or strips."""
    tiled = any(tag in page for tag in (tags.TILE_WIDTH, tags.TILE_OFFSETS, tags.TILE_BYTES))
    if tiled and (tags.STRIP_OFFSETS in page or tags.STRIP_BYTES in page):
        raise UndecodableImage("the TIFF has both strips and tiles")
    if tiled:
        return True, (page.integer(tags.TILE_WIDTH), page.integer(tags.TILE_HEIGHT))
    return False, (width, min(page.integer(tags.STRIP_ROWS, height), height))


def _check_tiles(width: int, height: int, across: int, down: int, limits: ImageLimits) -> None:
    """Check tiles of `across` by `down` pixels: libtiff decodes whole tiles, and they may be far larger."""
    covered = -(-width // across) * across * -(-height // down) * down
    if across * down > limits.max_pixels or covered > COVER * limits.max_pixels:
        raise TooLarge(f"the image's tiles have more than {limits.max_pixels} pixels")


def _parts(page: Page, count: int, *, tiled: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    where, how_many = (
        (tags.TILE_OFFSETS, tags.TILE_BYTES) if tiled else (tags.STRIP_OFFSETS, tags.STRIP_BYTES)
    )
    if count > MAX_PARTS:
        raise TooLarge(f"the TIFF has more than {MAX_PARTS} strips or tiles")
    offsets = page.integers(where, most=count)
    sizes = page.integers(how_many, most=count)
    if not sizes and count == 1 and offsets:
        sizes = (len(page.data) - offsets[0],)  # TIFF 6.0 requires the sizes, some old writers left them out
    if min(len(offsets), len(sizes)) < count or 0 in offsets:
        raise UndecodableImage("the TIFF lacks some of its strips or tiles")
    return offsets, sizes


def _predictor(page: Page, compression: int, kind: Kind, bits: int) -> int:
    predictor = page.integer(tags.PREDICTOR, 1)
    if predictor == 1:
        return 1
    depths = {2: (8, 16, 32), 3: (16, 32, 64)}.get(predictor, ())
    if compression not in PREDICTED or bits not in depths or (predictor == 3 and kind != "f"):
        raise refuse(f"predictor, {predictor} with compression {compression} and {bits} bits,")
    return predictor


def _check(page: Page, layout: Layout) -> None:
    """Refuse combinations that no reader defines, or that we do not read."""
    if page.integer(tags.PLANAR, 1) not in (1, 2):
        raise refuse("planar configuration")
    if layout.tiled and layout.part_width * layout.stride * layout.bits % 8:
        raise refuse("width of tiles")
    if layout.photometric == PALETTE and (layout.kind != "u" or layout.bits > 16):
        raise refuse("palette, with samples that are no unsigned integers,")
    if layout.photometric == CMYK and page.integer(tags.INK_SET, 1) != 1:
        raise refuse("ink set, other than CMYK,")
    if layout.associated and layout.photometric not in (BLACK_IS_ZERO, RGB):
        raise refuse("associated alpha, of other colours than RGB and BlackIsZero,")
    if layout.compression == JPEG:
        _check_jpeg(layout)
    if layout.photometric == YCBCR:
        _check_ycbcr(page, layout)


def _check_jpeg(layout: Layout) -> None:
    if layout.photometric == PALETTE or layout.kind != "u":
        raise refuse("compression, JPEG of a palette or of signed samples,")
    if (
        not layout.planar
        and layout.samples != layout.colours
        and (layout.photometric, layout.samples) != (RGB, 4)
    ):
        raise refuse(f"compression, JPEG of {layout.samples} samples,")


def _check_ycbcr(page: Page, layout: Layout) -> None:
    coefficients = page.numbers(tags.YCBCR_COEFFICIENTS, (0.299, 0.587, 0.114))
    reference = page.numbers(tags.REFERENCE_BLACK_WHITE, (0, 255, 128, 255, 128, 255))
    subsampling = page.integers(tags.YCBCR_SUBSAMPLING, (2, 2))
    if (layout.bits, layout.kind) != (8, "u"):
        raise refuse(f"photometric interpretation, YCbCr of {layout.bits} bits,")
    if not _near(coefficients, (0.299, 0.587, 0.114)) or not _near(reference, (0, 255, 128, 255, 128, 255)):
        raise refuse("photometric interpretation, YCbCr with other coefficients than those of JPEG,")
    if subsampling != (1, 1) and (layout.planar or layout.compression != JPEG):
        raise refuse("photometric interpretation, YCbCr that is subsampled outside JPEG,")


def _near(values: tuple[float, ...], expected: tuple[float, ...]) -> bool:
    return len(values) == len(expected) and all(
        abs(a - b) < 1e-3 for a, b in zip(values, expected, strict=True)
    )
