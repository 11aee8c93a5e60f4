"""The configuration of a training run: its fields, their bounds, and how a recipe is read."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    Strict,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    with_config,
)
from pydantic_core import ErrorDetails, core_schema

from app.imaging.framing import Preprocessing
from training.errors import RecipeError

RECIPES = Path(__file__).with_name("recipes")
LEAST_SIDE = 32  # pixels; ResNet18 halves the image five times
MAX_SEED = 4_000_000_000  # NumPy takes 32 bits; each fold adds its number

Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Side = Annotated[int, Field(strict=True, ge=LEAST_SIDE)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(strict=True, ge=0, lt=1)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Field(min_length=1)]
Precision = Literal[
    "bf16-mixed", "bf16-true", "bf16", "16-mixed", "16-true", "16", "32-true", "32", "64-true", "64",
    "transformer-engine", "transformer-engine-float16",
]  # fmt: skip


def check_range(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("must be the smaller factor, then the larger one")
    return pair


def check_folds(folds: int, info: ValidationInfo) -> int:
    if info.data.get("select_on") == "folds" and folds < 2:
        raise ValueError('must be a whole number of at least 2 with select_on = "folds"')
    return folds


def check_shared_epochs(epochs: int, info: ValidationInfo) -> int:
    if epochs and info.data.get("select_on") == "laboratories":
        raise ValueError('must be 0 with select_on = "laboratories": every archive is left out once')
    return epochs


def check_mix(mix: Mapping[str, float]) -> Mapping[str, float]:
    if mix and not any(mix.values()):
        raise ValueError("must have a share above 0")
    return mix


class PreprocessingTable(BaseModel):
    """The bounds of a recipe's `[preprocessing]`; `Preprocessing` says what the fields mean."""

    model_config = ConfigDict(extra="forbid")

    size: Side = Preprocessing.size
    framing: Literal["nucleus", "whole"] = Preprocessing.framing
    margin: Factor = Preprocessing.margin
    white_point: Flag = Preprocessing.white_point
    mean: tuple[Share, Share, Share] = Preprocessing.mean
    std: tuple[Factor, Factor, Factor] = Preprocessing.std


def preprocessing_schema(_: object, handler: Any) -> core_schema.CoreSchema:
    return core_schema.no_info_after_validator_function(
        lambda table: Preprocessing(**table.model_dump()), handler(PreprocessingTable)
    )


