"""Turn engine output into calibrated probabilities, review flags and class-activation maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from threadpoolctl import threadpool_limits

from app.engine.bundle import KNOWN_ANSWER, OOD, WEIGHTS, Bundle, load_bundle
from app.engine.interface import Engine, Floats
from app.engine.laboratories import Styles
from app.errors import BundleError, EngineError
from app.imaging import quality, style
from app.imaging.decode import decode
from app.imaging.framing import Cell, frame_cell

LOW_CONFIDENCE, OUT_OF_DISTRIBUTION = "low_confidence", "out_of_distribution"
REASONS = (*quality.REASONS, LOW_CONFIDENCE, OUT_OF_DISTRIBUTION)  # for review
NEAREST = 1e-6  # distance to another cell; less is this, so that a score is finite
KNOWN_ANSWER_TOLERANCE = 0.05  # int8 kernels differ slightly between processors


@dataclass(frozen=True)
class Prediction:
    """The answer for one cell."""

    label: str
    confidence: float  # the label's probability
    probabilities: tuple[float, ...]  # calibrated, in the order of the bundle's labels, sum 1
    ood_score: float  # distance from the training cells; near 1 for a cell like them
    review_reasons: tuple[str, ...]  # some of `REASONS`
    cam: Floats | None = None  # [h, w] in 0 to 1, a place for each 32 pixels
    familiar: bool = False  # whether the thresholds of familiar pictures were applied

    @property
    def review(self) -> bool:
        return bool(self.review_reasons)


@dataclass(frozen=True)
class Bank:
    """Features [m, 512] of cells, and which of the nearest counts.

    BLAS is three times as fast with features in Fortran's order, as `read_neighbours` makes them.
    """

    features: Floats
    k: int

    def distances(self, features: Floats) -> Floats:
        """features [n, 512] → Euclidean distances [n] to the k-th nearest cell of the bank."""
        norms = np.square(features).sum(1)[:, None] + self._squared_norms
        squared = norms - 2 * features @ self.features.T
        nearest = np.partition(squared, self.k - 1, axis=1)[:, self.k - 1]
        distances: Floats = np.sqrt(np.maximum(nearest, 0))
        return distances

    @cached_property
    def _squared_norms(self) -> Floats:
        squared_norms: Floats = np.square(self.features).sum(1)
        return squared_norms


@dataclass(frozen=True)
class Neighbours:
    """Out-of-distribution score: distance to the k-th nearest training cell in feature space.

    Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors". With `others`, cells of no
    class, it is divided by the distance to those: another laboratory's stain makes both larger.
    """

    known: Bank  # cells of the classes
    scale: float  # typical score of the known cells themselves
    others: Bank | None = None

    def score(self, features: Floats) -> Floats:
        """features [n, 512] → scores [n]: near 1 for cells like the known ones, larger for others."""
        scores = self.known.distances(features) / np.float32(self.scale)
        if self.others is not None:
            scores /= np.maximum(self.others.distances(features), np.float32(NEAREST))
        return scores

    def scores_of_others(self) -> NDArray[np.float64] | None:
        """Return the score of each of the `others`, by the others beside it; None if there are too few."""
        if self.others is None or len(self.others.features) <= self.others.k:
            return None
        beside = Bank(self.others.features, self.others.k + 1)  # each is its own nearest
        return replace(self, others=beside).score(self.others.features).astype(np.float64)


class Classifier:
    """A bundle and the engine that runs it; thread-safe."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        neighbours: Neighbours,
        head: Floats,
        styles: Styles | None = None,
    ) -> None:
        """head: [classes, 512]. styles: needed by a bundle with a rule for familiar pictures."""
        self.bundle = bundle
        self.engine = engine
        self._neighbours = neighbours
        self._head = head
        self._styles = styles

    @cached_property
    def scores_of_others(self) -> NDArray[np.float64] | None:
        """OOD scores of the bundle's reference cells of no class."""
        return self._neighbours.scores_of_others()

    def classify(self, cells: Sequence[Cell], *, exclusive: bool = True) -> list[Prediction | EngineError]:
        """Return one answer per cell, in order; an EngineError for a cell whose output is not finite."""
        pixels = np.stack([cell.pixels for cell in cells])
        output = self.engine.infer(pixels, maps=any(cell.cam for cell in cells), exclusive=exclusive)
        probabilities = softmax(output.logits / self.bundle.temperature)
        scores = self._neighbours.score(output.features)
        familiar = self._familiar(cells)
        answers: list[Prediction | EngineError] = []
        for i, cell in enumerate(cells):
            if not (np.isfinite(output.logits[i]).all() and np.isfinite(scores[i])):
                answers.append(EngineError("the network's output for this image is not finite"))
                continue
            maps = output.maps[i] if cell.cam and output.maps is not None else None
            answers.append(self._predict(cell, probabilities[i], float(scores[i]), familiar[i], maps))
        return answers

    def _familiar(self, cells: Sequence[Cell]) -> list[bool]:
        """Return which cells have the thresholds of familiar pictures."""
        rule = self.bundle.familiar
        if rule is None or self._styles is None:
            return [False] * len(cells)
        described = [style.describe(cell.pixels) if cell.style is None else cell.style for cell in cells]
        near: list[bool] = (self._styles.distances(np.stack(described)) <= rule.distance).tolist()
        return near

    def _predict(
        self,
        cell: Cell,
        probabilities: NDArray[np.float64],
        ood_score: float,
        familiar: bool,
        maps: Floats | None,
    ) -> Prediction:
        best = int(probabilities.argmax())
        confidence = float(probabilities[best])
        rule, limits = self.bundle.familiar, self.bundle.quality_limits
        thresholds = rule.thresholds if familiar and rule is not None else self.bundle.thresholds
        reasons = list(limits.reasons(cell.quality)) if limits else []
        if confidence < thresholds.confidence:
            reasons.append(LOW_CONFIDENCE)
        if ood_score > thresholds.ood_score:
            reasons.append(OUT_OF_DISTRIBUTION)
        cam = None if maps is None else class_activation_map(maps, self._head[best])
        return Prediction(
            self.bundle.labels[best],
            confidence,
            tuple(probabilities.tolist()),
            ood_score,
            tuple(reasons),
            cam,
            familiar,
        )

    def warm_up(self, max_batch: int) -> None:
        """Run every batch size up to `max_batch`, then check the known answer. Raises BundleError."""
        self.engine.warm_up(max_batch, self.bundle.preprocessing.size)
        self.check()

    def check(self) -> None:
        """Raise BundleError if the engine's answer to `known-answer.png` is not the bundle's."""
        image = decode((self.bundle.path / KNOWN_ANSWER).read_bytes())
        cell = frame_cell(image, self.bundle.preprocessing)
        answer = self.classify([cell])[0]
        computed = None if isinstance(answer, EngineError) else answer.probabilities
        expected = self.bundle.known_answer
        if computed is None or not _agree(computed, expected):
            raise BundleError(
                f"{self.engine.name} on {self.engine.device} answers {computed} to {KNOWN_ANSWER}, the "
                f"bundle expects {expected}: this engine does not compute the bundle's network here"
            )


