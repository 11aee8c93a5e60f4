from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests import paper as printed
from tests.training.cases import RECIPE, WHOLE, config, report
from training import paper
from training.card import model_card
from training.config import config_from
from training.findings import headline
from training.markdown import listed, number, table, toml
from training.results import best_in_bold


def floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    for item in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    ):
        yield from floats(item)


def of_papers_images(**changes: Any) -> dict[str, Any]:
    return report(*printed.labels_and_predictions()) | changes


def test_the_card_has_every_score_of_the_report() -> None:
    scored = report()
    card = model_card(config(), scored)
    names = ("accuracy", "mse", "rmse", "balanced_accuracy", "cohen_kappa", "matthews_corrcoef")
    scores = [scored[name] for name in (*names, "log_loss", "brier", "ece", "roc_auc_ovr")]
    scores += [
        *floats(scored["confidence_intervals"]["accuracy"]),
        *floats(scored["confidence_intervals"]["macro_f1"]),
    ]
    scores += [
        label_scores[what]
        for label_scores in scored["per_class"].values()
        for what in ("precision", "recall", "f1")
    ]
    scores += [
        scored[f"{mean}_avg"][what]
        for mean in ("macro", "weighted")
        for what in ("precision", "recall", "f1")
    ]
    assert [score for score in scores if f"{score:.4f}" not in card] == []


def test_the_card_has_every_figure_of_the_papers_table() -> None:
    card = model_card(config(), report())
    theirs = [*paper.PER_CLASS.values(), paper.MACRO, paper.WEIGHTED, (paper.ACCURACY, paper.MSE, paper.RMSE)]
    assert [score for score in floats(theirs) if f"{score:.4f}" not in card] == []


def test_the_card_has_no_score_of_its_own() -> None:
    settings, scored = config(), report()
    constants = [
        *paper.PER_CLASS.values(),
        paper.MACRO,
        paper.WEIGHTED,
        (paper.ACCURACY, paper.MSE, paper.RMSE),
    ]
    known = {f"{score:.4f}" for score in floats([settings, scored, constants])} | {
        "0.0001"
    }  # the paper's Adam
    assert set(re.findall(r"(?<![\d.])\d\.\d{4}(?!\d)", model_card(settings, scored))) <= known


def test_the_papers_constants_are_those_that_evaluation_is_tested_with() -> None:
    for label, (precision, recall, f1, support) in printed.PER_CLASS.items():
        assert [number(score) for score in paper.PER_CLASS[label]] == [precision, recall, f1]
        assert paper.SUPPORT[label] == support
    assert [*map(number, paper.MACRO), paper.N] == [*printed.MACRO]
    assert [*map(number, paper.WEIGHTED), paper.N] == [*printed.WEIGHTED]
    assert [number(score) for score in (paper.ACCURACY, paper.MSE, paper.RMSE)] == [
        printed.ACCURACY, printed.MSE, printed.RMSE,
    ]  # fmt: skip


def test_counts_of_data_photos_and_confusions_are_in_the_card() -> None:
    settings, scored = config(), report()
    card = model_card(settings, scored)
    for row in scored["confusion_matrix"]:
        assert " | ".join(map(str, row)) in card
    train = settings["training"]["data"]["train"]
    for counts in (train["images"], train["sources"], scored["sources"]):
        assert " | ".join(f"{n:,}" for n in counts.values()) in card
    for text in (
        "71 photos",
        "`bccd/7` | monocyte | 155 | 19 | neutrophil 19",
        "87 images",
        "f1" * 32,
        "ab" * 32,
    ):
        assert text in card


def test_the_recipe_in_the_card_reads_back_as_it_was() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", model_card(config(), report()), re.DOTALL)
    assert config_from(tomllib.loads(block)) == RECIPE


def test_the_front_matter_is_yaml_with_the_scores() -> None:
    yaml = pytest.importorskip("yaml")
    scored = report()
    front = yaml.safe_load(model_card(config(), scored).split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "image-classification"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "accuracy", "value": round(scored["accuracy"], 4)}


