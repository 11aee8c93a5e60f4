"""The model card's tables: what a report found, beside what the paper printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training import paper
from training.markdown import listed, number, paragraphs, percent, table

CURVES, CONFUSION, RELIABILITY, RISK = "curves.png", "confusion.png", "reliability.png", "risk.png"
WORST = 8  # photos that are listed
AVERAGED = ("precision", "recall", "F1")
OWN = {
    "balanced accuracy": "balanced_accuracy",
    "Cohen's κ": "cohen_kappa",
    "Matthews correlation": "matthews_corrcoef",
    "ROC AUC, one against the rest": "roc_auc_ovr",
}
CHOSEN_ON = {
    "holdout": "photos held out of the training photos",
    "folds": "training photos, each as judged by a network that was trained without it",
    "val": "the `val` split",
    "test": "the `test` split",
}
FRAMING = {
    "nucleus": "the square around the nucleus that its colour finds, the whole picture where it finds none",
    "whole": "the whole picture",
}

Table = Mapping[str, Any]


def results(config: Table, report: Table) -> str:
    engine = report["engine"]
    return paragraphs(
        "## Results",
        f"On `{report['split']}`, scored through the engine {engine['name']} on {engine['device']}."
        f" {selection(config, report)} {leak(report)}".rstrip(),
        f"“Paper” is Table 2 of {listed(paper.AUTHORS)} ({paper.YEAR}). {same_images(report)}",
        class_table(report),
        score_table(report),
        "Macro averages weigh the classes equally, weighted ones by support. MSE and RMSE are of class"
        " indices (the paper's equation 6), so they depend on the classes' alphabetical order.",
        interval(report),
        "Rows are true classes, columns predicted ones:",
        confusion_table(report),
        f"![Confusion matrix, counts and row percentages](figures/{CONFUSION})",
    )


def selection(config: Table, report: Table) -> str:
    """What was chosen on which images, also where that spoils the scores."""
    split, select_on = report["split"], config["training"]["recipe"]["select_on"]
    if split == "train":
        return "**The model was trained on these images: the scores say nothing about new cells.**"
    if split == select_on:
        return (
            "**The epoch, the temperature and the review thresholds were chosen on these very images,"
            " so the scores are better than new cells would give.**"
        )
    return f"{chosen(config)} were chosen on {CHOSEN_ON[select_on]}; this run chose nothing on `{split}`."


def chosen(config: Table) -> str:
    return f"The {'' if ends(config) else 'epoch, the '}temperature and the review thresholds"


def ends(config: Table) -> bool:
    """Whether the last epoch is kept, whatever its score."""
    return bool(config["training"]["recipe"]["monitor"] == "last")


def leak(report: Table) -> str:
    if report["split"] == "train" or not report["photos_also_in_train"]:
        return ""
    return (
        f"**{report['photos_also_in_train']} of its {report['photos']} photos have other copies among the"
        " training images: this split leaks, and the scores say little about new cells.**"
    )


def same_images(report: Table) -> str:
    if has_the_papers_counts(report):
        return f"Its {paper.N:,} images have the class counts of these: Kaggle's TEST folder."
    return f"Its {paper.N:,} images are others than these {report['n']:,}: the two columns do not compare."


def has_the_papers_counts(report: Table) -> bool:
    return {label: one["support"] for label, one in report["per_class"].items()} == paper.SUPPORT


def class_table(report: Table) -> str:
    head = [
        "",
        *(f"{what}, {whose}" for what in ("precision", "recall", "F1") for whose in ("paper", "here")),
    ]
    rows = []
    for label, ours in report["per_class"].items():
        scores = zip(paper.PER_CLASS[label], (ours["precision"], ours["recall"], ours["f1"]), strict=True)
        pairs = [text for theirs, own in scores for text in (number(theirs), f"**{number(own)}**")]
        rows.append([label, *pairs, f"{paper.SUPPORT[label]}", f"{ours['support']}"])
    return table([*head, "support, paper", "here"], rows)


def score_table(report: Table) -> str:
    again = report.get("paper_recipe")
    columns = [paper_scores(), *([scores(again)] if again else []), scores(report)]
    head = ["", "paper", *(["its recipe, run here"] if again else []), "here"]
    rows = [
        [name, *(number(column.get(name)) for column in columns[:-1]), f"**{number(value)}**"]
        for name, value in columns[-1].items()
    ]
    return paragraphs(table(head, rows), paper_recipe(report))


def paper_scores() -> dict[str, float | None]:
    means = {"macro": paper.MACRO, "weighted": paper.WEIGHTED}
    found: dict[str, float | None] = {"accuracy": paper.ACCURACY}
    for name, printed in means.items():
        found |= {f"{name} {what}": value for what, value in zip(AVERAGED, printed, strict=True)}
    return found | {"MSE": paper.MSE, "RMSE": paper.RMSE}


def scores(report: Table) -> dict[str, float | None]:
    """In the paper's order, then those that it does not have."""
    found: dict[str, float | None] = {"accuracy": report["accuracy"]}
    for name in ("macro", "weighted"):
        found |= {f"{name} {what}": report[f"{name}_avg"][what.lower()] for what in AVERAGED}
    found |= {"MSE": report["mse"], "RMSE": report["rmse"]}
    return found | {name: report[field] for name, field in OWN.items() if field in report}