def _agree(computed: Sequence[float], expected: Sequence[float]) -> bool:
    if len(computed) != len(expected):
        return False
    return bool(np.abs(np.subtract(computed, expected)).max() <= KNOWN_ANSWER_TOLERANCE)


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """logits [n, classes] → probabilities, in double precision so that they sum to 1."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def class_activation_map(maps: Floats, weights: Floats) -> Floats:
    """maps [512, h, w], the class's row of the final layer [512] → [h, w], scaled to 0 to 1.

    With global pooling the logit is the mean of the unscaled map plus a bias, so the map is exact and needs
    no gradient (Zhou et al. 2016).
    """
    cam = np.tensordot(weights, maps, axes=1)
    low, high = cam.min(), cam.max()
    scaled: Floats = (cam - low) / (high - low) if high > low else np.zeros_like(cam)
    return scaled


def load_classifier(path: Path, engine: str = "auto", threads: int = 0) -> Classifier:
    """Verify the bundle in the folder `path` and load it into an engine: auto, openvino or torch.

    threads: 0 for the engine's default. Raises BundleError.
    """
    bundle = load_bundle(path)
    neighbours, head = read_neighbours(path), read_head(path)
    if len(head) != len(bundle.labels):
        raise BundleError(
            f"{path}: the final layer has {len(head)} classes, the bundle {len(bundle.labels)} labels"
        )
    for bank in filter(None, (neighbours.known, neighbours.others)):
        if head.shape[1] != bank.features.shape[1]:
            raise BundleError(f"{path}: {OOD} has shape {bank.features.shape}, the final layer {head.shape}")
    styles = read_styles(path) if bundle.familiar else None
    threadpool_limits(1, "blas")  # NumPy's own threads would compete with the engine's
    return Classifier(bundle, load_engine(bundle, engine, threads), neighbours, head, styles)


def read_neighbours(path: Path) -> Neighbours:
    """Read the bundle's banks of features. Raises BundleError."""
    arrays = _read_arrays(path / OOD, ("bank", "k", "scale"), ("others", "others_k"))
    scale = float(arrays["scale"].item())
    known = _bank(arrays, "bank", "k")
    others = _bank(arrays, "others", "others_k") if "others_k" in arrays else None
    for bank in filter(None, (known, others)):
        if not (0 < bank.k <= len(bank.features) and scale > 0):
            raise BundleError(
                f"{path / OOD}: k = {bank.k} and scale = {scale} do not fit {len(bank.features)} cells"
            )
    return Neighbours(known, scale, others)


