"""Everything that a training run depends on, one field a knob."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from app.imaging.framing import Preprocessing
from training.errors import RecipeError

RECIPES = Path(__file__).with_name("recipes")


@dataclass(frozen=True)
class Augmentation:
    rotation: float = 180.0
    """Turn by up to so many degrees either way."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Side of the crop times a factor between these, log-uniform."""
    shift: float = 0.0
    """Move the crop by up to this share of its side."""
    shear: float = 0.0
    """Shear by up to so many degrees either way."""
    flip_horizontal: bool = True
    """Mirror left and right, half of the time."""
    flip_vertical: bool = True
    """Mirror top and bottom, half of the time."""
    brightness: float = 0.0
    """Brightness times a factor within 1 ± this."""
    contrast: float = 0.0
    """Contrast times a factor within 1 ± this."""
    saturation: float = 0.0
    """Saturation times a factor within 1 ± this."""
    tint: float = 0.0
    """Each channel times a factor within 1 ± this: lamp and white balance, hue but little."""
    stain: float = 0.0
    """Standard deviation of what is added to each entry of the channels' identity in optical density."""
    strength: float = 0.0
    """Standard deviation of the logarithm of a factor of optical density: pale and dark stains."""
    exchange: float = 0.0
    """Share of pictures whose channels take on part of the density spread of another in the batch."""
    blur: float = 0.0
    """Share of pictures whose sharpness is lowered as if taken at down to 0.4 of the resolution."""


@dataclass(frozen=True)
class TrainConfig:
    name: str = "default"
    """Name of the recipe; goes into the bundle."""
    initial: str = "imagenet"
    """Where the weights start: imagenet (torchvision downloads them), random, or a file."""
    select_on: Literal["holdout", "folds", "val", "test"] = "holdout"
    """Rows that choose: held-out photos of train, each fold of them in turn, the manifest's val, or (leaks)
    its test. With folds one network is trained without each; the result is the mean of their weights."""
    holdout: float = 0.15
    """Share of the training photos of each class held out when select_on = holdout."""
    folds: int = 5
    """Parts that the first archive's photos are split into when select_on = folds."""
    shared_epochs: int = 0
    """Epochs on the other archives alone, from which every fold then starts."""
    files: int = 0
    """At most so many files of each photo are trained on, for copies say little more; 0 for all."""
    holdout_files: int = 6
    """At most so many files of each held-out photo are scored; 0 for all."""
    mix: Mapping[str, float] = field(default_factory=dict)
    """Archive's stem → share of each epoch, drawn by class, then photo, then file; empty: every file once."""
    epochs: int = 50
    """At most so many passes."""
    samples: int = 0
    """Pictures in one epoch; 0: as many as there are."""
    batch: int = 32
    """Pictures in one optimiser step."""
    detail: int = 224
    """Pixels across the frame in what is turned and cropped; more than the pictures have is of no use."""
    coarse_size: int = 224
    """Pixels across in the first epochs, where fewer cost less."""
    coarse_epochs: int = 0
    """How many these are."""
    learning_rate: float = 1e-4
    """Adam's step size; the peak of the schedule."""
    weight_decay: float = 0.0
    """Decoupled decay (AdamW); 0 is plain Adam."""
    schedule: Literal["constant", "one-cycle"] = "constant"
    """Learning rate over the run: as it is, or warmed up for a tenth and annealed to nothing."""
    label_smoothing: float = 0.0
    """Share of each target spread evenly over the classes."""
    average: float = 0.0
    """Decay a step of the exponential moving average of the weights; 0 for none."""
    monitor: Literal["val_loss", "val_accuracy", "last"] = "val_loss"
    """What the best checkpoint is best in; last: the schedule's end, whatever its score."""
    patience: int = 5
    """Stop after so many epochs without a lower val_loss; 0: never."""
    seed: int = 0
    """Of everything random."""
    precision: str = "bf16-mixed"
    """Lightning's precision: bf16-mixed on CPU and recent GPUs, 16-mixed on older ones, 32-true."""
    workers: int = 2
    """Processes that load pictures, for each device."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """What the network sees; the bundle's contract with the service."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """What varies in training."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def for_bundle(self) -> dict[str, Any]:
        """As a bundle records it: the start by its name, not by where it lay on one machine."""
        return self.as_dict() | {"initial": Path(self.initial).name}


def load_recipe(name: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """A shipped recipe's name or a path to a TOML file; overrides are `field=value`, value as in TOML."""
    path = RECIPES / f"{name}.toml" if (RECIPES / f"{name}.toml").is_file() else Path(name)
    try:
        table = tomllib.loads(path.read_text())
        for override in overrides:
            table = merge(table, tomllib.loads(override))
    except FileNotFoundError as error:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise RecipeError(f"no recipe {name!r}: give one of {known}, or the path of a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} or an override is not TOML: {error}") from error
    return config_from(table)


def merge(table: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`augmentation.stain=0` changes one field of the inner table; a table of data, `mix`, is replaced."""
    inner = {
        key: {**table.get(key, {}), **override[key]}
        for key in ("preprocessing", "augmentation")
        if key in override
    }
    return {**table, **override, **inner}


def config_from(table: Mapping[str, Any]) -> TrainConfig:
    known = {f.name for f in fields(TrainConfig)}
    if unknown := sorted(set(table) - known):
        raise RecipeError(f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    nested: dict[str, Any] = {"preprocessing": Preprocessing, "augmentation": Augmentation}
    try:
        parts = {key: cls(**_tuples(table[key])) for key, cls in nested.items() if key in table}
        return replace(TrainConfig(), **{**table, **parts})
    except TypeError as error:
        raise RecipeError(f"recipe: {error}") from error


def save_config(config: TrainConfig, path: Path) -> None:
    path.write_text(json.dumps(config.as_dict(), indent=2) + "\n")


def read_config(path: Path) -> TrainConfig:
    return config_from(json.loads(path.read_text()))


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
