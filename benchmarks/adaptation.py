"""What adapting to a laboratory brings, from a few labelled cells of each class, in laboratories never seen.

Of each laboratory, cells are drawn, the network is adapted to them as `leuko-train adapt` does, and judged on
the rest. With --run, each laboratory of a `leuko-train laboratories` run is judged with the network that was
trained without it; with --bundle, the archives named are of laboratories that the bundle has not seen. Each
result is a line of a file, and the same command continues where it ended.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.archives.images import StoredImage, open_labelled
from app.archives.labelled_archive import ArchiveLimits
from app.engine.bundle import CLASSES, load_bundle
from app.evaluation.intervals import Ints
from app.evaluation.review_thresholds import Thresholds
from app.evaluation.verification import Answers, Verification, cells_of, marks_of
from app.imaging.framing import Preprocessing
from training import adapt, head
from training.adapt import OwnCells, cross_validate, follow, run
from training.adapted import UNCHANGED, Parent, compare, recalls
from training.config import TrainConfig, read_config
from training.data import Row, read_manifest
from training.images import ImageArchive
from training.module import BEST, load_checkpoint
from training.own_cells import read_cells
from training.rows import choose_rows, fold_path, fold_rows, other_cells, seen_others
from training.scored import find_references

SIZES, DRAWS, MOST = (5, 10, 20), 5, 100
TARGET = 0.95
LEAST_LEFT = 5  # cells of each class to judge on
MORE = ("written", "kept", "right when kept", "seconds")  # the table's last columns


@dataclass(frozen=True)
class Laboratory:
    """A laboratory, its labelled images, and the network that has not seen it. parent: loaded when needed."""

    name: str
    images: Sequence[StoredImage]
    groups: Sequence[str]
    preprocessing: Preprocessing
    labels: Sequence[str]
    network: str  # what identifies it
    parent: Callable[[], Parent]


@dataclass(frozen=True)
class Figures:
    """What one adaptation did to the cells that were not drawn.

    before, after: balanced accuracy; after is before where `adapt` writes nothing. fall: the largest that a
    class's recall fell by. kept, right: with the thresholds proposed on the drawn cells.
    """

    before: float
    after: float
    written: bool
    fall: float
    kept: float
    right: float | None


@dataclass(frozen=True)
class Result(Figures):
    """key: of the network and the settings. cells: of each class. draw: which cells."""

    key: str
    laboratory: str
    cells: int
    draw: int
    seconds: float

    @property
    def place(self) -> tuple[str, str, int, int]:
        return self.key, self.laboratory, self.cells, self.draw


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run of `leuko-train laboratories`")
    source.add_argument("--bundle", type=Path, help="bundle that has not seen the archives")
    parser.add_argument("archives", nargs="*", metavar="NAME=ARCHIVE", help="with --bundle")
    parser.add_argument("--manifest", type=Path, default=Path("data/manifest.csv"), help="with --run")
    parser.add_argument("--cells", type=int, nargs="+", default=SIZES, help="cells of each class [5 10 20]")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of these cells [5]")
    parser.add_argument("--most", type=int, default=MOST, help="cells of each class to judge on [100]")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation.jsonl"), help="file of the results")
    args = parser.parse_args(argv)
    with ExitStack() as stack:
        found = of_run(args.run, args.manifest) if args.run else of_bundle(args.bundle, args.archives, stack)
        laboratories = list(found)
        done = {result.place: result for result in read(args.out)}
        wanted = [(n, draw) for n in sorted(args.cells) for draw in range(args.draws)]
        for one in laboratories:
            missing = [
                (n, draw) for n, draw in wanted if (key_of(one, args.most), one.name, n, draw) not in done
            ]
            for result in measure(one, missing, args.most):
                append(args.out, result)
                done[result.place] = result
    places = [(key_of(one, args.most), one.name, n, draw) for one in laboratories for n, draw in wanted]
    print(table([done[place] for place in places if place in done]))
    return 0


def of_bundle(path: Path, archives: Sequence[str], stack: ExitStack) -> Iterator[Laboratory]:
    """Yield the laboratories of archives, NAME=ARCHIVE, that the bundle has not seen."""
    bundle = load_bundle(path)
    for archive in archives:
        name, _, file = archive.rpartition("=")
        images = stack.enter_context(open_labelled(Path(file), bundle.labels, ArchiveLimits())).found
        yield Laboratory(
            name or Path(file).stem,
            images,
            [image.name for image in images],
            bundle.preprocessing,
            bundle.labels,
            bundle.sha256,
            partial(Parent.of, bundle),
        )


def of_run(folder: Path, manifest: Path) -> Iterator[Laboratory]:
    """Yield the laboratories of a run, each with the network that was trained without it."""
    rows, config = read_manifest(manifest), read_config(folder / "config.json")
    train, validation = choose_rows(rows, config)
    others = other_cells(rows)
    archives = {row.archive: ImageArchive(Path(row.archive)) for row in rows}
    for k, (seen, held_out) in enumerate(fold_rows(train, validation, config)):
        checkpoint = fold_path(folder, k) / BEST
        yield Laboratory(
            held_out[0].laboratory,
            [
                StoredImage(row.path, partial(archives[row.archive].read, row.path), CLASSES.index(row.label))
                for row in held_out
            ],
            [row.source for row in held_out],
            config.preprocessing,
            CLASSES,
            sha256(checkpoint.read_bytes()).hexdigest(),
            partial(load_parent, checkpoint, config, seen, seen_others(others, held_out, config)),
        )


def load_parent(checkpoint: Path, config: TrainConfig, seen: Sequence[Row], others: Sequence[Row]) -> Parent:
    """Return the network of a checkpoint, which was trained on the rows seen; it has no thresholds yet."""
    network = load_checkpoint(checkpoint, config)
    neighbours = find_references(network, seen, others, config).neighbours
    return Parent(network, CLASSES, neighbours, 1.0, Thresholds(0.0, np.inf))


def key_of(laboratory: Laboratory, most: int) -> str:
    """Return what a result depends on besides the number of cells and the draw."""
    settings = (
        most,
        adapt.VIEWS,
        adapt.RIDGES,
        adapt.FOLDS,
        head.KNOWN,
        head.SMOOTHING,
        TARGET,
    )
    facts = [laboratory.network, settings, asdict(adapt.VARIATION)]
    return sha256(json.dumps(facts).encode()).hexdigest()[:16]


def measure(laboratory: Laboratory, missing: Sequence[tuple[int, int]], most: int) -> Iterator[Result]:
    """Adapt to each number of cells and draw that is missing."""
    if not missing:
        return
    pool = choose(laboratory, 2 * most)
    images = [laboratory.images[place] for place in pool]
    groups = [laboratory.groups[place] for place in pool]
    cells, parent = read_cells(images, groups, laboratory.preprocessing), laboratory.parent()
    for n, draw in missing:
        given, rest = split(cells.labels, n, draw, most)
        if np.bincount(cells.labels[rest], minlength=len(parent.labels)).min() < LEAST_LEFT:
            print(f"{laboratory.name}: too few cells are left to judge {n} of each class")
            continue
        began = time.perf_counter()
        figures = asdict(judge(parent, cells.take(given), cells.take(rest)))
        seconds = round(time.perf_counter() - began, 1)
        place: dict[str, Any] = {
            "key": key_of(laboratory, most),
            "laboratory": laboratory.name,
            "cells": n,
            "draw": draw,
        }
        yield Result(**figures, **place, seconds=seconds)


def choose(laboratory: Laboratory, most: int) -> list[int]:
    """Return the places of up to `most` images of each class, always the same."""
    labels = np.array([image.label for image in laboratory.images])
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = [order[labels[order] == label][:most] for label in range(len(laboratory.labels))]
    places: list[int] = np.sort(np.concatenate(chosen)).tolist()
    return places


def split(labels: Ints, n: int, draw: int, most: int) -> tuple[list[int], list[int]]:
    """Return the places of n cells of each class, and of up to `most` others of each."""
    order = np.random.default_rng([draw, n]).permutation(len(labels))
    of_class = [order[labels[order] == label] for label in np.unique(labels)]
    given, rest = [places[:n] for places in of_class], [places[n : n + most] for places in of_class]
    return np.concatenate(given).tolist(), np.concatenate(rest).tolist()


def judge(parent: Parent, given: OwnCells, rest: OwnCells) -> Figures:
    """Adapt to the given cells and return the figures of the rest, of what `adapt` would write or leave."""
    starts = parent.starts(given)
    comparison = compare(parent, given, cross_validate(starts, given), TARGET)
    before = run(parent.network, rest.framed)
    written = comparison.recommended and comparison.chosen != UNCHANGED
    after = run(follow(comparison.chosen, starts, given), rest.framed) if written else before
    old, new = (recalls(outputs, rest, parent.labels) for outputs in (before, after))
    temperature = comparison.temperature if written else parent.temperature
    verification = comparison.after if written else comparison.before
    kept, right = review(verification, parent.answers(rest, after, temperature), rest)
    return Figures(
        before=float(np.mean([*old.values()])),
        after=float(np.mean([*new.values()])),
        written=written,
        fall=max(old[name] - new[name] for name in old),
        kept=kept,
        right=right,
    )


def review(verification: Verification, found: Answers, rest: OwnCells) -> tuple[float, float | None]:
    """Return the share kept of the rest with the proposed thresholds, and how much of it is right."""
    if verification.proposed is None:
        return 0.0, None
    marks = marks_of(cells_of(rest.labels, found), verification.proposed.rules)
    return 1 - marks.review_share, marks.right_when_kept


def read(path: Path) -> Iterator[Result]:
    if path.is_file():
        yield from (Result(**json.loads(line)) for line in path.read_text().splitlines())


def append(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table: means over the draws, and over all laboratories."""
    head = ("laboratory", "cells a class", "before", "after", "gain", "largest fall of a recall", *MORE)
    names = list(dict.fromkeys(result.laboratory for result in results))
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for n in sorted({result.cells for result in results}):
        for name in (*names, "all"):
            chosen = [one for one in results if one.cells == n and name in (one.laboratory, "all")]
            if chosen:
                lines.append("| " + " | ".join((name, str(n), *described(chosen))) + " |")
    return "\n".join(lines)


def described(results: Sequence[Result]) -> Iterator[str]:
    before, after, kept = (
        float(np.mean([getattr(one, name) for one in results])) for name in ("before", "after", "kept")
    )
    rights = [one.right for one in results if one.right is not None]
    yield from (f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
    yield f"{max(one.fall for one in results):.3f}"
    yield f"{sum(one.written for one in results)} of {len(results)}"
    yield f"{kept:.2f}"
    yield f"{np.mean(rights):.3f}" if rights else "–"
    yield f"{np.mean([one.seconds for one in results]):.0f}"


if __name__ == "__main__":
    torch.set_num_threads(2)
    raise SystemExit(main())
