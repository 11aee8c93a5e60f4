"""Find all leukocytes of a field: `find_leukocytes`.

Nuclei are what absorbs much green and red but little blue (see `nucleus`), but so do platelets, parasites,
stain and some red cells. The picture's own red cells tell them apart: they give the scale, whatever the
magnification, and what a cell's colour is when it has no nucleus. Lobes of one nucleus lie within a cell's
width of each other.

The work is done on a copy of at most `MOST` pixels. Lengths there are in its pixels, densities in hundredths
of an optical density (natural logarithm), which fit a byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.imaging.nucleus import BORDER, Nucleus
from app.imaging.regions import Mask, Regions, dilate, erode, fill, find_regions, slimness_of
from app.imaging.resize import resize
from app.imaging.thumbnail import LOGARITHMS, Thumbnail
from app.imaging.thumbnail import UNIT as COLOUR_UNIT

LEAST, MOST = 80_000, 1_000_000  # pixels of the copy; between them, a quarter of the image's
UNIT = 100  # of an optical density of 1
DARKEST = 250  # darker pixels count as this
FAINTEST = 25  # nuclear colour of the palest nucleus that is looked at
REDDISH = 85  # nuclear colour that red cells may have
DEEPEST = 128  # half of the deepest nuclear colour: more is within a nucleus
SPECK = 0.06  # smaller pieces are dropped: area ÷ square of a red cell's diameter
ROUND = 1.6  # length ÷ breadth of the pale middle of a red cell, at most
PALE = 0.6  # area of that ÷ square of the diameter as it is without it, at most
PALLOR = 0.8  # density of a red cell's pale parts ÷ threshold between background and red cells
FAINT = 6  # density of the palest red cells
BLACK = 150  # density in red light of the fill around a turned picture
LEFT, DISC = 0.25, 4.6  # share of the area that is left, and diameter ÷ depth where it is
RED_CELL_PIXELS = 30_000  # of the copy in which red cells are measured, unless they are small
FINE = 12  # pixels of a red cell's diameter there, at least
MOST_TOGETHER = 1000  # pieces near each other; more are noise, and are not joined
APART = 0.35  # of a red cell's diameter: lobes of one nucleus are nearer
WHOLE, COMPACT = 0.45, 1.25  # area ÷ square of a red cell's diameter, slimness: a piece that is a nucleus
SPAN = 2.4  # of one nucleus's lobes, from end to end, in red cells
LARGEST = 2.4  # area of one nucleus ÷ square of a red cell's diameter
SMALLEST = 0.4  # root of a nucleus's area ÷ a red cell's diameter
SMALLEST_CUT = 0.3  # the same of one that the picture's edge cuts
SMALL, COVERED = 0.55, 0.8  # a nucleus smaller than this has cytoplasm around it: share of the rim
RIM = 0.1  # of a red cell: breadth of that rim
SLIM, SLIM_SMALL = 4.0, 2.6  # length ÷ breadth of a nucleus, at most; of a small one
MOST_OF_RED_CELL = 2.0  # root of a nucleus's area ÷ a red cell's diameter, at most
CLEAR = 36  # how much more of the nuclear colour a nucleus has than a red cell
OTHERS, OTHERS_AREA = 0.4, 0.1  # colour and area of something beside a nucleus ÷ the nucleus's
ELSEWHERE = 1.2  # distance of another nucleus from the first ÷ its extent, at least
AS_LARGE = 0.55  # extent of another nucleus ÷ that of the first, at least
NECK = 0.55  # breadth between two nuclei that touch ÷ breadth of the smaller one, at most

Density = NDArray[np.uint8]  # [h, w], in hundredths
Real = NDArray[np.float64]


@dataclass(frozen=True)
class Field:
    """Densities of an image at reduced size.

    nuclear: red + green − 2 · blue. scale: pixels of the image in one.
    """

    nuclear: Density
    red: Density
    green: Density
    scale: float

    @classmethod
    def of(cls, image: Image.Image, white: NDArray[np.float32]) -> Self:
        """white: the background's red, green and blue [3]."""
        pixels = image.width * image.height
        scale = max(1.0, (pixels / min(max(pixels / 4, LEAST), MOST)) ** 0.5)
        size = max(1, round(image.width / scale)), max(1, round(image.height / scale))
        small = image if size == image.size else resize(image, size, Image.Resampling.BOX)
        clear = np.log(np.maximum(white, 1) / 255)
        table = np.clip((LOGARITHMS + clear[:, None]) * UNIT, 0, DARKEST).round().astype(int)
        densities = small.point(table.ravel().tolist())
        nuclear = densities.convert("L", (1, 1, -2, 0))
        red, green, _ = densities.split()
        return cls(np.asarray(nuclear), np.asarray(red), np.asarray(green), max(image.size) / max(size))


