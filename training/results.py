"""Tables of the model card: a report's scores beside those of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training import paper
from training.markdown import listed, number, paragraphs, percent, table

CURVES, CONFUSION, RELIABILITY, RISK = "curves.png", "confusion.png", "reliability.png", "risk.png"
WORST = 8  # photos in the table of misclassified images
AVERAGED = ("precision", "recall", "F1")
ERRORS = frozenset({"MSE", "RMSE"})  # scores of which the lower one is better
OWN = {
    "balanced accuracy": "balanced_accuracy",
    "Cohen's κ": "cohen_kappa",
    "Matthews correlation": "matthews_corrcoef",
    "ROC AUC, one against the rest": "roc_auc_ovr",
}
SELECTED_ON = {
    "holdout": "photos held out of training",
    "folds": "training photos, each classified by the network that was trained without it",
    "laboratories": "training photos, each classified by the network that was trained without its laboratory",
    "val": "the `val` split",
    "test": "the `test` split",
}
FRAMING = {
    "nucleus": "a square around the nucleus (found by its colour), or the whole image if none is found",
    "whole": "the whole image",
}

Table = Mapping[str, Any]


def results(config: Table, report: Table) -> str:
    engine, beside = report["engine"], paper.has_classes(report["labels"])
    return paragraphs(
        "## Results",
        f"On `{report['split']}`, scored with the engine {engine['name']} on {engine['device']}."
        f" {selection(config, report)} {leak_warning(report)}".rstrip(),
        f"“Paper” is Table 2 of {listed(paper.AUTHORS)} ({paper.YEAR}). {same_images(report)}"
        if beside
        else "",
        class_table(report) if beside else own_class_table(report),
        score_table(report) if beside else own_score_table(report),
        "Macro averages weigh the classes equally, weighted ones by support. MSE and RMSE are of class"
        " indices (the paper's equation 6), so they depend on the classes'"
        f" {'alphabetical ' if beside else ''}order.",
        interval(report),
        "Rows are true classes, columns are predicted classes:",
        confusion_table(report),
        f"![Confusion matrix, counts and row percentages](figures/{CONFUSION})",
    )


def selection(config: Table, report: Table) -> str:
    """Say which images were used for selection, with a warning where that biases the scores."""
    split, select_on = report["split"], config["training"]["recipe"]["select_on"]
    if split == "train":
        return "**The model was trained on these images: the scores do not hold for new cells.**"
    if split == select_on:
        return (
            "**The epoch, the temperature and the review thresholds were selected on these same images,"
            " so the scores are higher than they would be on new cells.**"
        )
    return f"{selected(config)} were selected on {SELECTED_ON[select_on]}; nothing was selected on `{split}`."


def selected(config: Table) -> str:
    return f"The {'' if keeps_last_epoch(config) else 'epoch, the '}temperature and the review thresholds"


def keeps_last_epoch(config: Table) -> bool:
    """Return whether the last epoch is kept, whatever its score."""
    return bool(config["training"]["recipe"]["monitor"] == "last")


def leak_warning(report: Table) -> str:
    if report["split"] == "train" or not report["photos_also_in_train"]:
        return ""
    divided = report.get("divided", report["labels"])  # earlier reports do not name the classes
    if 0 < len(divided) < len(report["labels"]):
        return (
            f"**{listed(divided)}: cells of the same slides or photos are among the training images, so how"
            " well they are recognised on others is not known.**"
        )
    return (
        f"**{report['photos_also_in_train']} of its {report['photos']} photos have other copies among the"
        " training images: this split leaks, and the scores do not hold for new cells.**"
    )


def same_images(report: Table) -> str:
    if has_the_papers_counts(report):
        return (
            f"Its {paper.N:,} images have the same class counts as these: Kaggle's TEST folder. Bold is the"
            " better score."
        )
    return f"Its {paper.N:,} images are not these {report['n']:,}: the two columns are not comparable."


def has_the_papers_counts(report: Table) -> bool:
    return {label: scores["support"] for label, scores in report["per_class"].items()} == paper.SUPPORT


def class_table(report: Table) -> str:
    head = [
        "",
        *(f"{what}, {whose}" for what in ("precision", "recall", "F1") for whose in ("paper", "here")),
    ]
    rows, comparable = [], has_the_papers_counts(report)
    for label, ours in report["per_class"].items():
        scores = zip(paper.PER_CLASS[label], (ours["precision"], ours["recall"], ours["f1"]), strict=True)
        pairs = [text for pair in scores for text in best_in_bold(pair, comparable)]
        rows.append([label, *pairs, f"{paper.SUPPORT[label]}", f"{ours['support']}"])
    return table([*head, "support, paper", "here"], rows)


def own_class_table(report: Table) -> str:
    """Write the scores of each class, of classes that are not the paper's."""
    rows = [
        [label, *(number(scores[name]) for name in ("precision", "recall", "f1")), f"{scores['support']}"]
        for label, scores in report["per_class"].items()
    ]
    return table(["", "precision", "recall", "F1", "images"], rows)


def own_score_table(report: Table) -> str:
    return table(["", "here"], [[name, number(value)] for name, value in scores(report).items()])


def score_table(report: Table) -> str:
    reproduced = report.get("paper_recipe")
    columns = [paper_scores(), *([scores(reproduced)] if reproduced else []), scores(report)]
    head = ["", "paper", *(["its recipe, run here"] if reproduced else []), "here"]
    comparable = has_the_papers_counts(report)
    rows = [
        [name, *best_in_bold([column.get(name) for column in columns], comparable, lower=name in ERRORS)]
        for name in columns[-1]
    ]
    return paragraphs(table(head, rows), paper_recipe(report))


