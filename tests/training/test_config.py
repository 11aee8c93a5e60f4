from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from training.config import RECIPES, TrainConfig, load_recipe, read_config, save_config
from training.errors import RecipeError


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_every_shipped_recipe_loads_and_survives_saving(name: str, tmp_path: Path) -> None:
    config = load_recipe(name)
    assert config.name == name
    save_config(config, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json") == config


def test_the_paper_recipe_is_the_papers_method() -> None:
    config = load_recipe("paper")
    assert (config.batch, config.learning_rate, config.epochs) == (32, 1e-4, 10)
    assert (config.weight_decay, config.label_smoothing, config.schedule) == (0, 0, "constant")
    assert (config.preprocessing.size, config.preprocessing.framing) == (224, "whole")
    assert config.preprocessing.mean == (0.485, 0.456, 0.406)
    assert (config.select_on, config.monitor) == ("test", "val_accuracy")


def test_the_default_recipe_never_selects_on_test() -> None:
    assert load_recipe("default").select_on == "folds"
    assert load_recipe("default").monitor == "last"


def test_an_override_replaces_a_field() -> None:
    assert load_recipe("paper", ["epochs=3", 'initial="random"']) == load_recipe(
        "paper", ['initial="random"', "epochs=3"]
    )
    assert load_recipe("paper", ["epochs=3"]).epochs == 3


def test_an_override_of_one_knob_leaves_the_others_of_its_table() -> None:
    before, after = load_recipe("default"), load_recipe("default", ["augmentation.stain=0.0", "mix={a=1}"])
    assert after.augmentation == replace(before.augmentation, stain=0.0)
    assert after.mix == {"a": 1}


@pytest.mark.parametrize("override", ["epoch=3", "preprocessing={sise=3}"])
def test_an_unknown_setting_is_refused_by_name(override: str) -> None:
    with pytest.raises(RecipeError, match=r"epoch|sise"):
        load_recipe("paper", [override])


def test_an_override_that_is_not_toml_is_refused() -> None:
    with pytest.raises(RecipeError, match="not TOML"):
        load_recipe("paper", ["initial=random"])


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="default, paper"):
        load_recipe("papers")


def test_every_field_of_the_configuration_says_what_it_means() -> None:
    source = (Path(__file__).parents[2] / "training" / "config.py").read_text()
    for field in TrainConfig.__dataclass_fields__:
        after = source.split(f"\n    {field}:", 1)[1].splitlines()
        assert after[1].strip().startswith('"""'), field