def test_a_model_selected_on_the_split_it_is_scored_on_says_so() -> None:
    honest = model_card(config(), report())
    assert "photos held out of training; nothing was selected on `test`" in honest
    assert "selected on these same images" not in honest
    chosen_on_test = config(replace(RECIPE, select_on="test"))
    assert "selected on these same images" in model_card(chosen_on_test, report())


def test_scores_on_training_images_and_on_a_leaking_split_come_with_a_warning() -> None:
    assert "was trained on these images" in model_card(config(), report() | {"split": "train"})
    leaking = model_card(config(), report() | {"photos_also_in_train": 60})
    assert "**60 of its 71 photos have other copies among the training images" in leaking


def test_the_papers_accuracy_is_judged_by_the_interval_only_where_the_images_are_the_papers() -> None:
    assert "are not comparable" in model_card(config(), report())
    assert "The paper's accuracy is" not in model_card(config(), report())
    card = model_card(config(), of_papers_images())
    assert "The paper's accuracy is inside the first" in card
    assert "Its 2,487 images have the same class counts as these" in card


@pytest.mark.parametrize(("interval", "where"), [((0.87, 0.95), "below"), ((0.7, 0.8), "above")])
def test_the_paper_is_below_or_above_an_interval_that_does_not_hold_it(
    interval: tuple[float, float], where: str
) -> None:
    scored = of_papers_images()
    scored["confidence_intervals"]["accuracy"] = list(interval)
    assert f"The paper's accuracy is {where} the first" in model_card(config(), scored)


def test_a_score_that_is_undefined_is_a_dash() -> None:
    card = model_card(config(), of_papers_images())
    assert "log loss: –" in card
    assert "None" not in card
    assert "nan" not in card.lower().split()


def test_figures_are_shown_only_if_they_were_drawn() -> None:
    card = model_card(config(), report() | {"figures": ["confusion.png", "reliability.png"]})
    assert "figures/curves.png" not in card
    assert "figures/curves.png" in model_card(config(), report())


def test_the_scores_of_the_papers_recipe_are_beside_the_papers() -> None:
    ours, theirs = report(), of_papers_images(fingerprint="other")
    card = model_card(config(), ours | {"paper_recipe": headline(theirs)})
    assert "| accuracy | 0.8689 | 0.8689 |" in card
    assert "scored on other images" in card
    assert "its recipe, run here" not in model_card(config(), ours)


def test_the_card_of_a_run_with_folds_says_that_scores_are_out_of_fold_and_no_epoch_was_selected() -> None:
    card = model_card(config(replace(RECIPE, select_on="folds", monitor="last")), report())
    assert (
        "each classified by the network that was trained without it; nothing was selected on `test`" in card
    )
    assert "The temperature and the review thresholds were selected on training photos" in card
    assert "| epoch selected on | TEST, the images that it reports | nothing: the last epoch |" in card


def test_the_card_says_what_leaving_images_to_a_person_gains() -> None:
    card = model_card(config(), report())
    for text in ("curve: 0.0417", "half of the images: 5.0 %", "ROC curve of 0.9512", "99.68 %"):
        assert text in card
    nothing = report() | {"without_cell": {"n": 0, "auroc": None, "reviewed": None}}
    assert "squares" not in model_card(config(), nothing)


def test_the_card_says_how_cells_of_other_types_are_noticed_and_what_was_trained_on() -> None:
    assert "Cells of other types were not tested." in model_card(config(), report())
    found = report() | {"other_cells": {"ig": {"n": 1360, "auroc": 0.9371, "reviewed": 0.875}}}
    table = config()
    table["training"]["data"]["others"] = {
        "archives": ["pbc-others.zip"],
        "images": {"ig": 1340},
        "fingerprint": "0123",
    }
    table["training"]["data"]["laboratories"] = {"pbc-others.zip": "pbc", "blood-cells.zip": "blood-cells"}
    card = model_card(table, found)
    for text in (
        "| ig | 1,360 | 0.9371 | 88 % |",
        "cells of no class: 1,340 ig.",
        "PBC's other cells",
        "pbc=pbc-others.zip --others ig",
    ):
        assert text in card


