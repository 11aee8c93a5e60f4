from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from app.engine.bundle import CLASSES
from tests.disk import full_beyond
from training.config import TrainConfig, load_recipe
from training.data import Row
from training.errors import DataError
from training.fit import fit
from training.folds import members_of, save_mean, save_start, start_without
from training.module import BEST, Finetuning, load_checkpoint
from training.network import Network
from training.patches import cut_patches
from training.rows import fold_path, fold_paths

HALF = 20 * 2**20  # bytes; a network has 45 million


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    recipe = load_recipe("default", ["mix={slides=1}", "workers=0", "samples=8", "batch=8", "detail=32"])
    return replace(recipe, folds=1)  # a recipe has at least two


@pytest.fixture
def trained(config: TrainConfig, tmp_path: Path) -> Path:
    """Return a run whose only fold has been trained."""
    best = fold_path(tmp_path, 0) / BEST
    best.parent.mkdir()
    module = Finetuning(Network(len(CLASSES), config.preprocessing), config)
    torch.save({"state_dict": module.state_dict()}, best)
    return tmp_path


def test_initial_weights_that_were_half_written_do_not_exist(config: TrainConfig, trained: Path) -> None:
    best, weights = fold_path(trained, 0) / BEST, trained / "weights.safetensors"
    with full_beyond(HALF), pytest.raises(SafetensorError):
        save_start(best, config, weights)
    assert not weights.exists()
    save_start(best, config, weights)
    assert torch.equal(load_file(weights)["fc.bias"], load_checkpoint(best, config).trunk.fc.bias)


def test_a_mean_that_was_half_written_does_not_replace_a_complete_one(
    config: TrainConfig, trained: Path, rows: list[Row]
) -> None:
    patches = cut_patches(rows, config, trained)
    save_mean(fold_paths(trained), rows, patches, config, trained)
    whole = load_checkpoint(trained / BEST, config)
    with full_beyond(HALF), pytest.raises(RuntimeError):
        save_mean(fold_paths(trained), rows, patches, config, trained)
    assert torch.equal(load_checkpoint(trained / BEST, config).trunk.fc.bias, whole.trunk.fc.bias)


def test_training_first_on_other_laboratories_needs_one(rows: list[Row], tmp_path: Path) -> None:
    config = load_recipe("default", ["mix={slides=1}", "folds=2", "workers=0", "detail=32"])
    with pytest.raises(DataError, match="--set shared_epochs=0"):
        fit(rows, config, tmp_path / "run")


@pytest.mark.parametrize(("laboratory", "start"), [("bccd", "imagenet"), ("lisc", "home.safetensors")])
def test_a_network_does_not_start_from_weights_that_have_seen_the_laboratory_left_out(
    laboratory: str, start: str, rows: list[Row]
) -> None:
    recipe = load_recipe("laboratories", ['initial_laboratories=["bccd", "pbc"]'])
    held_out = [replace(row, laboratory=laboratory) for row in rows]
    assert start_without(held_out, "home.safetensors", recipe) == start


def test_the_mean_is_of_networks_that_start_from_the_same_trained_weights(
    rows: list[Row], tmp_path: Path
) -> None:
    both = [replace(row, laboratory=name) for name in ("bccd", "lisc", "raabin") for row in rows]
    recipe = load_recipe("laboratories")
    names = [path.name for path in members_of(both, both, recipe, tmp_path)]
    assert names == ["all", "fold-2", "fold-3"]
    untrained = replace(recipe, initial="imagenet", initial_laboratories=())
    assert [path.name for path in members_of(both, both, untrained, tmp_path)] == ["all"]


def test_folds_of_one_laboratory_all_start_from_the_same_weights(
    config: TrainConfig, rows: list[Row]
) -> None:
    seen = replace(config, initial_laboratories=tuple({row.laboratory for row in rows}))
    assert start_without(rows, "shared.safetensors", seen) == "shared.safetensors"
