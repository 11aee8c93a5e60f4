from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.engine.bundle import CLASSES
from app.imaging.framing import Preprocessing
from training import adapt
from training.adapt import Candidate, Outputs, OwnCells, Trial
from training.errors import DataError
from training.network import Network

SIZE = 32
COLOURS = np.array([(220, 60, 60), (60, 60, 220), (60, 200, 60), (200, 60, 200)])


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt, "STEPS", 6)
    monkeypatch.setattr(adapt, "BATCH", 8)


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


def test_adapting_learns_the_cells_and_stays_near_the_weights(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt, "STEPS", 12)
    cells = own_cells()
    before = adapt.log_loss(adapt.run(network, cells.framed).logits, cells.labels, np.ones(24, np.float32))
    tuned = adapt.tune(network, cells, seed=0)
    after = adapt.log_loss(adapt.run(tuned, cells.framed).logits, cells.labels, np.ones(24, np.float32))
    assert after < before
    far = (weights(tuned) - weights(network)).norm() / weights(network).norm()
    assert 0 < far < 0.1
    assert torch.equal(tuned.trunk.bn1.running_mean, network.trunk.bn1.running_mean)


def test_the_time_is_told_from_a_few_steps(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int | None] = []
    monkeypatch.setattr(adapt, "tune", lambda *_, steps: taken.append(steps))
    ticks = iter((10.0, 13.0))
    monkeypatch.setattr("training.adapt.time.perf_counter", lambda: next(ticks))
    monkeypatch.setattr(adapt, "TIMED", 3)
    cells = own_cells(8)
    assert adapt.expected_seconds(network, cells, starts=2) == 6 * (2 * adapt.FOLDS + 1)  # 1 s a step
    assert taken == [1, 3]


def test_the_way_leads_from_the_weights_before_to_those_after(network: Network) -> None:
    after = adapt.tune(network, own_cells(), seed=1)
    assert torch.equal(weights(adapt.between(network, after, 0.0)), weights(network))
    assert torch.allclose(weights(adapt.between(network, after, 1.0)), weights(after), atol=1e-6)
    middle = adapt.between(network, after, 0.5)
    assert torch.allclose(weights(middle), (weights(network) + weights(after)) / 2, atol=1e-6)


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
    assert adapt.undivided(cells) == [2]
    assert len(set(adapt.deal(cells, seed=0)[cells.labels == 2].tolist())) == adapt.FOLDS


def test_every_candidate_answers_every_cell_by_a_network_that_has_not_seen_it(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt, "FOLDS", 2)
    monkeypatch.setattr(adapt, "STEPS", 2)
    cells = own_cells(4)
    starts = [network, adapt.renew_statistics(network, cells.framed)]
    trial = adapt.cross_validate(starts, cells)
    assert next(iter(trial.outputs)) == Candidate(0, 0.0)
    assert len(trial.outputs) == 2 * len(adapt.WAYS)
    unchanged = trial.outputs[Candidate(0, 0.0)]
    np.testing.assert_allclose(unchanged.logits, adapt.run(network, cells.framed).logits, atol=1e-5)
    assert all((outputs.features != 0).any(axis=1).all() for outputs in trial.outputs.values())


def test_the_candidate_with_the_least_log_loss_is_chosen_with_equal_classes() -> None:
    labels = np.array([0] * 9 + [1])
    flat, sharp = np.zeros((10, 2), np.float32), np.zeros((10, 2), np.float32)
    sharp[:, 0] = 3  # right for nine, far off for the tenth
    features = np.zeros((10, 1), np.float32)
    trial = Trial({Candidate(0, 0.0): Outputs(flat, features), Candidate(0, 1.0): Outputs(sharp, features)})
    assert trial.best(labels) == Candidate(0, 0.0)


def test_replayed_cells_are_half_of_each_batch(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(cells: OwnCells, n: int, _: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append((len(cells), n))
        return torch.from_numpy(cells.patches[:n]), torch.from_numpy(cells.labels[:n])

    monkeypatch.setattr(adapt, "draw", draw)
    adapt.tune(network, own_cells(3), seed=0, replay=own_cells(5))
    assert set(drawn) == {(12, 4), (20, 4)}


def test_classes_are_drawn_equally_often() -> None:
    cells = own_cells(20).take([*range(20), 20, 21, 40, 41, 60, 61])
    _, labels = adapt.draw(cells, 400, torch.Generator().manual_seed(0))
    assert np.bincount(labels.numpy(), minlength=4).min() > 60


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
