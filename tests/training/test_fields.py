from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.imaging.cell_map import WEIGHTS, CellMap, gain_of
from app.samples.smear import draw_field, draw_smear
from training.fields.composer import SIDE, Composer, Sample, place, stain_of, targets
from training.fields.network import CellMapNetwork, loss_of
from training.fields.scenes import Scene, mosaics, pasted, restained, turned
from training.fields.sources import Source, drawn, of_crop


def sources() -> list[Source]:
    return [*drawn(8)]


def sample(seed: int = 0) -> Sample:
    return Composer(sources()).compose(np.random.default_rng(seed))


def stack(samples: list[Sample]) -> Sample:
    return Sample(*map(torch.stack, zip(*samples, strict=True)))


def scene(seed: int = 1) -> Scene:
    image, cells = draw_field(("lymphocyte", "neutrophil"), seed=seed, width=320, height=240, scale=0.5)
    boxes = [(c.x - c.radius, c.y - c.radius, c.x + c.radius, c.y + c.radius) for c in cells]
    return Scene("drawn", image, boxes)


def test_a_sample_is_the_same_for_the_same_seed_and_knows_its_cells() -> None:
    one, same = sample(3), sample(3)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert one.density.shape == (3, SIDE, SIDE)
    assert one.near.shape == (SIDE // 4, SIDE // 4)
    assert not (one.middle & ~one.judged).any()


def test_the_place_of_a_cell_is_that_of_the_picture() -> None:
    source = next(source for source in sources() if source.cells)
    x, y, extent, _ = source.cells[0]
    canvas = place(source, np.random.default_rng(0), 1.0, at=(x, y), to=np.array([30.0, 20.0]))
    assert canvas.cells[0][:2] == pytest.approx((30, 20), abs=1e-6)
    assert canvas.cells[0][2] == pytest.approx(extent / 2)  # red cells are 20 pixels wide in a source
    near, measures, inside, middle, _ = targets(canvas.cells[:1], canvas.known, 1.0)
    assert near[5, 7] == near.max() == 1
    assert middle.sum() == 1
    row, column = (int(i) for i in inside.nonzero()[0])
    assert (column + measures[0, row, column] + 0.5) * 4 == pytest.approx(30.5, abs=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_in_a_turned_batch_the_measures_still_point_at_the_cells(seed: int) -> None:
    density = torch.zeros(3, SIDE, SIDE)
    density[:, 12, 41] = 1
    cell = (41.0, 12.0, 10.0, 10.0)
    one = Sample(density, *targets([cell], torch.ones(SIDE, SIDE, dtype=torch.bool), 1.0))
    batch = stack([one]).turned(np.random.default_rng(seed))
    _, row, column = (int(i) for i in batch.inside.nonzero()[0])
    x, y = (
        (column + float(batch.measures[0, 0, row, column])),
        (row + float(batch.measures[0, 1, row, column])),
    )
    _, _, dark_row, dark_column = (int(i) for i in batch.density.nonzero()[0])
    assert ((x + 0.5) * 4 - 0.5, (y + 0.5) * 4 - 0.5) == pytest.approx((dark_column, dark_row), abs=1e-4)


def test_stains_keep_nuclei_darker_in_red_light_than_red_cells() -> None:
    source = replace(
        sources()[0], red_cell=torch.tensor([0.1, 0.3, 0.3]), nucleus=torch.tensor([0.7, 0.9, 0.2])
    )
    for seed in range(40):
        stain = stain_of(source, np.random.default_rng(seed))
        assert float((stain @ source.nucleus)[0]) > 1.2 * float((stain @ source.red_cell)[0])


def test_a_step_of_training_lowers_the_loss_and_the_weights_are_those_that_the_service_reads(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    network = CellMapNetwork()
    batch = stack([sample(seed) for seed in range(4)])
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = loss_of(network(batch.density), batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    network.save(tmp_path / "weights.npz")
    with np.load(tmp_path / "weights.npz") as arrays, np.load(WEIGHTS) as shipped:
        assert {name: arrays[name].shape for name in arrays} == {
            name: shipped[name].shape for name in shipped
        }


def test_a_crop_is_a_source_only_with_a_nucleus_in_its_middle() -> None:
    source = of_crop("pbc", draw_smear("lymphocyte", seed=2).resize((184, 138)))
    assert source is not None
    assert len(source.cells) == 1
    assert of_crop("pbc", Image.new("RGB", (184, 184), "white")) is None


@pytest.mark.parametrize("angle", [0, 90, 180, 270, 37])
def test_the_boxes_of_a_turned_field_stay_around_its_cells(angle: float) -> None:
    plain = scene()
    changed = turned(plain, angle, 2.0)
    for before, after in zip(plain.boxes, changed.boxes, strict=True):
        colours = [
            np.asarray(each.image.resize((1, 1), Image.Resampling.BOX, box))
            for each, box in ((plain, before), (changed, after))
        ]
        assert colours[1] == pytest.approx(colours[0], abs=12)


def test_mosaics_have_the_boxes_of_their_fields() -> None:
    for mosaic in mosaics([scene(1), scene(2)], 3, most=8, any_angle=True):
        width, height = mosaic.image.size
        assert 2 <= len(mosaic.boxes) <= 9
        assert all(
            0 <= (box[0] + box[2]) / 2 < width and 0 <= (box[1] + box[3]) / 2 < height for box in mosaic.boxes
        )


def test_a_field_in_other_stains_has_the_colours_that_were_asked_for() -> None:
    image = Image.new("RGB", (60, 60), (230, 230, 230))
    red_cell, blue = (0.1, 0.3, 0.3), (0.4, 0.4, 0.1)
    colour = tuple(round(230 * float(np.exp(-density))) for density in red_cell)
    image.paste(colour, (0, 0, 20, 20))
    changed = restained(Scene("", image, []), [(red_cell, blue)])
    expected = [230 * float(np.exp(-density)) for density in blue]
    assert changed.image.getpixel((5, 5)) == pytest.approx(expected, abs=4)
    assert changed.image.getpixel((50, 50)) == pytest.approx((230, 230, 230), abs=2)


def test_cells_are_pasted_beside_the_others() -> None:
    donors = [Scene("", draw_smear("lymphocyte", seed=1, width=120, height=120), [])]
    plain = scene()
    changed = pasted(plain, donors, 5, cells=True, seed=0, ratio=1.0)
    assert len(plain.boxes) < len(changed.boxes) <= len(plain.boxes) + 5
    assert pasted(plain, donors, 5, cells=False, seed=0, ratio=1.0).boxes == plain.boxes


def test_the_shipped_map_sees_a_drawn_leukocyte() -> None:
    source = next(source for source in sources() if source.cells)
    seen = CellMap.of(source.coarse.float().clamp(min=0).numpy())
    assert seen.leukocyte.max() > 0.4


@pytest.mark.parametrize("size", [(4, 4), (52, 72), (200, 332)])
def test_the_map_is_that_of_the_network_in_torch(size: tuple[int, int]) -> None:
    network = CellMapNetwork()
    with np.load(WEIGHTS) as arrays:
        network.load_state_dict({name: torch.from_numpy(arrays[name]).float() for name in arrays.files})
    picture = np.random.default_rng(0).uniform(0, 1, (3, *size)).astype(np.float32)
    with torch.inference_mode():
        raw = network(torch.from_numpy(picture * gain_of(picture))[None])[0].numpy()
    seen = CellMap.of(picture)
    assert seen.leukocyte == pytest.approx(1 / (1 + np.exp(-raw[0])), abs=1e-4)
    assert seen.extent == pytest.approx(10 * np.exp(raw[3]), rel=1e-3)
    assert seen.red_cell == pytest.approx(10 * np.exp(raw[4]), rel=1e-3)
