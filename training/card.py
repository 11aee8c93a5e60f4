"""The model card: Markdown in Hugging Face's format, filled from the bundle, its report and the paper."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.engine.bundle import CLASSES, WEIGHTS
from app.imaging.quality import REASONS
from training import paper
from training.laboratory import Laboratory, table_of
from training.markdown import bullets, listed, number, paragraphs, percent, table, toml
from training.results import (
    CURVES,
    FRAMING,
    RELIABILITY,
    RISK,
    SELECTED_ON,
    differences,
    misclassified,
    photos,
    results,
)

TAGS = ("medical", "hematology", "blood-cells", "white-blood-cells", "resnet18", "openvino", "onnx")
METRICS = ("accuracy", "precision", "recall", "f1", "mse")
LICENCES = {
    "blood-cells": "`paultimothymooney/blood-cells` of Kaggle, made from BCCD: MIT",
    "pbc-cells": "PBC (Acevedo et al. 2020, Hospital Clínic Barcelona): CC BY 4.0",
    "pbc-others": "PBC's other cells (basophils, erythroblasts, immature granulocytes, platelets): CC BY 4.0",
    "lisc-cells": "LISC (Rezatofighi and Soltanian-Zadeh 2011, Tehran): free for research and education",
    "raabin-cells": "Raabin-WBC (Kouzehkanan et al. 2022, Tehran): free access, cite Sci Rep 12:1123",
}

Table = Mapping[str, Any]


def model_card(config: Table, report: Table) -> str:
    """Write the card; config: the bundle's `config.json`, report: its `report.json`."""
    sections = (
        front_matter,
        summary,
        limits,
        elsewhere,
        data,
        recipe,
        results,
        photos,
        calibration,
        selective,
        differences,
        usage,
        reproduction,
        citation,
    )
    return paragraphs(*(section(config, report) for section in sections)) + "\n"


def front_matter(config: Table, report: Table) -> str:
    """Write the YAML front matter; values are written as JSON, a subset of YAML."""
    scores = {"accuracy": report["accuracy"], "f1": report["macro_avg"]["f1"], "mse": report["mse"]}
    metrics = [{"type": name, "value": None if v is None else round(v, 4)} for name, v in scores.items()]
    lines = [
        "license: apache-2.0",
        "library_name: leuko",
        "pipeline_tag: image-classification",
        f"tags: {json.dumps(TAGS)}",
        f"metrics: {json.dumps(METRICS)}",
        "model-index:",
        f"- name: {json.dumps(config['name'])}",
        "  results:",
        '  - task: {"type": "image-classification"}',
        f"    dataset: {json.dumps({'type': 'images', 'name': archives(report), 'split': report['split']})}",
        f"    metrics: {json.dumps(metrics)}",
    ]
    return "\n".join(["---", *lines, "---"])


def archives(data: Table) -> str:
    return ", ".join(data["archives"])


def summary(config: Table, report: Table) -> str:
    intervals = report["confidence_intervals"]
    low, high = intervals["accuracy"]
    return paragraphs(
        f"# {config['name']} {config['version']}",
        f"A ResNet18 that classifies {cells_of(config['labels'])} in images"
        " of stained blood smears, packaged as a Leuko bundle: calibrated probabilities, an"
        " out-of-distribution score, and a flag on images that a person should review.",
        expectation(config),
        f"Accuracy on `{report['split']}`: **{report['accuracy']:.4f}**, {percent(intervals['level'])}"
        f" interval {low:.4f} to {high:.4f}, from {report['n']:,} images of {report['photos']} source"
        " photos.",
        "**Not for diagnosis.**",
    )


def cells_of(labels: Sequence[str]) -> str:
    if paper.has_classes(labels):
        return listed([f"{label}s" for label in labels])
    return f"cells ({listed(labels)})"


def known_types(labels: Sequence[str]) -> str:
    if paper.has_classes(labels):
        return (
            f"It has {len(labels)} classes, without basophils, band cells and blasts. Such cells get one of"
            " its classes, and it is not guaranteed that they are sent to review."
        )
    return (
        f"It has {len(labels)} classes: {listed(labels)}. Cells of other types get one of them, and it is not"
        " guaranteed that they are sent to review."
    )


def expectation(config: Table) -> str:
    """Write what a laboratory may expect that has not verified the model, if that was measured."""
    if not (figures := [Laboratory(**each) for each in config["training"].get("laboratories", [])]):
        return ""
    right = [each.balanced_accuracy for each in figures]
    kept = [each.kept for each in figures]
    when_kept = [each.right_when_kept for each in figures if each.right_when_kept is not None]
    return (
        f"**In a laboratory that it has never seen**, {percent(min(right))} to {percent(max(right))} of the"
        f" cells got the right class ({len(figures)} laboratories, each left out of training once; classes"
        f" weigh the same). {percent(min(kept))} to {percent(max(kept))} had no review mark for low"
        f" confidence or an unusual look, and of those {percent(min(when_kept, default=0))} to"
        f" {percent(max(when_kept, default=0))} were right. Verify it on your own labelled cells (`leuko"
        " evaluate`) before you rely on it; until then a person should look at every cell."
    )