def best_in_bold(values: Sequence[float | None], comparable: bool, *, lower: bool = False) -> list[str]:
    """Write scores; the one that is better than all others as they are written is bold.

    comparable: whether they are of the same images. lower: whether a lower score is better.
    """
    written = [number(value) for value in values]
    known = sorted((text for text in written if text != number(None)), key=float, reverse=not lower)
    if not comparable or len(known) < 2 or known[0] == known[1]:
        return written
    return [f"**{text}**" if text == known[0] else text for text in written]


def paper_scores() -> dict[str, float | None]:
    means = {"macro": paper.MACRO, "weighted": paper.WEIGHTED}
    values: dict[str, float | None] = {"accuracy": paper.ACCURACY}
    for name, printed in means.items():
        values |= {f"{name} {what}": value for what, value in zip(AVERAGED, printed, strict=True)}
    return values | {"MSE": paper.MSE, "RMSE": paper.RMSE}


def scores(report: Table) -> dict[str, float | None]:
    """Return the paper's scores in its order, then those that the paper lacks."""
    values: dict[str, float | None] = {"accuracy": report["accuracy"]}
    for name in ("macro", "weighted"):
        values |= {f"{name} {what}": report[f"{name}_avg"][what.lower()] for what in AVERAGED}
    values |= {"MSE": report["mse"], "RMSE": report["rmse"]}
    return values | {name: report[field] for name, field in OWN.items() if field in report}


def paper_recipe(report: Table) -> str:
    reproduced = report.get("paper_recipe")
    if not reproduced:
        return ""
    same = "the same" if reproduced["fingerprint"] == report["fingerprint"] else "other"
    return (
        f"“Its recipe, run here” is a model trained with `recipes/paper.toml` and scored on {same} images;"
        f" its epoch was selected on them, as in the paper. {reproduced['groups']['correct']} of"
        f" {reproduced['groups']['n']} photos are right by mean probability. docs/model.md explains the"
        " differences from the paper."
    )


def interval(report: Table) -> str:
    intervals = report["confidence_intervals"]
    low, high = intervals["accuracy"]
    where = "below" if low > paper.ACCURACY else "above" if high < paper.ACCURACY else "inside"
    return (
        f"**{percent(intervals['level'])} intervals over {report['photos']} photos** (bootstrap of photos"
        f" within their class, {report['resamples']:,} samples): accuracy {low:.4f} to {high:.4f}, macro F1"
        f" {intervals['macro_f1'][0]:.4f} to {intervals['macro_f1'][1]:.4f}."
        + (f" The paper's accuracy is {where} the first interval." if has_the_papers_counts(report) else "")
    )


def confusion_table(report: Table) -> str:
    rows = [
        [label, *(f"{count}" for count in counts)]
        for label, counts in zip(report["labels"], report["confusion_matrix"], strict=True)
    ]
    return table(["", *report["labels"]], rows)


def photos(_: Table, report: Table) -> str:
    groups, failed, wrong = report["groups"], report["misclassified_photos"], misclassified(report)
    rows = [
        [
            f"`{photo['photo']}`",
            photo["label"],
            str(photo["images"]),
            str(photo["wrong"]),
            ", ".join(f"{name} {n}" for name, n in photo["predicted"].items()),
        ]
        for photo in failed[:WORST]
    ]
    listed_wrong = sum(photo["wrong"] for photo in failed[:WORST])
    uncertain = report["uncertain_images"]
    return paragraphs(
        "## By photo",
        f"By the mean probability of their images, {groups['correct']} of {groups['n']} photos are classified"
        f" correctly ({groups['accuracy']:.4f}). Photos with at least one wrong image: {len(failed)}."
        + (f" The source photo of {uncertain:,} images is uncertain." if uncertain else ""),
        f"The photos with the most wrong images, {listed_wrong:,} of {wrong:,} in all:" if failed else "",
        table(["photo", "true class", "images", "wrong", "predicted"], rows) if failed else "",
    )


def misclassified(report: Table) -> int:
    right = sum(row[i] for i, row in enumerate(report["confusion_matrix"]))
    return int(report["n"] - right)


def differences(config: Table, report: Table) -> str:
    if not paper.has_classes(config["labels"]):
        return ""
    recipe, train = config["training"]["recipe"], config["training"]["data"]["train"]
    size = config["preprocessing"]["size"]
    here = {
        "training images": ", ".join(train["archives"]),
        "input": f"{FRAMING[config['preprocessing']['framing']]}, {size} × {size}",
        "initial weights": Path(recipe["initial"]).name,
        "epochs, at most": f"{recipe['epochs']}",
        "images per step": f"{recipe['batch']}",
        "learning rate": f"{recipe['learning_rate']:g}, {recipe['schedule']}; decay {recipe['weight_decay']}",
        "epoch selected on": "nothing: the last epoch"
        if keeps_last_epoch(config)
        else f"{SELECTED_ON[recipe['select_on']]}, by {recipe['monitor']}",
        "probabilities": f"divided by a temperature of {config['temperature']:g}",
        "interval": f"bootstrap over {report['photos']} photos",
    }
    rows = [[name, theirs, here[name]] for name, theirs in paper.METHOD.items()]
    return paragraphs(
        "## What differs from the paper's measurement",
        table(["", "paper", "here"], rows, align="---"),
        f"The paper calls its {paper.N:,} images validation data. They are the archive's TEST folder, the"
        " epoch was selected on them, and there is no third, independent set.",
    )
