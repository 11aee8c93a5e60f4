"""A model card's figures: learning curves, confusion matrix, reliability, risk by coverage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.history import History, best_epoch, column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 15  # the same as in the report's calibration error
FEW = 20  # images; the accuracy of a smaller bin says little
DOTS_PER_INCH = 160
INK, SOFT, FAINT = "#22272e", "#6e7781", "#d7dce1"
BLUE, GREY = "#0b6fa4", "#87909a"  # differ in lightness as well as in hue
LOWEST, HIGHEST = "#f7fafc", "#084b74"  # colour scale of the confusion matrix
STYLE: Any = {  # matplotlib's own type lists every key
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
}

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def draw_curves(history: History, path: Path, *, monitor: str, held_out: str) -> None:
    """Plot loss and accuracy by epoch.

    monitor: the log's column that selected the best epoch; held_out: label of the validation curve.
    """
    chosen = best_epoch(history, monitor)
    with _figure(path, (8.8, 3.2)) as figure:
        for ax, kind in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            _draw_pair(ax, history, kind, held_out)
            if chosen is not None and f"val_{kind}" in history[chosen]:
                _mark_epoch(ax, chosen, history[chosen][f"val_{kind}"], above=kind == "loss")
        figure.subplots_adjust(left=0.055, right=0.85, top=0.87, bottom=0.15, wspace=0.64)


def _draw_pair(ax: Axes, history: History, kind: str, held_out: str) -> None:
    from matplotlib.ticker import MaxNLocator

    curves = (("train", "training", GREY), ("val", held_out, BLUE))
    lines = [(column(history, f"{prefix}_{kind}"), name, colour) for prefix, name, colour in curves]
    drawn = [line for line in lines if line[0]]
    ax.set_title(kind.capitalize())
    ax.set_xlabel("epoch")
    ax.set_xlim(1, max([2, *(points[-1][0] for points, _, _ in drawn)]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    for points, _, colour in drawn:
        ax.plot(
            *zip(*points, strict=True), color=colour, linewidth=1.8, marker="o", markersize=2.2, clip_on=False
        )
    if kind == "loss":
        ax.set_ylim(bottom=0)
    _label_ends(ax, [(points[-1][1], name, colour) for points, name, colour in drawn])


def _label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name at its end, with at least one line of text between two names."""
    low, high = ax.get_ylim()
    last = -math.inf
    for value, name, colour in sorted(ends):
        last = max(value, last + 0.085 * (high - low))
        place = (1.03, (last - low) / (high - low))
        ax.annotate(name, place, xycoords="axes fraction", color=colour, va="center", fontweight="bold")


def _mark_epoch(ax: Axes, epoch: int, value: float, *, above: bool) -> None:
    """Mark the best epoch; `above`: text at the top (there is room above a loss curve) or at the bottom."""
    first, last = ax.get_xlim()
    side = "left" if epoch - first < 0.6 * (last - first) else "right"
    ax.axvline(epoch, color=SOFT, linewidth=0.9, dashes=(2, 3), zorder=1)
    ax.plot(epoch, value, "o", color=BLUE, markersize=7, markeredgecolor="white", clip_on=False, zorder=4)
    ax.annotate(
        f"epoch {epoch}, kept: {value:.3f}",
        (epoch, 1.0 if above else 0.04),
        (6 if side == "left" else -6, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha=side,
        va="top" if above else "bottom",
        fontsize=8.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )


def draw_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], path: Path) -> None:
    """Draw row percentages with the counts below them; rows are true classes."""
    from matplotlib.colors import LinearSegmentedColormap

    counts = np.asarray(matrix)
    support = counts.sum(axis=1)
    shares = counts / np.maximum(support, 1)[:, None]
    with _figure(path, (5.6, 4.6)) as figure:
        ax = figure.subplots()
        colours = LinearSegmentedColormap.from_list("leuko", [LOWEST, "#7fb3d3", HIGHEST])
        ax.pcolormesh(shares, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=2.5)
        for (y, x), share in np.ndenumerate(shares):
            _fill_cell(ax, x + 0.5, y + 0.5, float(share), int(counts[y, x]))
        rows = [f"{label}\n{n:,} images" for label, n in zip(labels, support.tolist(), strict=True)]
        places = np.arange(len(labels)) + 0.5
        ax.set_xticks(places, labels, color=INK)
        ax.set_yticks(places, rows, color=INK)
        ax.set(ylim=(len(labels), 0), aspect="equal", xlabel="predicted class", ylabel="true class")
        ax.xaxis.set(ticks_position="top", label_position="top")
        ax.xaxis.labelpad = 9
        ax.spines[:].set_visible(False)
        figure.subplots_adjust(left=0.22, right=0.98, top=0.86, bottom=0.02)


