from __future__ import annotations

import ast
import json
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest

import training.config
from training.config import (
    RECIPES,
    Augmentation,
    Precision,
    TrainConfig,
    config_from,
    load_recipe,
    read_config,
    save_config,
)
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


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = " + "[" * 2000, "nested too deeply"),
        ("batch = " + "{a=" * 2000, "nested too deeply"),
        ("batch." + "a." * 2000 + "a = 1", "batch = … must be a whole number of at least 1"),
        ("x = " + "1" * 5000, "Exceeds the limit"),
        ("name = 0x" + "f" * 9000, "name = … must be text that is not empty"),
    ],
)
def test_values_that_are_deep_or_long_without_end_are_errors_in_words(
    tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    for name, overrides in ((str(tmp_path / "recipe.toml"), ()), ("paper", (text,))):
        with pytest.raises(RecipeError, match=complaint):
            load_recipe(name, overrides)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(RecipeError, match="is not JSON"):
        read_config(tmp_path / "config.json")


def test_an_override_of_one_field_keeps_the_others_of_its_table() -> None:
    before, after = load_recipe("default"), load_recipe("default", ["augmentation.stain=0.0", "mix={a=1}"])
    assert after.augmentation == replace(before.augmentation, stain=0.0)
    assert after.mix == {"a": 1}


def test_whole_numbers_are_accepted_for_numbers_and_arrays_for_tuples() -> None:
    config = load_recipe(
        "default", ["learning_rate=1", "augmentation.scale=[1, 2]", "preprocessing.std=[1, 1, 1]"]
    )
    assert (config.learning_rate, config.augmentation.scale) == (1.0, (1.0, 2.0))
    assert config.preprocessing.std == (1.0, 1.0, 1.0)


ONE_OF_SPLITS = 'must be one of "holdout", "folds", "laboratories", "val", "test"'
WRONG = [
    ('select_on="fold"', f'select_on = "fold" {ONE_OF_SPLITS}'),
    ('batch="32"', 'batch = "32" must be a whole number of at least 1'),
    ("batch=2.5", "batch = 2.5 must be a whole number of at least 1"),
    ("epochs=-3", "epochs = -3 must be a whole number of at least 1"),
    ("epochs=true", "epochs = true must be a whole number of at least 1"),
    (
        "shared_epochs=1\nselect_on='laboratories'",
        'shared_epochs = 1 must be 0 with select_on = "laboratories": every archive is left out once',
    ),
    ("folds=1", 'folds = 1 must be a whole number of at least 2 with select_on = "folds"'),
    ("folds=0", "folds = 0 must be a whole number of at least 1"),
    ("patience=-1", "patience = -1 must be a whole number of at least 0"),
    ("seed=5000000000", "seed = 5000000000 must be a whole number of at least 0 and at most 4000000000"),
    ("detail=16", "detail = 16 must be a whole number of at least 32"),
    ("coarse_size=0", "coarse_size = 0 must be a whole number of at least 32"),
    ("learning_rate=0", "learning_rate = 0 must be a number above 0"),
    ("learning_rate=nan", "learning_rate = NaN must be a number above 0"),
    ("learning_rate=true", "learning_rate = true must be a number above 0"),
    ("weight_decay=inf", "weight_decay = Infinity must be a number of at least 0"),
    ("holdout=1.0", "holdout = 1.0 must be a number above 0 and below 1"),
    ("average=1.0", "average = 1.0 must be a number of at least 0 and below 1"),
    ("label_smoothing=1.5", "label_smoothing = 1.5 must be a number of at least 0 and at most 1"),
    ("precision=32", 'precision = 32 must be one of "bf16-mixed", "bf16-true",'),
    ('monitor="accuracy"', 'monitor = "accuracy" must be one of "val_loss", "val_accuracy", "last"'),
    ('name=""', 'name = "" must be text that is not empty'),
    ("initial=1979-05-27", 'initial = "1979-05-27" must be text that is not empty'),
    ("mix=3", "mix = 3 must be a table"),
    ("mix={a=0, b=0}", 'mix = {"a": 0, "b": 0} must have a share above 0'),
    ("mix={a=-1, b=2}", "mix.a = -1 must be a number of at least 0"),
    ("augmentation=3", "augmentation = 3 must be a table"),
    (
        "augmentation.rotation=270",
        "augmentation.rotation = 270 must be a number of at least 0 and at most 180",
    ),
    ("augmentation.shear=90", "augmentation.shear = 90 must be a number of at least 0 and below 90"),
    ("augmentation.scale=[1.4, 0.6]", "augmentation.scale = [1.4, 0.6] must be the smaller factor, then"),
    ("augmentation.scale=[0, 1]", "augmentation.scale.0 = 0 must be a number above 0"),
    ("augmentation.scale=[0.5]", "augmentation.scale = [0.5] must be an array of 2 numbers"),
    ("augmentation.scale=1.2", "augmentation.scale = 1.2 must be an array of 2 numbers"),
    ("augmentation.blur=2", "augmentation.blur = 2 must be a number of at least 0 and at most 1"),
    ("augmentation.flip_vertical=1", "augmentation.flip_vertical = 1 must be true or false"),
    ("preprocessing=3", "preprocessing = 3 must be a table"),
    ('preprocessing.framing="all"', 'preprocessing.framing = "all" must be one of "nucleus", "whole"'),
    ("preprocessing.mean=[0.5, 0.5, 0.5, 0.5]", "must be an array of 3 numbers"),
    ("preprocessing.std=[1, 1, 0]", "preprocessing.std.2 = 0 must be a number above 0"),
    ("epocs=3", "unknown setting epocs (did you mean epochs?)"),
    ("preprocessing={sise=3}", "unknown setting preprocessing.sise (did you mean preprocessing.size?)"),
    ("augmentation.stian=1", "unknown setting augmentation.stian (did you mean augmentation.stain?)"),
    ("xyz=1", "unknown setting xyz (known: augmentation, average, batch, "),
]


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("default", [override])
    assert str(caught.value).startswith("recipe default: ")
    assert message in str(caught.value)
    assert "; " not in str(caught.value)


def test_all_wrong_fields_are_named_at_once_in_one_line(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('select_on = "fold"\nbatch = "32"\nepocs = 3\n[augmentation]\nscale = [2.0, 1.0]\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(recipe), ["epochs=-3", "preprocessing.size=16"])
    assert str(caught.value) == (
        f'recipe {recipe}: select_on = "fold" {ONE_OF_SPLITS}; '
        "epochs = -3 must be a whole number of at least 1; "
        'batch = "32" must be a whole number of at least 1; '
        "preprocessing.size = 16 must be a whole number of at least 32; "
        "augmentation.scale = [2.0, 1.0] must be the smaller factor, then the larger one; "
        "unknown setting epocs (did you mean epochs?)"
    )


def test_a_configuration_of_an_older_run_still_loads(tmp_path: Path) -> None:
    """Version 0.1.0 wrote fewer fields."""
    older = {"name": "default", "epochs": 20, "preprocessing": {"size": 224, "framing": "nucleus"}}
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert read_config(tmp_path / "config.json") == TrainConfig(epochs=20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; run `leuko-train fit` first"),
        ("{", "is not JSON"),
        ("[3]", r"config\.json: \[3\] must be a table"),
        ('{"epochs": "3"}', r'config\.json: epochs = "3" must be a whole number'),
    ],
)
def test_a_runs_configuration_that_cannot_be_used_is_refused_by_path(
    content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecipeError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("override", ["epoch=3", "preprocessing={sise=3}"])
def test_an_unknown_setting_is_refused_by_name(override: str) -> None:
    with pytest.raises(RecipeError, match=r"epoch|sise"):
        load_recipe("paper", [override])


def test_an_override_that_is_not_toml_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"initial=random is not TOML .* in quotes"):
        load_recipe("paper", ["initial=random"])


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_bytes(b"\xef\xbb\xbfepochs = 7\r\n")
    assert load_recipe(str(recipe)).epochs == 7


def test_a_recipe_that_is_not_a_toml_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.toml").write_bytes(b"\xff\xd8\xff")
    for path in (tmp_path, tmp_path / "image.toml"):
        with pytest.raises(RecipeError, match="is not a TOML file"):
            load_recipe(str(path))


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="default, laboratories, paper"):
        load_recipe("papers")


def test_every_precision_of_lightning_is_allowed_and_no_other() -> None:
    from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT_STR, _PRECISION_INPUT_STR_ALIAS

    assert {*get_args(_PRECISION_INPUT_STR), *get_args(_PRECISION_INPUT_STR_ALIAS)} == set(
        get_args(Precision)
    )


@pytest.mark.parametrize("table", [TrainConfig, Augmentation])
def test_every_field_of_the_configuration_says_what_it_means(table: Any) -> None:
    tree = ast.parse(Path(training.config.__file__).read_text())
    (body,) = (
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == table.__name__
    )
    documented = {
        field.target.id
        for field, after in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
    assert documented == {field.name for field in fields(table)}


def test_the_defaults_are_within_their_bounds() -> None:
    assert config_from({}) == config_from(TrainConfig().as_dict()) == TrainConfig()