def limits(config: Table, report: Table) -> str:
    return paragraphs(
        "## Intended use and limits",
        bullets(
            [
                "For research, teaching and software testing. It is not a medical device and must not be"
                " used for decisions about patients.",
                known_types(config["labels"]),
                "It classifies one cell per image. Its input is"
                f" {FRAMING[config['preprocessing']['framing']]}.",
                f"The scores on `{report['split']}` come from {report['photos']} photos. Copies of one"
                " photo are mostly right or wrong together, so the confidence intervals are over photos, not"
                f" over the {report['n']:,} images.",
                f"The photos are from {archives(report)} only. Other stains, microscopes and laboratories"
                f" were not {'part of that' if config['training'].get('laboratories') else 'tested here'}.",
                review(config, report),
            ]
        ),
    )


def review(config: Table, report: Table) -> str:
    limit, sent = config["review"], report["review"]
    reasons = ", ".join(f"{n:,} `{reason}`" for reason, n in sent["reasons"].items() if n)
    chosen = (
        f"as {percent(limit['share'])} of the images of laboratories left out are"
        if config["training"].get("laboratories")
        else f"each in about {percent(limit['share'] / 2, 1)} of the validation images"
    )
    familiar = limit.get("familiar")
    known = (
        " Pictures that look like those of a laboratory trained on have thresholds of their own,"
        f" {familiar['confidence']:.3g} and {familiar['ood_score']:.3g}."
        if familiar
        else ""
    )
    return (
        f"`review` is set if the confidence is below {limit['confidence']:.3g} (`low_confidence`)"
        f" or the `ood_score` is above {limit['ood_score']:.3g} (`out_of_distribution`), {chosen}.{known} It"
        f" is also set if the picture cannot be judged ({', '.join(f'`{reason}`' for reason in REASONS)}). On"
        f" `{report['split']}` it is set for {percent(sent['share'], 1)} ({sent['n']:,} images: {reasons})."
        f" Among them are {sent['wrong']:,} of the {misclassified(report):,} misclassified images; accuracy"
        f" on the rest is {number(sent['accuracy_of_the_rest'])}."
    )


def elsewhere(config: Table, report: Table) -> str:
    """Write what to expect in a laboratory that the model has never seen, if that was measured."""
    del report
    if not (figures := config["training"].get("laboratories")):
        return ""
    return paragraphs(
        "## In a laboratory that it has never seen",
        "Each laboratory was left out once and scored by the network that was trained without it, with the"
        " temperature and the thresholds of this bundle. *Kept* are the images not sent to review for"
        " confidence or `ood_score`. Intervals: 95 %, over photos or slides.",
        table_of([Laboratory(**figure) for figure in figures]),
    )


def data(config: Table, report: Table) -> str:
    splits = {
        "training": config["training"]["data"]["train"],
        "validation": config["training"]["data"]["validation"],
        f"`{report['split']}`": scored_data(report),
    }
    others = config["training"]["data"].get("others")
    rows = [
        [f"{name}, {what}", *(f"{split[key].get(label, 0):,}" for label in config["labels"])]
        for name, split in splits.items()
        for key, what in (("images", "images"), ("sources", "photos"))
    ]
    if others:
        splits["cells of other types"] = others
    kinds = sorted({Path(name).stem for split in splits.values() for name in split["archives"]})
    licences = [LICENCES.get(kind, f"{kind}: ask its publisher") for kind in kinds]
    return paragraphs(
        "## Data",
        table(["", *config["labels"]], rows),
        f"Beside these, cells of no class: {counted(others['images'])}." if others else "",
        "Fingerprints (sha256 over the sorted hashes, classes and splits of the files):",
        bullets(f"{name}: {archives(split)}, `{split['fingerprint']}`" for name, split in splits.items()),
        "The weights are under Apache 2.0. The data and initial weights have their own licences:",
        bullets([*licences, *initial_licence(config["training"]["recipe"]["initial"])]),
    )


def counted(images: Mapping[str, int]) -> str:
    return listed([f"{n:,} {label}" for label, n in images.items()])


def scored_data(report: Table) -> Table:
    images = {label: scores["support"] for label, scores in report["per_class"].items()}
    return {**report, "images": images}


def initial_licence(initial: str) -> list[str]:
    if initial == "random":
        return []
    if Path(initial).name == WEIGHTS:
        return ["the weights of a former bundle, the initial weights: its model card has their terms"]
    if "imagenet" in Path(initial).name:
        return ["torchvision's ImageNet weights, the initial weights: BSD-3"]
    return [f"{Path(initial).name}, the initial weights: ask its publisher"]