def test_the_licences_of_data_and_initial_weights_stand_apart_from_the_models() -> None:
    card = model_card(config(), report())
    for text in ("made from BCCD: MIT", "CC BY 4.0", "BSD-3", "weights are under Apache 2.0"):
        assert text in card
    from_file = model_card(
        config(replace(RECIPE, initial="mine/own.pth")), report() | {"archives": ["own.zip"]}
    )
    assert "own.pth, the initial weights: ask its publisher" in from_file
    assert "own: ask its publisher" in from_file
    assert "BSD-3" not in model_card(config(replace(RECIPE, initial="random")), report())


def test_the_card_says_what_the_network_looks_at() -> None:
    assert "a square around the nucleus" in model_card(config(), report())
    assert "one cell per image. Its input is the whole image." in model_card(
        config(replace(RECIPE, preprocessing=WHOLE)), report()
    )


def test_a_perfect_model_has_no_table_of_photos() -> None:
    card = model_card(config(), report() | {"misclassified_photos": []})
    assert "| photo | true class |" not in card


def test_writing_the_card_changes_neither_of_its_inputs() -> None:
    settings, scored = config(), report()
    before = copy.deepcopy((settings, scored))
    assert model_card(settings, scored) == model_card(settings, scored)
    assert (settings, scored) == before


def test_every_table_is_as_wide_as_its_head() -> None:
    widths: list[set[int]] = [set()]
    for line in model_card(config(), report()).splitlines():
        if line.startswith("|"):
            widths[-1].add(line.count("|"))
        elif widths[-1]:
            widths.append(set())
    assert len(widths) > 5
    assert all(len(width) <= 1 for width in widths)


def test_markdown_pieces() -> None:
    assert table(["", "n"], [["a", "1"]]) == "|  | n |\n| --- | ---: |\n| a | 1 |"
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert tomllib.loads(toml({"mix": {}, "a": 1e-05, "s": {"x": [1, 2.5], "t": True, "w": 'ü"'}})) == {
        "mix": {}, "a": 1e-05, "s": {"x": [1, 2.5], "t": True, "w": 'ü"'},
    }  # fmt: skip


def test_the_card_says_what_to_expect_where_the_model_has_never_been() -> None:
    assert "never seen" not in model_card(config(), report())
    figure = {
        "laboratory": "lisc-cells", "images": 200, "groups": 198, "balanced_accuracy": 0.84,
        "interval": [0.79, 0.88], "kept": 0.55, "right_when_kept": None, "kept_interval": None,
    }  # fmt: skip
    measured = config()
    measured["training"]["laboratories"] = [figure]
    card = model_card(measured, report())
    assert "84 % to 84 % of the cells got the right class (1 laboratories" in card
    assert "as 5 % of the images of laboratories left out are" in card
    assert "| lisc-cells | no | 200 | 198 | 0.840 (0.790 to 0.880) | 55 % | – |" in card
    assert "Mean 0.840; worst 0.840 (lisc-cells)." in card


def test_bold_is_the_better_score_and_only_where_one_is_better() -> None:
    values = {("0.9", "0.8"): "**0.9000** 0.8000", ("0.8", "0.9"): "0.8000 **0.9000**"}
    values |= {("0.9", "0.9"): "0.9000 0.9000", ("0.90001", "0.90002"): "0.9000 0.9000"}
    for pair, written in values.items():
        scores = [float(value) for value in pair]
        assert " ".join(best_in_bold(scores, True)) == written
        assert "*" not in " ".join(best_in_bold(scores, False))
    assert best_in_bold([0.5, None, 0.4], True, lower=True) == ["0.5000", "–", "**0.4000**"]
    assert best_in_bold([None, None, 0.4], True) == ["–", "–", "0.4000"]


def test_the_tables_of_a_card_are_bold_where_the_model_or_the_paper_is_better() -> None:
    card = model_card(config(), of_papers_images(mse=0.1, rmse=0.9))
    rows = {line.split(" | ")[0].strip("| "): line for line in card.splitlines() if line.startswith("| ")}
    assert rows["MSE"].endswith("| **0.1000** |")
    assert rows["RMSE"].endswith("| **0.8441** | 0.9000 |")
    assert "**" not in rows["Cohen's κ"]
    assert "Bold is the better score." in card
    other = model_card(config(), report())
    assert not [line for line in other.splitlines() if line.startswith("| ") and "**" in line]
