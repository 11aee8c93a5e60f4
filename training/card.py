"""The model card: Markdown in the Hugging Face form, each number from the bundle, its report or the paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training import paper
from training.markdown import bullets, listed, number, paragraphs, percent, table, toml
from training.results import (
    CHOSEN_ON,
    CURVES,
    FRAMING,
    RELIABILITY,
    RISK,
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
}

Table = Mapping[str, Any]


def model_card(config: Table, report: Table) -> str:
    """config: the bundle's `config.json`; report: its `report.json`."""
    sections = (
        front_matter,
        summary,
        limits,
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
    """YAML, of which JSON is a part: texts and lists are written as JSON."""
    scores = {"accuracy": report["accuracy"], "f1": report["macro_avg"]["f1"], "mse": report["mse"]}
    found = [{"type": name, "value": None if v is None else round(v, 4)} for name, v in scores.items()]
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
        f"    metrics: {json.dumps(found)}",
    ]
    return "\n".join(["---", *lines, "---"])


def archives(part: Table) -> str:
    return ", ".join(part["archives"])


def summary(config: Table, report: Table) -> str:
    intervals = report["confidence_intervals"]
    low, high = intervals["accuracy"]
    return paragraphs(
        f"# {config['name']} {config['version']}",
        f"A ResNet18 that tells {listed([f'{label}s' for label in config['labels']])} apart in pictures"
        " of stained blood smears, as a bundle for Leuko: calibrated probabilities, a distance from the cells"
        " that it was trained on, and a mark on what a person should look at.",
        f"Accuracy on `{report['split']}`: **{report['accuracy']:.4f}**, {percent(intervals['level'])}"
        f" interval {low:.4f} to {high:.4f}, from {report['n']:,} images of {report['photos']} source"
        " photos.",
        "**Not for diagnosis.**",
    )


def limits(config: Table, report: Table) -> str:
    return paragraphs(
        "## Intended use and limits",
        bullets(
            [
                "For research, teaching and the testing of software. It is no medical device, and no decision"
                " about a patient may rest on it.",
                f"It knows {len(config['labels'])} classes: no basophils, bands or blasts. Those are called"
                " one of the classes that it knows, and nothing promises that they are sent to review.",
                f"It judges one cell a picture: {FRAMING[config['preprocessing']['framing']]}.",
                f"{report['photos']} photos stand behind the scores on `{report['split']}`. Copies of one"
                f" photo are mostly right or wrong together: the photos, not the {report['n']:,} images, say"
                " how sure the scores are.",
                f"They come from {archives(report)} alone. Other stains, microscopes and laboratories are not"
                " measured here.",
                review(config, report),
            ]
        ),
    )


def review(config: Table, report: Table) -> str:
    limit, sent = config["review"], report["review"]
    return (
        f"`review` asks a person to look: the confidence is below {limit['confidence']:g} (`low_confidence`)"
        f" or the `ood_score` above {limit['ood_score']:g} (`out_of_distribution`). The thresholds were set"
        f" to send about {percent(limit['share'])} of the validation images. Of `{report['split']}` they send"
        f" {percent(sent['share'], 1)} ({sent['n']:,} images; {sent['low_confidence']:,} for the first"
        f" reason, {sent['out_of_distribution']:,} for the second). Among them are {sent['wrong']:,} of the"
        f" {misclassified(report):,} misclassified images; accuracy on the rest is"
        f" {number(sent['accuracy_of_the_rest'])}."
    )