CheckedPreprocessing = Annotated[Preprocessing, GetPydanticSchema(preprocessing_schema)]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Augmentation:
    """Random changes to each training image; 0 turns one off."""

    rotation: Annotated[float, Field(strict=True, ge=0, le=180)] = 180.0
    """Largest rotation in either direction, in degrees."""
    scale: Annotated[tuple[Factor, Factor], AfterValidator(check_range)] = (1.0, 1.0)
    """Smallest and largest factor of the crop's side; drawn log-uniformly."""
    shift: Share = 0.0
    """Largest shift of the crop, as a share of its side."""
    shear: Annotated[float, Field(strict=True, ge=0, lt=90)] = 0.0
    """Largest shear in either direction, in degrees."""
    flip_horizontal: Flag = True
    """Mirror left and right with probability 0.5."""
    flip_vertical: Flag = True
    """Mirror top and bottom with probability 0.5."""
    brightness: Share = 0.0
    """Brightness is multiplied by a factor within 1 ± this."""
    contrast: Share = 0.0
    """Contrast is multiplied by a factor within 1 ± this."""
    saturation: Share = 0.0
    """Saturation is multiplied by a factor within 1 ± this."""
    tint: Share = 0.0
    """Each channel is multiplied by its own factor within 1 ± this: lamp and white balance, little hue."""
    stain: Amount = 0.0
    """Standard deviation of the noise added to each entry of the 3 × 3 channel mixing matrix (identity
    without noise) in optical density."""
    strength: Amount = 0.0
    """Standard deviation of the logarithm of a factor of optical density: pale and dark stains."""
    exchange: Share = 0.0
    """Share of images whose channels move towards the optical-density spread of another one in the batch."""
    transfer: Share = 0.0
    """Share of images whose colours move towards those of another one in the batch: mean and covariance of
    the channels in optical density."""
    hue: Annotated[float, Field(strict=True, ge=0, le=180)] = 0.0
    """Largest rotation of the hue in optical density, in degrees in either direction."""
    grey: Share = 0.0
    """Share of images that lose 60 to 100 % of their colour, so that shape and texture must do."""
    blur: Share = 0.0
    """Share of images that are blurred as if taken at a lower resolution, down to 0.4 of the original."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run; a recipe sets them in TOML."""

    name: Text = "default"
    """Name of the recipe; recorded in the bundle."""
    initial: Text = "imagenet"
    """Initial weights: imagenet (downloaded by torchvision), random, or the path of a file."""
    initial_laboratories: tuple[Text, ...] = ()
    """Laboratories that the initial weights were trained on; a network that must not have seen one of them
    starts from initial_elsewhere."""
    initial_elsewhere: Text = "imagenet"
    """Initial weights of such a network, as in initial; used with select_on = laboratories."""
    select_on: Literal["holdout", "folds", "laboratories", "val", "test"] = "holdout"
    """Rows that the best epoch, temperature and thresholds are selected on: photos held out of train,
    cross-validation folds of train, the manifest's split val, or its split test (which leaks). With folds,
    one network is trained without each fold; the result is the mean of their weights."""
    holdout: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.15
    """Share of each class's training photos that are held out; used with select_on = holdout."""
    folds: Annotated[Positive, AfterValidator(check_folds)] = 5
    """Number of folds of the first archive's photos, at least 2; used with select_on = folds."""
    shared_epochs: Annotated[Count, AfterValidator(check_shared_epochs)] = 0
    """Epochs of training on the other archives alone, before the folds start from the result."""
    files: Count = 0
    """Largest number of files of one photo in training, since copies add little; 0: all."""
    holdout_files: Count = 6
    """Largest number of files of one held-out photo in validation; 0: all."""
    mix: Annotated[Mapping[str, Amount], AfterValidator(check_mix)] = field(default_factory=dict)
    """Laboratory → its share of each epoch; files are drawn by class, then photo. Empty: every file once."""
    outliers: ShareBelowOne = 0.0
    """Share of an epoch's images that are cells of no class (`leuko-train data --others`), drawn by type."""
    outlier_weight: Amount = 0.5
    """Weight of their loss, which is least for equal probabilities (Hendrycks et al. 2019)."""
    epochs: Positive = 50
    """Largest number of epochs."""
    samples: Count = 0
    """Images per epoch; 0: the number of training files."""
    batch: Positive = 32
    """Images per optimiser step, over all processes."""
    detail: Side = 224
    """Pixels across the frame in the stored patches; more than the images have is of no use."""
    coarse_size: Side = 224
    """Input size in pixels during the first epochs; smaller images cost less."""
    coarse_epochs: Count = 0
    """Number of epochs at coarse_size."""
    learning_rate: Factor = 1e-4
    """Adam's step size; the peak of the schedule."""
    weight_decay: Amount = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    schedule: Literal["constant", "one-cycle"] = "constant"
    """Learning rate over the run: constant, or warmed up for a tenth of the steps and then annealed to 0."""
    label_smoothing: Share = 0.0
    """Share of each target that is spread evenly over the classes."""
    mixstyle: Share = 0.0
    """Probability that a batch's images exchange styles after the first stage, and after the second."""
    average: ShareBelowOne = 0.0
    """Decay per step of the exponential moving average of the weights; 0: no average."""
    monitor: Literal["val_loss", "val_accuracy", "last"] = "val_loss"
    """Metric that selects the best checkpoint; last: the last epoch, whatever its score."""
    patience: Count = 5
    """Stop after this many epochs without a lower val_loss; 0: never."""
    seed: Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)] = 0
    """Seed of every random choice."""
    precision: Precision = "bf16-mixed"
    """Lightning's precision: bf16-mixed on CPU and recent GPUs, 16-mixed on older ones, 32-true."""
    workers: Count = 2
    """Processes that load images, per device."""
    preprocessing: CheckedPreprocessing = field(default_factory=Preprocessing)
    """Framing and normalisation; recorded in the bundle, and the same in the service."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes to the training images."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def for_bundle(self) -> dict[str, Any]:
        """Return the fields as a bundle records them: initial weights without their folder."""
        names = {key: Path(getattr(self, key)).name for key in ("initial", "initial_elsewhere")}
        return self.as_dict() | names


def load_recipe(name: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a shipped recipe by name or a TOML file by path; each override is `field=value` in TOML.

    Raise RecipeError that names every wrong field, its value and what is allowed.
    """
    path = RECIPES / f"{name}.toml" if (RECIPES / f"{name}.toml").is_file() else Path(name)
    try:
        table = parse_toml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise RecipeError(f"no recipe {name!r}: give one of {known}, or the path of a TOML file") from error
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise RecipeError(f"{path} is not a TOML file ({error})") from error
    for override in overrides:
        try:
            table = merge(table, parse_toml(override))
        except ValueError as error:
            raise RecipeError(
                f"--set {override} is not TOML ({error}); put text in quotes: --set 'initial=\"random\"'"
            ) from error
    return config_from(table, f"recipe {name}")


