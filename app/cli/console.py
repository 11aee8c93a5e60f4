"""Tables and progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from app.engine.classifier import Prediction
from app.errors import LeukoError
from app.evaluation.answer_profile import AnswerProfile
from app.evaluation.comparison import Comparison
from app.evaluation.report import Report
from app.evaluation.review_thresholds import thinned
from app.evaluation.verification import Marks, Verification
from app.inference.offline import Outcome
from app.observability.drift import Shift, Window
from app.printable import printable
from app.reports.comparison_page import mcnemar_sentence
from app.reports.verification_page import limit, of_no_class, two_sets

MOST_LINES = 20
MOST_COLUMNS = 6  # of classes in a table
SCALARS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "cohen_kappa": "Cohen's kappa",
    "matthews_corrcoef": "Matthews correlation",
    "mse": "MSE",
    "rmse": "RMSE",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "calibration error",
    "roc_auc_ovr": "ROC AUC, one against rest",
}


def track(outcomes: Iterable[Outcome], total: int, console: Console) -> Iterator[Outcome]:
    """Yield the outcomes unchanged and show a progress bar, if the console is a terminal."""
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for outcome in outcomes:
            yield outcome
            progress.advance(task)


def predictions_table(outcomes: Sequence[Outcome], labels: Sequence[str]) -> Table:
    """Return a table that fits 80 columns. Errors are only marked: `failures` has their details.

    Of many classes, or of those whose headings would be the same, only the most probable ones are shown.
    """
    table = Table()
    table.add_column("file", overflow="fold")
    if _fit(labels):
        table.add_column("label", no_wrap=True)
        for label in labels:
            table.add_column(label[:5], justify="right", no_wrap=True)
    else:
        table.add_column("label")
        table.add_column("next")
    table.add_column("ood", justify="right", no_wrap=True)
    table.add_column("review", min_width=12)
    for outcome in outcomes:
        for name, values in _rows(outcome, labels):
            table.add_row(Text(printable(name)), *values)
    return table


def report_tables(report: Report, current: Marks) -> Iterator[Table]:
    """current: what the bundle's review thresholds do to these images."""
    yield _per_class(report)
    yield _confusion(report)
    yield _scalars(report, current)


def verification_tables(report: Report, verification: Verification) -> Iterator[Table | Text]:
    yield _confusion(report)
    table = Table("", title=f"{verification.cells} cells of this laboratory")
    for heading in ("confidence ≥", "OOD score ≤", "to review", "right when kept", "of no class, marked"):
        table.add_column(heading, justify="right")
    table.add_row("bundle", *_marks(verification.current))
    if verification.proposed is not None:
        table.add_row("proposed", *_marks(verification.proposed))
    if verification.chosen is not None:
        table.add_row("set here", *_marks(verification.chosen))
    yield table
    yield from map(Text, (*two_sets(verification), *of_no_class(verification)))
    ood_score = limit(verification.recommended, "ood_score")
    costs = Table("confidence ≥", title=f"what other confidences cost, with an OOD score ≤ {ood_score}")
    for heading in ("to review", "right when kept"):
        costs.add_column(heading, justify="right")
    for point in thinned(verification.curve):
        costs.add_row(*map(_number, (point.confidence, 1 - point.kept, point.right)))
    yield costs
    over = "patients or slides" if verification.unit == "group" else "cells"
    accuracy, interval = _number(verification.balanced_accuracy), _range(verification.interval)
    yield Text(f"balanced accuracy {accuracy}, 95 % interval over {over} {interval or 'not known'}")
    for warning in verification.warnings:
        yield Text(printable(warning), "yellow")


def comparison_tables(comparison: Comparison, differing: int) -> Iterator[Table | Text]:
    """differing: cells that the two models label differently."""
    table = Table("", title=f"{comparison.cells} images")
    for heading in ("first", "second", "difference", f"{comparison.level:.0%} interval"):
        table.add_column(heading, justify="right")
    scores = {"accuracy": comparison.accuracy, "balanced accuracy": comparison.balanced_accuracy}
    scores |= {f"recall of {name}": one.recall for name, one in comparison.by_class.items() if one.recall}
    for name, one in scores.items():
        interval = f"{one.interval[0]:+.4f} to {one.interval[1]:+.4f}" if one.interval else "not known"
        table.add_row(name, _number(one.first), _number(one.second), f"{one.difference:+.4f}", interval)
    first, second = comparison.first, comparison.second
    table.add_section()
    table.add_row("to review", _number(first.review_share), _number(second.review_share))
    table.add_row("right when kept", _number(first.right_when_kept), _number(second.right_when_kept))
    yield table
    yield Text(mcnemar_sentence(comparison))
    yield Text(f"{differing} images are labelled differently; intervals are over {comparison.unit}s")
    for warning in comparison.warnings:
        yield Text(printable(warning), "yellow")


