"""The model card on trust: what a probability is worth, and which images are better left to a person."""

from __future__ import annotations

from training.markdown import bullets, number, paragraphs, percent
from training.results import CHOSEN_ON, RELIABILITY, RISK, Table


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