def data(config: Table, report: Table) -> str:
    parts = {
        "training": config["training"]["data"]["train"],
        "validation": config["training"]["data"]["validation"],
        f"`{report['split']}`": scored_data(report),
    }
    rows = [
        [f"{name}, {what}", *(f"{part[key].get(label, 0):,}" for label in config["labels"])]
        for name, part in parts.items()
        for key, what in (("images", "images"), ("sources", "photos"))
    ]
    kinds = sorted({Path(name).stem for part in parts.values() for name in part["archives"]})
    licences = [LICENCES.get(kind, f"{kind}: ask its publisher") for kind in kinds]
    return paragraphs(
        "## Data",
        table(["", *config["labels"]], rows),
        "Fingerprints are sha256 over the sorted hashes, classes and splits of the files.",
        bullets(f"{name}: {archives(part)}, `{part['fingerprint']}`" for name, part in parts.items()),
        "The weights are under Apache 2.0. What they were made from has licences of its own:",
        bullets([*licences, *initial_licence(config["training"]["recipe"]["initial"])]),
    )


def scored_data(report: Table) -> Table:
    images = {label: one["support"] for label, one in report["per_class"].items()}
    return {**report, "images": images}


def initial_licence(initial: str) -> list[str]:
    if initial == "random":
        return []
    if "imagenet" in Path(initial).name:
        return ["torchvision's ImageNet weights, where training starts: BSD-3"]
    return [f"{Path(initial).name}, where training starts: ask its publisher"]


def recipe(config: Table, report: Table) -> str:
    measured = config["training"]["validation"]
    has_curves = CURVES in report["figures"]
    return paragraphs(
        "## Recipe",
        f"torchvision's {config['architecture']}, its last layer replaced by {len(config['labels'])} logits."
        " As `leuko-train fit --recipe` reads it:",
        f"```toml\n{toml(config['training']['recipe'])}\n```",
        f"Accuracy on {measured['n']:,} images of {CHOSEN_ON[config['training']['recipe']['select_on']]},"
        f" classes and photos weighing the same: {measured['accuracy']:.4f}.",
        f"![Loss and accuracy by epoch](figures/{CURVES})" if has_curves else "",
        "The training curves are of augmented pictures, while the weights still change."
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
leuko-train data {" ".join(config["training"]["data"]["train"]["archives"])}
leuko-train fit --recipe recipe.toml --run {run}
leuko-train export --run {run} --out {folder} --version {config["version"]}
leuko-train report --bundle {folder} --split {report["split"]} --run {run} --engine {report["engine"]["name"]}
```

The sha256 of the scored bundle's `config.json`, before the scores were written into it, is
`{report["model"]["sha256"]}`."""


def citation(_: Table, __: Table) -> str:
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
    judges = CHOSEN_ON[config["training"]["recipe"]["select_on"]]
    return paragraphs(
        "## Calibration",
        f"Logits are divided by {config['temperature']:g}, which was set on {judges}."
        f" On `{report['split']}`:",
        bullets(
            [
                f"expected calibration error (ECE, 15 bins): {number(report['ece'])}",
                f"log loss: {number(report['log_loss'])}",
                f"Brier score (0 to 2): {number(report['brier'])}",
            ]
        ),
        f"![Share right by confidence, and images by confidence](figures/{RELIABILITY})",
    )


def selective(_: Table, report: Table) -> str:
    """What is gained by leaving images to a person, and what the measure of strangeness is worth."""
    curve, float32, windows = report["risk_coverage"], report["float32"], report["without_cell"]
    kept = dict(zip(curve["coverage"], curve["risk"], strict=True))
    return paragraphs(
        "## Leaving images to a person",
        f"Area under the risk–coverage curve: {number(curve['area'])}. Of the most confident half of the"
        f" images {percent(kept[0.5], 1)} are wrong, of the most confident nine tenths"
        f" {percent(kept[0.9], 1)}, of all {percent(kept[1.0], 1)}.",
        f"![Share wrong by share of images kept](figures/{RISK})",
        f"`ood_score` tells these images from {windows['n']:,} squares of them without the cell with an area"
        f" under the ROC curve of {number(windows['auroc'])}; {percent(windows['reviewed'] or 0, 1)} of those"
        " squares are sent to review. Cells of other types were not measured on this split."
        if windows["n"]
        else "",
        f"The engine gives {percent(float32['same_label'], 2)} of the images the label that the network gives"
        f" in float32, whose accuracy is {number(float32['accuracy'])}.",
    )