@dataclass(frozen=True)
class RedCells:
    """What the red cells of a field look like. diameter: 0 if none could be measured. Levels are medians."""

    diameter: float
    nuclear: float = 0.0
    green: float = 0.0


@dataclass(frozen=True)
class Pieces:
    """Pieces of nuclei, before lobes are joined. inner: nuclear colour of the inner half."""

    regions: Regions
    inner: Real


@dataclass(frozen=True)
class Candidate:
    """One or more pieces that may be a nucleus. Levels are means; extent: root of the area."""

    x: float
    y: float
    extent: float
    slimness: float
    edge: float  # length along the picture's edges
    inner: float
    covered: float = 1.0  # share of what is just around it that is stained; 1 if it was not measured


def find_leukocytes(image: Image.Image, thumbnail: Thumbnail) -> list[Nucleus]:
    """Return the nuclei of an RGB image's leukocytes, in reading order; lengths are in the image's pixels."""
    field = Field.of(image, thumbnail.white)
    red_cells, candidates = find_candidates(field)
    kept = [candidate for candidate in candidates if is_leukocyte(candidate, red_cells)]
    return in_reading_order([locate(candidate, field.scale) for candidate in kept])


def count_leukocytes(image: Image.Image, thumbnail: Thumbnail, nucleus: Nucleus | None) -> int:
    """Return the number of leukocytes, at least 1; quickly if nothing but the one nucleus has its colour.

    Others count if they lie well away from it and are not much smaller: neither its own lobes nor pieces of
    neighbours.
    """
    if nucleus is None or not _has_others(thumbnail, nucleus):
        return 1
    others = [
        other
        for other in find_leukocytes(image, thumbnail)
        if np.hypot(other.x - nucleus.x, other.y - nucleus.y) > ELSEWHERE * nucleus.extent
        and other.extent >= AS_LARGE * nucleus.extent
    ]
    return 1 + len(others)


def _has_others(thumbnail: Thumbnail, nucleus: Nucleus) -> bool:
    """Return whether a thumbnail has nuclear colour beside a nucleus, of more than a platelet."""
    least = OTHERS * nucleus.contrast * COLOUR_UNIT
    rows, columns = np.nonzero(thumbnail.nuclear_colour > least)
    x, y, extent = (length / thumbnail.scale for length in (nucleus.x, nucleus.y, nucleus.extent))
    away = np.hypot(columns + 0.5 - x, rows + 0.5 - y) > extent
    return bool(np.count_nonzero(away) > OTHERS_AREA * extent**2)


def locate(candidate: Candidate, scale: float) -> Nucleus:
    """Return the candidate in the image's pixels."""
    return Nucleus(
        (candidate.x + 0.5) * scale,
        (candidate.y + 0.5) * scale,
        candidate.extent * scale,
        candidate.inner / UNIT,
        candidate.edge / candidate.extent,
    )