def parse_toml(text: str) -> dict[str, Any]:
    """Raise ValueError, also if a value is nested too deeply."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def merge(table: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `table` with `override`; inner tables of fields are merged, `mix` is replaced as a whole."""
    inner = {
        key: {**table[key], **override[key]}
        for key in ("preprocessing", "augmentation")
        if isinstance(table.get(key), dict) and isinstance(override.get(key), dict)
    }
    return {**table, **override, **inner}


def config_from(table: object, origin: str = "recipe") -> TrainConfig:
    """Check a table of fields; fields that it lacks have their defaults.

    Raise RecipeError that begins with `origin` and names every wrong field.
    """
    try:
        return adapter().validate_python(table)
    except ValidationError as error:
        problems = "; ".join(describe(details) for details in error.errors(include_url=False))
        raise RecipeError(f"{origin}: {problems}") from error


@cache
def adapter() -> TypeAdapter[TrainConfig]:
    return TypeAdapter(TrainConfig)


@cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of TrainConfig, which messages take the allowed values from."""
    return adapter().json_schema()


def describe(error: ErrorDetails) -> str:
    """Say which field is wrong, its value and what is allowed."""
    path = list(error["loc"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = sorted(schema_at(path[:-1])["properties"])
        near = get_close_matches(str(path[-1]), known, n=1)
        advice = f"did you mean {dotted([*path[:-1], *near])}?" if near else f"known: {', '.join(known)}"
        return f"unknown setting {dotted(path)} ({advice})"
    if error["type"] == "missing":  # an array that is too short
        path.pop()
    allowed = str(error["ctx"]["error"]) if error["type"] == "value_error" else allowed_at(path)
    try:
        value = json.dumps(error["input"], default=str, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number of thousands of digits; tables nested too deeply
        value = "…"
    return f"{dotted(path)} = {value} {allowed}" if path else f"{value} {allowed}"


def dotted(path: Sequence[int | str]) -> str:
    return ".".join(map(str, path))


def schema_at(path: Sequence[int | str]) -> dict[str, Any]:
    """Return the JSON Schema of the field at `path`: names of fields and archives, places in arrays."""
    node = schema()
    for key in path:
        if isinstance(key, int):
            node = node["prefixItems"][key]
        else:
            node = node["properties"][key] if "properties" in node else node["additionalProperties"]
        if "$ref" in node:
            node = schema()["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def allowed_at(path: Sequence[int | str]) -> str:
    node = schema_at(path)
    if "enum" in node:
        return "must be one of " + ", ".join(map(json.dumps, node["enum"]))
    kinds = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text that is not empty",
        "object": "a table",
        "array": f"an array of {node.get('maxItems')} numbers",
    }
    bounds = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    limits = [f"{words} {node[key]}" for key, words in bounds.items() if key in node]
    return f"must be {kinds[node['type']]} {' and '.join(limits)}".rstrip()


def save_config(config: TrainConfig, path: Path) -> None:
    path.write_text(json.dumps(config.as_dict(), indent=2) + "\n")


def read_config(path: Path) -> TrainConfig:
    """Read a run's config.json; raise RecipeError if it is missing or not a configuration."""
    try:
        table = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RecipeError(f"{path} does not exist; run `leuko-train fit` first") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not JSON ({error})") from error
    return config_from(table, str(path))