def _bank(arrays: Mapping[str, Floats], features: str, k: str) -> Bank:
    return Bank(np.asfortranarray(arrays[features]), int(arrays[k].item()))


def read_styles(path: Path) -> Styles:
    """Read how the pictures of the bundle's laboratories look. Raises BundleError."""
    arrays = _read_arrays(path / OOD, ("style_centres", "style_whitening"))
    centres, whitening = arrays["style_centres"], arrays["style_whitening"]
    if centres.ndim != 2 or centres.shape[1:] * 2 != whitening.shape or centres.shape[1] != style.LENGTH:
        raise BundleError(f"{path / OOD} has styles of shapes {centres.shape} and {whitening.shape}")
    return Styles(centres, whitening)


def read_head(path: Path) -> Floats:
    """Read the final layer's weights [classes, 512]. Raises BundleError."""
    return _read_arrays(path / WEIGHTS, ("fc.weight",))["fc.weight"]


def _read_arrays(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Floats]:
    """Return the arrays; all of the optional ones if there is one of them."""
    try:
        with safe_open(path, framework="numpy") as file:
            wanted = [*names, *(optional if {*optional} & {*file.keys()} else ())]
            return {name: file.get_tensor(name).astype(np.float32) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} does not hold {', '.join(names)}: {error}") from error


def load_engine(bundle: Bundle, name: str, threads: int) -> Engine:
    """Load the bundle's network into the engine `name`; auto: torch with CUDA, else openvino."""
    if name == "auto":
        name = "torch" if has_cuda() else "openvino"
    if name == "openvino":
        from app.engine.openvino import OpenVinoEngine

        return OpenVinoEngine(bundle, threads)
    if name == "torch":
        if find_spec("torch") is None:
            raise BundleError(
                "the engine torch needs torch: run `make install EXTRAS=torch` in Leuko's checkout"
            )
        from app.engine.torch import TorchEngine

        return TorchEngine(bundle, threads)
    raise BundleError(f"unknown engine {name!r}: use auto, openvino or torch")


def has_cuda() -> bool:
    """Tell whether torch can use a GPU; without an NVIDIA driver, do so without the slow import of torch."""
    if not Path("/dev/nvidiactl").exists() or find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
