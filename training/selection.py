"""What a run would train on, checked before any work: each of its networks needs enough images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.config import TrainConfig
from training.data import Row, classes_of
from training.errors import DataError
from training.rows import FOLDED, fold_rows, mix_of, mix_problem, seen_others, shared_rows


@dataclass(frozen=True)
class Selection:
    """The training images of one network of a run."""

    network: str
    rows: Sequence[Row]


def check_selection(
    train: Sequence[Row], validation: Sequence[Row], others: Sequence[Row], config: TrainConfig
) -> None:
    """Raise DataError that names all that the run lacks, and what to do.

    others: cells of no class to train on.
    """
    check_archives([*train, *validation, *others])
    problems = [*mix_problem(train, config.mix), *lacks_second_laboratory(train, validation, config)]
    try:
        for selection in selections(train, validation, others, config):
            problems += lacks(selection, config)
    except DataError as error:  # too few sources for the folds
        problems.append(str(error))
    if problems:
        raise DataError("; ".join(dict.fromkeys(problems)))


def check_archives(rows: Iterable[Row]) -> None:
    """Raise DataError if an archive of the rows is not where the manifest says."""
    missing = [archive for archive in sorted({row.archive for row in rows}) if not Path(archive).exists()]
    if missing:
        raise DataError(
            f"{', '.join(missing)} of the manifest {'does' if len(missing) == 1 else 'do'} not exist:"
            " work in the folder where the manifest was created, or create it again with `leuko-train data`"
        )


def selections(
    train: Sequence[Row], validation: Sequence[Row], others: Sequence[Row], config: TrainConfig
) -> Iterator[Selection]:
    """Yield what each network of the run is trained on. Raise DataError if there are too few sources."""
    if config.select_on == "folds":
        if config.shared_epochs and (shared := shared_rows(train, validation)):
            yield Selection("the shared start", shared)
    else:
        yield Selection("the network", [*train, *others])
    if config.select_on in FOLDED:
        for number, (rows, held_out) in enumerate(fold_rows(train, validation, config), 1):
            name = f"the network without fold {number}"
            if config.select_on == "laboratories":
                name = f"the network without {held_out[0].laboratory}"
            yield Selection(name, [*rows, *seen_others(others, held_out, config)])


def lacks_second_laboratory(
    train: Sequence[Row], validation: Sequence[Row], config: TrainConfig
) -> Iterator[str]:
    if config.shared_epochs and config.select_on == "folds" and not shared_rows(train, validation):
        yield (
            f"shared_epochs = {config.shared_epochs} needs a second laboratory's archive in the manifest;"
            " for one laboratory alone use --set shared_epochs=0"
        )


def lacks(selection: Selection, config: TrainConfig) -> Iterator[str]:
    """Say what keeps a network from being trained."""
    known = [row for row in selection.rows if row.known]
    if missing := sorted(set(classes_of(selection.rows)) - {row.label for row in known}):
        yield f"{selection.network} has no training images of {', '.join(missing)}: add some"
    if config.mix and not any(mix_of(known, config).values()):
        yield f"{selection.network} has only laboratories of which the mix takes no share: set other shares"
    drawn = config.samples or len(selection.rows)
    if drawn < config.batch:
        what = f"samples = {drawn}" if config.samples else f"{len(selection.rows)} training images"
        yield (
            f"{selection.network} has {what}, which do not fill a batch of {config.batch}, so it would never"
            f" take a step: {'use more samples' if config.samples else 'add images'}, or --set batch={drawn}"
        )