def is_leukocyte(candidate: Candidate, red_cells: RedCells) -> bool:
    """Tell a nucleus of a leukocyte from platelets, parasites, stain and red cells."""
    size = candidate.extent / red_cells.diameter
    cut = candidate.edge > 0.3 * candidate.extent
    return (
        size >= (SMALLEST_CUT if cut else SMALLEST)
        and (size >= SMALL or candidate.covered >= COVERED)
        and candidate.slimness <= (SLIM_SMALL if size < SMALL and not cut else SLIM)
        and candidate.inner >= red_cells.nuclear + CLEAR
    )


def find_candidates(field: Field) -> tuple[RedCells, list[Candidate]]:
    """Return the red cells, with a diameter in any case, and what may be a nucleus, largest pieces joined."""
    level = nuclear_level(field.nuclear)
    red_cells = measure_red_cells(field, level)
    pieces = find_pieces(field, max(level, min(red_cells.nuclear + 0.7 * CLEAR, 1.3 * level)))
    if not pieces.regions.count:
        return replace(red_cells, diameter=red_cells.diameter or 1.0), []
    roots = np.sqrt(pieces.regions.area)
    # The nuclei too are a scale, where there are hardly any red cells.
    least = float(roots.max()) / MOST_OF_RED_CELL
    diameter = max(red_cells.diameter or 1.1 * weighted_median(roots, roots**2), least)
    red_cells = replace(red_cells, diameter=diameter)
    pieces = part_touching(drop_specks(pieces, diameter), diameter, field)
    if not pieces.regions.count:
        return red_cells, []
    groups = join_lobes(pieces, diameter)
    candidates = [describe(pieces, np.array(group)) for group in groups]
    numbers = pieces.regions.numbers()
    for place, candidate in enumerate(candidates):
        if candidate.extent < SMALL * diameter and is_leukocyte(candidate, red_cells):
            covered = cover_around(pieces.regions, numbers, groups[place], field.green, diameter)
            candidates[place] = replace(candidate, covered=covered)
    return red_cells, candidates


def cover_around(
    regions: Regions, numbers: NDArray[np.int32], members: list[int], green: Density, diameter: float
) -> float:
    """Return the share of the rim around pieces that is stained: cytoplasm, or other cells.

    numbers: the piece of each pixel.
    """
    breadth = max(1, round(RIM * diameter))
    left, top, right, bottom = regions.boxes[:, members]
    height, width = regions.shape
    rows = slice(max(0, int(top.min()) - 2 * breadth), min(height, int(bottom.max()) + 2 * breadth))
    columns = slice(max(0, int(left.min()) - 2 * breadth), min(width, int(right.max()) + 2 * breadth))
    window = numbers[rows, columns]
    inside = np.zeros(window.shape, np.bool_)
    for member in members:
        inside |= window == member
    inside = dilate(inside)  # its own soft edge
    outside = inside
    for step in range(breadth):
        outside = dilate(outside, diagonal=step % 2 == 1)
    rim = outside & ~inside
    return float((green[rows, columns][rim] >= FAINT).mean()) if rim.any() else 1.0


def nuclear_level(nuclear: Density) -> float:
    """Return the nuclear colour above which pixels may be of a nucleus.

    Otsu's threshold (1979); where it is low and many pixels are above it, these are red cells too, and it is
    taken again among them.
    """
    counts = np.array(Image.fromarray(nuclear).histogram(), np.float64)
    first = otsu(counts, 0)
    level = first
    if first < REDDISH and counts[first:].sum() > 0.1 * nuclear.size:
        level = min(otsu(counts, first), DEEPEST)
    return max(float(FAINTEST), float(level))


def otsu(counts: NDArray[np.float64], least: int) -> int:
    """Return the level from `least` on that parts the counts [256] above it into two classes best."""
    levels = np.arange(least, len(counts))
    weights = counts[least:]
    below = np.cumsum(weights)
    mass = np.cumsum(weights * levels)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mass[-1] * below / below[-1] - mass) ** 2 / (below * above)
    return least + 1 + int(np.argmax(np.nan_to_num(between, nan=0.0, posinf=0.0)))