def drift_tables(
    reference: AnswerProfile, profile: AnswerProfile, shifts: Sequence[Shift], window: Window
) -> Iterator[Table | Text]:
    title = printable(f"{profile.n} answers compared with {reference.n} of {reference.of}")
    table = Table(title=Text(title, "table.title"))  # a str could contain rich's markup
    table.add_column("measure")
    for heading in ("reference", "logged", "index", "by chance"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for shift in shifts:
        values = ("", "") if shift.reference is None else (_number(shift.reference), _number(shift.found))
        style = {"stable": "green", "shifted": "yellow", "drifted": "bold red"}[shift.verdict]
        numbers = (*values, f"{shift.index:.3f}", f"{shift.chance:.3f}")
        table.add_row(shift.measure, *numbers, Text(shift.verdict, style))
    yield table
    if window.other_models:
        yield Text(f"{window.other_models} answers of other models are not counted", "yellow")
    if window.repeated:
        yield Text(
            f"{window.repeated} answers of requests that were already counted are not counted again", "yellow"
        )
    if window.broken:
        yield Text(f"{window.broken} lines could not be parsed", "yellow")


def failures(outcomes: Sequence[Outcome]) -> Iterator[Text]:
    """Yield a line for each image that could not be classified, up to `MOST_LINES`, and their number."""
    failed = [(o.image.name, o.answer.detail) for o in outcomes if isinstance(o.answer, LeukoError)]
    for name, detail in failed[:MOST_LINES]:
        yield Text(printable(f"{name}: {detail}"), "red")
    if failed:
        yield Text(f"{len(failed)} of {len(outcomes)} images could not be classified", "bold red")


def _rows(outcome: Outcome, labels: Sequence[str]) -> Iterator[tuple[str, list[str | Text]]]:
    """Yield the name and the other columns of each cell of an image, or of an image without any."""
    name, answer = outcome.image.name, outcome.answer
    if isinstance(answer, LeukoError):
        yield name, [Text("error", "red")]
    elif not answer.cells:
        yield name, [Text("no cell", "yellow")]
    else:
        for cell in answer.cells:
            number = "" if cell.cell is None else f" #{cell.cell}"
            yield name + number, _columns(cell.prediction, labels)


def _columns(result: Prediction, labels: Sequence[str]) -> list[str | Text]:
    reasons = ", ".join(reason.replace("_", " ") for reason in result.review_reasons)
    return [
        *(_in_columns if _fit(labels) else _ranked)(result, labels),
        f"{result.ood_score:.2f}",
        Text(printable(reasons), "yellow"),
    ]


def _fit(labels: Sequence[str]) -> bool:
    return len({label[:5] for label in labels}) == len(labels) <= MOST_COLUMNS


def _in_columns(result: Prediction, labels: Sequence[str]) -> list[str | Text]:
    return [
        Text(printable(result.label), "bold"),
        *[
            Text(f"{probability:.3f}", "bold" if label == result.label else "")
            for label, probability in zip(labels, result.probabilities, strict=True)
        ],
    ]


def _ranked(result: Prediction, labels: Sequence[str]) -> list[str | Text]:
    """Return the label and the next two classes, with their probabilities."""
    ranked = sorted(zip(result.probabilities, labels, strict=True), key=lambda pair: -pair[0])
    best, *others = [f"{printable(label)} {probability:.3f}" for probability, label in ranked]
    return [Text(best, "bold"), ", ".join(others[:2])]


def _marks(marks: Marks) -> tuple[str, ...]:
    shares = (marks.review_share, marks.right_when_kept, marks.others_marked)
    return (limit(marks, "confidence"), limit(marks, "ood_score"), *map(_number, shares))


def _per_class(report: Report) -> Table:
    table = Table("class", title=f"{report.n} images")
    for heading in ("precision", "recall", "F1", "specificity", "support"):
        table.add_column(heading, justify="right")
    for name, scores in report.per_class.items():
        ratios = (scores.precision, scores.recall, scores.f1, scores.specificity)
        table.add_row(name, *map(_number, ratios), str(scores.support))
    table.add_section()
    for name, mean in (("macro average", report.macro_avg), ("weighted average", report.weighted_avg)):
        table.add_row(name, *map(_number, (mean.precision, mean.recall, mean.f1)), "", str(mean.support))
    return table


def _confusion(report: Report) -> Table:
    if len(report.labels) > MOST_COLUMNS:
        return _confusions(report)
    table = Table("true ↓  predicted →", title="confusion matrix")
    for label in report.labels:
        table.add_column(label, justify="right")
    for row, (label, counts) in enumerate(zip(report.labels, report.confusion_matrix, strict=True)):
        cells = [Text(str(count), "bold" if row == column else "") for column, count in enumerate(counts)]
        table.add_row(label, *cells)
    return table


def _confusions(report: Report) -> Table:
    """Return what a matrix too wide for a terminal shows: each class's most frequent predictions."""
    table = Table("true", "right", f"most frequent others of {len(report.labels)}", title="confusions")
    for row, (label, counts) in enumerate(zip(report.labels, report.confusion_matrix, strict=True)):
        wrong = [(count, report.labels[column]) for column, count in enumerate(counts) if column != row]
        worst = sorted(wrong, key=lambda pair: -pair[0])[:3]
        others = ", ".join(f"{name} {count}" for count, name in worst if count)
        table.add_row(label, f"{counts[row]} of {sum(counts)}", others)
    return table


def _scalars(report: Report, current: Marks) -> Table:
    intervals = report.confidence_intervals
    ranges = {"accuracy": intervals.accuracy}
    table = Table("score", title="all classes")
    table.add_column("value", justify="right")
    table.add_column(f"{intervals.level:.0%} interval over {intervals.unit}s", justify="right")
    for field, heading in SCALARS.items():
        table.add_row(heading, _number(getattr(report, field)), _range(ranges.get(field)))
    table.add_row("macro F1", _number(report.macro_avg.f1), _range(intervals.macro_f1))
    table.add_row("share sent to review", _number(current.review_share), "")
    table.add_row("accuracy of the kept", _number(current.right_when_kept), "")
    if report.groups is not None:
        table.add_row(f"accuracy of {report.groups.n} whole sources", _number(report.groups.accuracy), "")
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} images/s", "cyan")
