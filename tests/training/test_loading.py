from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from app.engine.bundle import CLASSES
from training.config import load_recipe
from training.data import Row
from training.errors import DataError
from training.loading import (
    balanced_weights,
    evaluation_loader,
    mixed_weights,
    sample_weights,
    training_loader,
)
from training.patches import Patches, cut_patches


def uneven(archive: str) -> list[Row]:
    """Return one eosinophil photo with nine files and nine monocyte photos with one each."""
    eosinophils = [Row(archive, f"e{i}", "eosinophil", "train", "e", True, "") for i in range(9)]
    return eosinophils + [Row(archive, f"m{i}", "monocyte", "train", f"m{i}", True, "") for i in range(9)]


def test_classes_weigh_the_same_and_photos_within_them() -> None:
    rows = uneven("a.zip")
    weights = balanced_weights(rows)
    by_class = Counter[str]()
    for row, weight in zip(rows, weights, strict=True):
        by_class[row.label] += weight  # type: ignore[assignment]
    assert by_class["eosinophil"] == pytest.approx(by_class["monocyte"])
    assert sum(weights) / len(weights) == pytest.approx(1)
    assert len(set(weights[9:])) == 1


def test_archives_weigh_as_the_mix_says() -> None:
    rows = uneven("a.zip") + uneven("b.zip") * 3
    weights = mixed_weights(rows, {"a": 0.7, "b": 0.3})
    assert sum(weights[:18]) == pytest.approx(0.7)
    assert sum(weights[18:]) == pytest.approx(0.3)


def test_outliers_have_their_share_and_each_type_the_same() -> None:
    kinds = ["platelet"] * 3 + ["basophil"] * 9
    others = [Row("c.zip", f"o{i}", kind, "train", f"o{i}", True, "") for i, kind in enumerate(kinds)]
    rows = uneven("a.zip") + others
    for mix in ("mix={a=2.0}", "mix={}"):
        weights = sample_weights(rows, load_recipe("default", [mix, "outliers=0.2"]))
        assert sum(weights[18:]) / sum(weights) == pytest.approx(0.2)
        assert sum(weights[18:21]) == pytest.approx(sum(weights[21:]))


def test_a_mix_that_does_not_fit_the_manifest_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"mixes a, b, the manifest has a: .*--set"):
        mixed_weights(uneven("a.zip"), {"a": 0.5, "b": 0.5})


def test_a_batch_is_patches_labels_and_weights(rows: list[Row], tmp_path: Path) -> None:
    config = load_recipe("default", ["workers=0", "mix={slides=1}", "samples=16", "batch=8"])
    patches = cut_patches(rows, config, tmp_path)
    pixels, labels, weights = next(iter(training_loader(rows, patches, config)))
    assert pixels.shape == (8, 320, 320, 3)
    assert pixels.dtype == torch.uint8
    assert set(labels.tolist()) <= set(range(len(CLASSES)))
    assert weights.shape == (8,)


@pytest.mark.parametrize("mix", ["mix={}", "mix={a=1}"])
@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches_of_a_single_process(mix: str, world: int) -> None:
    rows = uneven("a.zip")
    numbered = Patches(rows, np.arange(len(rows), dtype=np.uint8).reshape(-1, 1, 1, 1))
    config = load_recipe("default", ["workers=0", "samples=27", "batch=8", mix])

    def drawn(rank: int, world: int) -> list[list[int]]:
        torch.manual_seed(7)
        loader = training_loader(rows, numbered, config, rank, world)
        return [batch[0].flatten().tolist() for _ in ("an epoch", "another") for batch in loader]

    whole = drawn(0, 1)
    shares = [drawn(rank, world) for rank in range(world)]
    together = [
        [item for items in zip(*batch, strict=True) for item in items] for batch in zip(*shares, strict=True)
    ]
    assert [len(batch) for batch in whole] == [8] * 6
    assert together == whole


def test_evaluation_sees_each_file_once_and_always_the_same(rows: list[Row]) -> None:
    config = load_recipe("default", ["workers=0"])
    first, again = (torch.cat([batch[0] for batch in evaluation_loader(rows, config)]) for _ in range(2))
    assert len(first) == len(rows)
    assert torch.equal(first, again)


def test_workers_read_the_archive_too(rows: list[Row], archive: Path) -> None:
    config = load_recipe("default", ["workers=1", "batch=8"])
    assert sum(len(batch[1]) for batch in evaluation_loader(rows, config)) == len(rows)
    assert archive.is_file()