def measure_red_cells(field: Field, level: float) -> RedCells:
    """Measure the red cells: what is stained, but not in the nuclear colour."""
    step = max(1, round((field.green.size / RED_CELL_PIXELS) ** 0.5))
    while True:
        red_cells = _measure_every(step, field, level)
        pixels = red_cells.diameter / step
        if step == 1 or not red_cells.green or pixels >= FINE:
            return red_cells
        step = max(1, min(step - 1, int(step * pixels / FINE)))


def _measure_every(step: int, field: Field, level: float) -> RedCells:
    """Measure the red cells in every `step`-th row and column."""
    green, nuclear, red = (plane[::step, ::step] for plane in (field.green, field.nuclear, field.red))
    other = (nuclear <= level) & (red < BLACK)
    counts = np.bincount(green[other], minlength=256).astype(np.float64)
    if not counts[FAINT:].any():
        return RedCells(0.0)
    threshold = otsu(counts, 0)
    stained = other & (green >= max(FAINT, threshold))
    body = other & (green >= max(FAINT, PALLOR * threshold))
    if np.count_nonzero(stained) < 0.02 * stained.size:
        return RedCells(0.0)
    levels = [float(np.median(plane[stained])) for plane in (nuclear, green)]
    gaps = find_regions(~body)
    most = PALE * diameter_by_erosion(body) ** 2  # larger ones are background that red cells enclose
    pale = (gaps.at_edges == 0) & (gaps.slimness < ROUND) & (gaps.area <= most)
    return RedCells(step * diameter_by_erosion(body | gaps.mask(pale)), *levels)


def diameter_by_erosion(mask: Mask) -> float:
    """Return the diameter of discs that may overlap, by how much of them is left as their rim is taken off.

    A disc is eroded to a quarter of its area at half its radius; red cells with a pale middle a little
    sooner.
    """
    whole = float(np.count_nonzero(mask))
    before = 1.0
    for depth in range(1, max(mask.shape)):
        mask = erode(mask, diagonal=depth % 2 == 0)
        left = np.count_nonzero(mask) / whole
        if left < LEFT:
            return DISC * (depth - 1 + (before - LEFT) / (before - left))
        before = left
    return 0.0


def weighted_median(values: Real, weights: Real) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def find_pieces(field: Field, level: float) -> Pieces:
    """Find pieces of nuclei: each has a border of its own, at `BORDER` of its inner colour."""
    rough = find_regions(field.nuclear > level)
    if not rough.count:
        return Pieces(rough, np.zeros(0))
    border = np.maximum(BORDER * inner_level(field.nuclear, rough), level)
    mask = np.zeros(rough.shape, np.bool_)
    mask.ravel()[rough.pixels] = rough.values(field.nuclear) > border[rough.owners]
    regions = find_regions(mask)
    return Pieces(regions, inner_level(field.nuclear, regions))


def inner_level(plane: Density, regions: Regions) -> Real:
    """Return the mean of each region's pixels that are above its mean, or equal to it."""
    values, owners = regions.values(plane).astype(np.float64), regions.owners
    mean = regions.sums(plane) / regions.area
    above = values >= mean[owners]
    inner: Real = np.bincount(owners[above], values[above], regions.count) / np.bincount(
        owners[above], minlength=regions.count
    )
    return inner


def drop_specks(pieces: Pieces, diameter: float) -> Pieces:
    kept = pieces.regions.area >= max(4.0, SPECK * diameter**2)
    return select(pieces, kept)


def select(pieces: Pieces, kept: NDArray[np.bool_]) -> Pieces:
    """Return the pieces that are kept [count]."""
    regions = pieces.regions
    runs = kept[regions.region]
    numbers = np.cumsum(kept) - 1
    chosen = Regions(
        regions.shape,
        regions.row[runs],
        regions.start[runs],
        regions.stop[runs],
        numbers[regions.region[runs]],
        int(np.count_nonzero(kept)),
    )
    return Pieces(chosen, pieces.inner[kept])