def _fill_cell(ax: Axes, x: float, y: float, share: float, count: int) -> None:
    if not count:
        ax.text(x, y, "0", ha="center", va="center", color=GREY)
        return
    colour = "white" if share > 0.5 else INK
    ax.text(x, y - 0.06, f"{share:.1%}", ha="center", va="center", fontsize=12, color=colour)
    ax.text(x, y + 0.2, f"{count:,}", ha="center", va="center", fontsize=8, color=colour, alpha=0.8)


@dataclass(frozen=True)
class Reliability:
    """Counts and means by confidence bin, [bins] each; means are NaN in an empty bin.

    Bins have equal width and include their upper edge.
    """

    counts: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats


def reliability(confidence: Floats, right: Flags, bins: int = BINS) -> Reliability:
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = np.where(counts > 0, counts, np.nan)
    sums = np.bincount(place, confidence, bins), np.bincount(place, right.astype(np.float64), bins)
    return Reliability(counts, sums[0] / filled, sums[1] / filled)


def draw_reliability(bins: Reliability, ece: float, path: Path) -> None:
    with _figure(path, (5.2, 5.4)) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        _draw_calibration(upper, bins, ece)
        _draw_counts(lower, bins.counts)
        figure.subplots_adjust(left=0.13, right=0.96, top=0.97, bottom=0.1, hspace=0.12)


def _draw_calibration(ax: Axes, bins: Reliability, ece: float) -> None:
    many = bins.counts >= FEW
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, dashes=(4, 3))
    ax.vlines(bins.confidence, bins.confidence, bins.accuracy, color=BLUE, linewidth=1.4, alpha=0.45)
    for shown, fill in ((many, BLUE), (~many, "white")):
        ax.plot(
            bins.confidence[shown], bins.accuracy[shown], "o", markersize=6.5, color=fill,
            markeredgecolor=BLUE, markeredgewidth=1.3, clip_on=False, zorder=3,
        )  # fmt: skip
    ax.text(0.02, 0.97, f"ECE {ece:.4f}", fontsize=13, fontweight="bold", va="top")
    ax.text(0.02, 0.895, "mean distance from the diagonal,\nweighted by images", color=SOFT, va="top")
    ax.text(0.98, 0.04, f"hollow: fewer than {FEW} images", color=SOFT, ha="right")
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="share right")
    ax.grid()


def _draw_counts(ax: Axes, counts: NDArray[np.int64]) -> None:
    width = 1 / len(counts)
    middles = (np.arange(len(counts)) + 0.5) * width
    ax.bar(middles, counts, width * 0.86, color=BLUE, alpha=0.75)
    for x, count in zip(middles, counts.tolist(), strict=True):
        if count:
            ax.annotate(f"{count:,}", (x, count), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    ax.set(xlabel="confidence, in bins of one fifteenth", ylabel="images", yticks=[])
    ax.set_ylim(0, 1.25 * max(counts.max(), 1))
    ax.spines["left"].set_visible(False)


def draw_risk(coverage: Floats, risk: Floats, area: float, path: Path) -> None:
    """Plot the error rate of the most confident images (risk) by their share of all images (coverage)."""
    with _figure(path, (5.2, 4.0)) as figure:
        ax = figure.subplots()
        ax.plot(coverage, risk, color=BLUE, linewidth=1.8, clip_on=False)
        ax.set(xlim=(0, 1), xlabel="coverage: share of images kept, the most confident first")
        ax.set(ylim=(0, 1.15 * max(float(risk.max()), 0.01)), ylabel="risk: share of them wrong")
        ax.text(0.03, 0.9, f"area {area:.4f}", fontsize=13, fontweight="bold", transform=ax.transAxes)
        ax.grid()
        figure.subplots_adjust(left=0.15, right=0.96, top=0.96, bottom=0.15)


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Yield a figure of `size` inches in the common style; write it to `path` as PNG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor="white")
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        # without matplotlib's version in the metadata, equal figures are equal files
        figure.savefig(path, format="png", metadata={"Software": None})