def paper_recipe(report: Table) -> str:
    again = report.get("paper_recipe")
    if not again:
        return ""
    same = "the same" if again["fingerprint"] == report["fingerprint"] else "other"
    return (
        f"“Its recipe, run here” is what `recipes/paper.toml` gave on {same} images, the epoch chosen on them"
        f" as in the paper; {again['groups']['correct']} of {again['groups']['n']} photos are right by mean"
        " probability. docs/model.md says where it differs from the paper, and why."
    )


def interval(report: Table) -> str:
    found = report["confidence_intervals"]
    low, high = found["accuracy"]
    where = "below" if low > paper.ACCURACY else "above" if high < paper.ACCURACY else "inside"
    return (
        f"**{percent(found['level'])} intervals over {report['photos']} photos** (drawn whole within their"
        f" class, {report['resamples']:,} times): accuracy {low:.4f} to {high:.4f}, macro F1"
        f" {found['macro_f1'][0]:.4f} to {found['macro_f1'][1]:.4f}."
        + (f" The paper's accuracy lies {where} the first." if has_the_papers_counts(report) else "")
    )


def confusion_table(report: Table) -> str:
    rows = [
        [f"**{label}**", *(f"{count}" for count in counts)]
        for label, counts in zip(report["labels"], report["confusion_matrix"], strict=True)
    ]
    return table(["", *report["labels"]], rows)


def photos(_: Table, report: Table) -> str:
    groups, failed, wrong = report["groups"], report["misclassified_photos"], misclassified(report)
    rows = [
        [
            f"`{one['photo']}`",
            one["label"],
            str(one["images"]),
            str(one["wrong"]),
            ", ".join(f"{name} {n}" for name, n in one["predicted"].items()),
        ]
        for one in failed[:WORST]
    ]
    named = sum(one["wrong"] for one in failed[:WORST])
    uncertain = report["uncertain_images"]
    return paragraphs(
        "## By photo",
        f"Judged by the mean probability of its images, {groups['correct']} of {groups['n']} photos are right"
        f" ({groups['accuracy']:.4f}). Photos with a wrong image at least: {len(failed)}."
        + (
            f" Which photo an image comes from is a weak match for {uncertain:,} images." if uncertain else ""
        ),
        f"The photos with most of the {wrong:,} wrong images, {named:,} in all:" if failed else "",
        table(["photo", "true class", "images", "wrong", "called"], rows) if failed else "",
    )


def misclassified(report: Table) -> int:
    right = sum(row[i] for i, row in enumerate(report["confusion_matrix"]))
    return int(report["n"] - right)


def differences(config: Table, report: Table) -> str:
    recipe, train = config["training"]["recipe"], config["training"]["data"]["train"]
    size = config["preprocessing"]["size"]
    here = {
        "training pictures": ", ".join(train["archives"]),
        "input": f"{FRAMING[config['preprocessing']['framing']]}, {size} × {size}",
        "initial weights": Path(recipe["initial"]).name,
        "epochs, at most": f"{recipe['epochs']}",
        "pictures a step": f"{recipe['batch']}",
        "learning rate": f"{recipe['learning_rate']:g}, {recipe['schedule']}; decay {recipe['weight_decay']}",
        "epoch chosen on": "nothing: the schedule's last"
        if ends(config)
        else f"{CHOSEN_ON[recipe['select_on']]}, by {recipe['monitor']}",
        "probabilities": f"divided by a temperature of {config['temperature']:g}",
        "interval": f"bootstrap over {report['photos']} photos",
    }
    rows = [[name, theirs, here[name]] for name, theirs in paper.METHOD.items()]
    return paragraphs(
        "## What differs from the paper's measurement",
        table(["", "paper", "here"], rows, align="---"),
        f"The paper calls its {paper.N:,} images validation. They are the archive's TEST folder, the epoch"
        " was chosen on them, and no third set was held back.",
    )