def part_touching(pieces: Pieces, diameter: float, field: Field) -> Pieces:
    """Part pieces that are several nuclei in touch."""
    regions = pieces.regions
    large = np.flatnonzero(regions.area > 2 * WHOLE * diameter**2)
    if not len(large):
        return pieces
    numbers = regions.numbers()
    changed = False
    for number in large.tolist():
        left, top, right, bottom = regions.boxes[:, number].tolist()
        window = numbers[top:bottom, left:right]
        parts = part(fill(window == number, WHOLE * diameter**2), WHOLE * diameter**2)
        for between in parts:
            window[between & (window == number)] = -1
            changed = True
    if not changed:
        return pieces
    parted = find_regions(numbers >= 0)
    return drop_specks(Pieces(parted, inner_level(field.nuclear, parted)), diameter)


def part(mask: Mask, least: float) -> list[Mask]:
    """Return the lines that part a mask into nuclei; none if it is one. least: area of a nucleus in pixels.

    The mask is eroded until it falls apart. Where both parts are broad, compared with the neck between them,
    the line is where they meet as they grow back.
    """
    margin = np.pad(mask, 1)
    eroded = margin
    for depth in range(2, 200, 2):
        eroded = erode(erode(eroded), diagonal=True)
        cores = find_regions(eroded)
        if not cores.count or cores.area.sum() < 0.05 * least:
            return []
        if cores.count > 1:
            line = _meeting(margin, cores, depth, least)
            if line is not None:
                return [line[1:-1, 1:-1]]
    return []


def _meeting(mask: Mask, cores: Regions, depth: int, least: float) -> Mask | None:
    """Return where cores meet that grow back in the mask by `depth`; None if they are not several nuclei."""
    roots = np.sqrt(cores.area)
    grown = roots + 2 * depth * 0.886  # root of the area of a disc whose radius grows by `depth`
    broad = (grown**2 >= least) & (roots >= (1 - NECK) / NECK * depth)
    if np.count_nonzero(broad) < 2:
        return None
    owner = np.where(cores.mask(broad), cores.numbers() + 1, 0)
    for step in range(2 * depth + 2):
        spread = owner.copy()
        for ahead, behind in _shifts(diagonal=step % 2 == 0):
            target, source = spread[ahead], owner[behind]
            np.copyto(target, source, where=(target == 0) & mask[ahead])
        owner = spread
    line = np.zeros_like(mask)
    line[1:] |= (owner[1:] != owner[:-1]) & (owner[1:] > 0) & (owner[:-1] > 0)
    line[:, 1:] |= (owner[:, 1:] != owner[:, :-1]) & (owner[:, 1:] > 0) & (owner[:, :-1] > 0)
    return line


