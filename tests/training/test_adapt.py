from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.engine.bundle import CLASSES
from app.evaluation.verification import undivided
from app.imaging.framing import Preprocessing
from training import adapt
from training.adapt import Candidate, Outputs, OwnCells, Start, Trial
from training.errors import DataError
from training.head import Head, Known
from training.network import Network

SIZE = 32
COLOURS = np.array([(220, 60, 60), (60, 60, 220), (60, 200, 60), (200, 60, 200)])


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network(len(CLASSES), Preprocessing(size=SIZE)).eval()


def own_cells(n: int = 6, seed: int = 0) -> OwnCells:
    """Return n cells of each class, of one colour each; every two share a slide."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), n)

    def pixels(side: int) -> adapt.Pixels:
        noise = draw.integers(-20, 20, (len(labels), side, side, 3))
        return (COLOURS[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)

    return OwnCells(pixels(SIZE), pixels(2 * SIZE), labels, [f"slide {i // 2}" for i in range(len(labels))])


def weights(network: Network) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def known(network: Network, n: int = 9) -> Known:
    features = np.random.default_rng(1).normal(size=(n, 512)).astype(np.float32)
    return Known.answered(features, Head.of(network))


def test_a_start_has_the_features_of_the_cells_as_framed_and_of_other_views(network: Network) -> None:
    cells = own_cells()
    start = adapt.begin(network, cells, known(network).features)
    assert start.views.shape == (1 + adapt.VIEWS, 24, 512)
    np.testing.assert_array_equal(start.views[0], adapt.run(network, cells.framed).features)
    assert all((view != start.views[0]).any() for view in start.views[1:])
    np.testing.assert_array_equal(start.views, adapt.begin(network, cells, known(network).features).views)


def test_replayed_cells_take_the_place_of_known_ones_with_their_own_labels(network: Network) -> None:
    replay = own_cells(5, seed=3)
    start = adapt.begin(network, own_cells(), known(network).features, replay)
    np.testing.assert_array_equal(start.known.features, adapt.run(network, replay.framed).features)
    np.testing.assert_array_equal(start.known.probabilities, np.eye(4)[replay.labels])


def test_adapting_changes_the_final_layer_alone_and_learns_the_cells(network: Network) -> None:
    cells = own_cells()
    starts = [adapt.begin(network, cells, known(network).features)]
    after = adapt.follow(Candidate(0, 0.001), starts, cells)
    answers = [adapt.run(one, cells.framed).logits for one in (network, after)]
    before, fitted = (adapt.log_loss(each, cells.labels, np.ones(24, np.float32)) for each in answers)
    assert fitted < before / 2
    changed = [
        name
        for name, tensor in after.trunk.state_dict().items()
        if not torch.equal(tensor, network.trunk.state_dict()[name])
    ]
    assert changed == ["fc.weight", "fc.bias"]
    kept = adapt.follow(Candidate(0, None), starts, cells)
    assert torch.equal(weights(kept), weights(network))


def test_each_slide_is_held_out_whole_and_each_cell_once() -> None:
    cells = own_cells(8)
    fold = adapt.deal(cells, seed=0)
    assert set(fold.tolist()) == set(range(adapt.FOLDS))
    for group in set(cells.groups):
        members = [i for i, each in enumerate(cells.groups) if each == group]
        assert len(set(fold[members].tolist())) == 1
    for label in range(4):
        assert len(set(fold[cells.labels == label].tolist())) == adapt.FOLDS


def test_slides_that_hold_cells_of_all_classes_are_spread_too() -> None:
    cells = own_cells(8)
    cells = replace(cells, groups=[f"slide {i % 8 // 2}" for i in range(32)])  # two of each class on each
    fold = adapt.deal(cells, seed=0)
    assert [set(cells.labels[fold == k].tolist()) for k in range(adapt.FOLDS)] == [{0, 1, 2, 3}] * adapt.FOLDS


def test_a_class_of_a_single_slide_is_split_by_cells_and_named() -> None:
    cells = own_cells()
    groups = ["one" if label == 2 else group for label, group in zip(cells.labels, cells.groups, strict=True)]
    cells = replace(cells, groups=groups)
    assert undivided(cells.labels, cells.groups) == [2]
    assert len(set(adapt.deal(cells, seed=0)[cells.labels == 2].tolist())) == adapt.FOLDS


def test_every_candidate_answers_every_cell_by_a_final_layer_that_has_not_seen_it(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt, "FOLDS", 2)
    cells = own_cells(4)
    networks = [network, adapt.renew_statistics(network, cells.framed)]
    starts = [adapt.begin(one, cells, known(network).features) for one in networks]
    fitted: list[set[int]] = []

    def fit(_: Start, labels: NDArray[np.int64], places: list[int], ridge: float) -> Head:
        del labels, ridge
        fitted.append(set(places))
        return Head(np.full((4, 512), len(fitted), np.float32), np.zeros(4, np.float32))

    monkeypatch.setattr(Start, "fit", fit)
    trial = adapt.cross_validate(starts, cells)
    assert next(iter(trial.outputs)) == Candidate(0, None)
    assert len(trial.outputs) == 2 * (1 + len(adapt.RIDGES))
    unchanged = trial.outputs[Candidate(0, None)]
    np.testing.assert_allclose(unchanged.logits, adapt.run(network, cells.framed).logits, atol=1e-4)
    first, second = fitted[:2]
    assert first | second == set(range(16))
    assert not first & second
    logits = trial.outputs[Candidate(0, adapt.RIDGES[0])].logits
    sums = starts[0].views[0].sum(1)
    for places, answered_by in ((second, 1), (first, 2)):  # the fit without them
        np.testing.assert_allclose(logits[list(places), 0], answered_by * sums[list(places)], rtol=1e-4)


def test_candidates_are_ranked_by_log_loss_with_equal_classes() -> None:
    labels = np.array([0] * 9 + [1])
    flat, sharp = np.zeros((10, 2), np.float32), np.zeros((10, 2), np.float32)
    sharp[:, 0] = 3  # right for nine, far off for the tenth
    features = np.zeros((10, 1), np.float32)
    trial = Trial({Candidate(0, 0.1): Outputs(sharp, features), Candidate(0, None): Outputs(flat, features)})
    assert trial.ranked(labels) == [Candidate(0, None), Candidate(0, 0.1)]


def test_statistics_are_renewed_from_pictures_without_labels(network: Network) -> None:
    cells = own_cells()
    renewed = adapt.renew_statistics(network, cells.framed)
    assert torch.equal(weights(renewed), weights(network))
    assert not torch.equal(renewed.trunk.bn1.running_mean, network.trunk.bn1.running_mean)
    assert not renewed.training


def test_statistics_go_three_quarters_of_the_way(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = own_cells()
    before, renewed = network.trunk.bn1.running_mean, adapt.renew_statistics(network, cells.framed)
    monkeypatch.setattr(adapt, "RENEWED", 1.0)
    whole = adapt.renew_statistics(network, cells.framed).trunk.bn1.running_mean
    assert torch.allclose(renewed.trunk.bn1.running_mean, torch.lerp(before, whole, 0.75))


def test_too_few_cells_of_a_class_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"at least 5 cells .* neutrophil: 2"):
        adapt.check_cells(own_cells(6).take(range(20)), CLASSES)
    adapt.check_cells(own_cells(5), CLASSES)