def recipe(config: Table, report: Table) -> str:
    measured = config["training"]["validation"]
    has_curves = CURVES in report["figures"]
    return paragraphs(
        "## Recipe",
        f"torchvision's {config['architecture']} with {len(config['labels'])} output logits. The recipe, as"
        " `leuko-train fit --recipe` reads it:",
        f"```toml\n{toml(config['training']['recipe'])}\n```",
        f"Validation accuracy, with equal weights of classes and photos: {measured['accuracy']:.4f} on"
        f" {measured['n']:,} images of {SELECTED_ON[config['training']['recipe']['select_on']]}.",
        f"![Loss and accuracy by epoch](figures/{CURVES})" if has_curves else "",
        "The training curves are of augmented images, measured while the weights change."
        if has_curves
        else "",
    )


def usage(config: Table, _: Table) -> str:
    folder = f"models/{config['name']}"
    return f"""## How to use it

```sh
leuko predict --bundle {folder} cell.jpg
leuko serve --bundle {folder}
curl -F files=@cell.jpg http://127.0.0.1:8000/predict  # in another terminal
```"""


def reproduction(config: Table, report: Table) -> str:
    run, folder = f"runs/{config['training']['recipe']['name']}", f"models/{config['name']}"
    return f"""## How to reproduce it

With the recipe above as `recipe.toml`:

```sh
leuko-train data {data_arguments(config["training"]["data"], config["labels"])}
leuko-train fit --recipe recipe.toml --run {run}
leuko-train export --run {run} --out {folder} --version {config["version"]}
leuko-train report --bundle {folder} --split {report["split"]} --run {run} --engine {report["engine"]["name"]}
```

The sha256 of the bundle's `config.json` before the scores were written into it is
`{report["model"]["sha256"]}`."""


def data_arguments(data: Table, labels: Sequence[str]) -> str:
    """Return the archives, with laboratories that are named otherwise, then classes and other cells."""
    own = [] if tuple(labels) == CLASSES else ["--classes", shlex.quote(",".join(labels))]
    others = data.get("others", {"archives": [], "images": {}})
    laboratories = data.get("laboratories", {})
    names = dict.fromkeys([*data["train"]["archives"], *others["archives"]])
    archives = [
        name if laboratories.get(name, Path(name).stem) == Path(name).stem else f"{laboratories[name]}={name}"
        for name in names
    ]
    outliers = ["--others", *others["images"]] if others["images"] else []
    return " ".join([*archives, *own, *outliers])


def other_cells(report: Table) -> str:
    """Write how well cells of no class are noticed."""
    if not (types := report.get("other_cells")):
        return "Cells of other types were not tested."
    rows = [
        [label, f"{found['n']:,}", number(found["auroc"]), percent(found["reviewed"])]
        for label, found in types.items()
    ]
    return paragraphs(
        "Cells of other types, kept out of training (cells of the same types and laboratories were in it):",
        table(["", "cells", "area under the ROC curve of `ood_score`", "sent to review"], rows),
    )


def citation(config: Table, _: Table) -> str:
    if not paper.has_classes(config["labels"]):
        return ""
    return f"""## Citation

The method, the classes and the first measurement are the paper's ({paper.LICENCE}):

```bibtex
@article{{tarigan{paper.YEAR}deep,
  title = {{{paper.TITLE}}},
  author = {{{" and ".join(paper.AUTHORS)}}},
  journal = {{{paper.JOURNAL}}},
  year = {{{paper.YEAR}}},
  month = {{{paper.MONTH}}},
  day = {{{paper.DAY}}},
}}
```"""


def calibration(config: Table, report: Table) -> str:
    images = SELECTED_ON[config["training"]["recipe"]["select_on"]]
    return paragraphs(
        "## Calibration",
        f"Logits are divided by a temperature of {config['temperature']:g}, which was fitted on {images}."
        f" On `{report['split']}`:",
        bullets(
            [
                f"expected calibration error (ECE, 15 bins): {number(report['ece'])}",
                f"log loss: {number(report['log_loss'])}",
                f"Brier score (0 to 2): {number(report['brier'])}",
            ]
        ),
        f"![Accuracy by confidence, and number of images by confidence](figures/{RELIABILITY})",
    )


def selective(_: Table, report: Table) -> str:
    """Write the effect of review on the error rate, and the quality of the OOD score."""
    curve, float32, windows = report["risk_coverage"], report["float32"], report["without_cell"]
    risk = dict(zip(curve["coverage"], curve["risk"], strict=True))
    return paragraphs(
        "## Review by a person",
        f"Area under the risk–coverage curve: {number(curve['area'])}. Error rate of the most confident half"
        f" of the images: {percent(risk[0.5], 1)}; of the most confident 90 %: {percent(risk[0.9], 1)}; of"
        f" all: {percent(risk[1.0], 1)}.",
        f"![Error rate by coverage](figures/{RISK})",
        f"`ood_score` separates these images from {windows['n']:,} squares cut from them beside the cell with"
        f" an area under the ROC curve of {number(windows['auroc'])}; {percent(windows['reviewed'] or 0, 1)}"
        " of those squares are sent to review."
        if windows["n"]
        else "",
        other_cells(report),
        f"For {percent(float32['same_label'], 2)} of the images the engine's label is that of the network in"
        f" float32, whose accuracy is {number(float32['accuracy'])}.",
    )