def _shifts(*, diagonal: bool) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Return pairs of index expressions: each place, and its neighbour on one side."""
    every, ahead, behind = slice(None), slice(1, None), slice(None, -1)
    straight = [
        ((ahead, every), (behind, every)),
        ((behind, every), (ahead, every)),
        ((every, ahead), (every, behind)),
        ((every, behind), (every, ahead)),
    ]
    corners = [
        ((ahead, ahead), (behind, behind)),
        ((behind, behind), (ahead, ahead)),
        ((ahead, behind), (behind, ahead)),
        ((behind, ahead), (ahead, behind)),
    ]
    return straight + corners if diagonal else straight


def join_lobes(pieces: Pieces, diameter: float) -> list[list[int]]:
    """Return groups of pieces, each of which may be one nucleus."""
    regions = pieces.regions
    grown = regions.numbers() >= 0
    for step in range(max(1, round(APART * diameter / 2))):
        grown = dilate(grown, diagonal=step % 2 == 0)
    near = find_regions(grown)
    first = near.numbers()[regions.row, regions.start]  # of each run
    cluster = np.zeros(regions.count, np.int64)
    cluster[regions.region] = first
    order = np.argsort(cluster, kind="stable")
    ends = np.cumsum(np.bincount(cluster, minlength=near.count))
    clusters = np.split(order, ends[:-1])
    return [group for members in clusters for group in _merge(members, pieces, diameter)]


@dataclass
class _Group:
    """Pieces that are taken for one nucleus. whole: how many of them would be one alone."""

    members: list[int]
    left: int
    top: int
    right: int
    bottom: int
    area: float
    whole: int

    def joined(self, other: _Group) -> _Group:
        return _Group(
            [*self.members, *other.members],
            min(self.left, other.left),
            min(self.top, other.top),
            max(self.right, other.right),
            max(self.bottom, other.bottom),
            self.area + other.area,
            self.whole + other.whole,
        )

    def may_be_nucleus(self, diameter: float) -> bool:
        span = max(self.right - self.left, self.bottom - self.top)
        return span <= SPAN * diameter and self.area <= LARGEST * diameter**2 and self.whole < 2


def _merge(members: NDArray[np.int64], pieces: Pieces, diameter: float) -> list[list[int]]:
    """Join the pieces of a cluster, the nearest first, as long as the result may be one nucleus."""
    if not 1 < len(members) <= MOST_TOGETHER:
        return [[member] for member in members.tolist()]
    regions = pieces.regions
    area, compact = regions.area[members], regions.slimness[members] < COMPACT
    whole = (area > WHOLE * diameter**2) & compact
    boxes = regions.boxes[:, members].T.tolist()
    groups = [
        _Group([member], left, top, right, bottom, size, int(alone))
        for member, (left, top, right, bottom), size, alone in zip(
            members.tolist(), boxes, area.tolist(), whole.tolist(), strict=True
        )
    ]
    for one, other in _nearest_pairs(regions.x[members], regions.y[members], area, SPAN * diameter):
        if groups[one] is not groups[other]:
            joined = groups[one].joined(groups[other])
            if joined.may_be_nucleus(diameter):
                found = {id(groups[one]), id(groups[other])}
                groups = [joined if id(group) in found else group for group in groups]
    return [group.members for group in {id(group): group for group in groups}.values()]


def _nearest_pairs(x: Real, y: Real, area: Real, most: float) -> list[tuple[int, int]]:
    """Return the pairs of discs with these centres and areas whose centres are at most `most` apart.

    Those with the smallest gap are first.
    """
    one, other = np.triu_indices(len(x), 1)
    apart = np.hypot(x[one] - x[other], y[one] - y[other])
    radius = np.sqrt(area / np.pi)
    near = apart <= most
    one, other, gap = one[near], other[near], (apart - radius[one] - radius[other])[near]
    order = np.argsort(gap, kind="stable")
    return [*zip(one[order].tolist(), other[order].tolist(), strict=True)]


def describe(pieces: Pieces, members: NDArray[np.int64]) -> Candidate:
    """Return the measures of some of the pieces together."""
    regions = pieces.regions
    area = regions.area[members]
    total = float(area.sum())
    x, y = float(regions.x[members] @ area) / total, float(regions.y[members] @ area) / total
    xx, yy, xy = (moments[members] for moments in regions.moments)
    across, down = regions.x[members] - x, regions.y[members] - y
    moments = (xx + across**2, yy + down**2, xy + across * down)
    return Candidate(
        x=x,
        y=y,
        extent=total**0.5,
        slimness=float(slimness_of(*(moment @ area / total for moment in moments))),
        edge=float(regions.at_edges[members].sum()),
        inner=float(pieces.inner[members] @ area) / total,
    )


def in_reading_order(nuclei: list[Nucleus]) -> list[Nucleus]:
    """Sort into lines from top to bottom, and each line from left to right.

    A line is as high as the nucleus at its top.
    """
    ordered: list[Nucleus] = []
    line: list[Nucleus] = []
    for nucleus in sorted(nuclei, key=lambda nucleus: nucleus.y):
        if line and nucleus.y > line[0].y + line[0].extent:
            ordered += sorted(line, key=lambda nucleus: nucleus.x)
            line = []
        line.append(nucleus)
    return ordered + sorted(line, key=lambda nucleus: nucleus.x)
