from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from app.imaging.framing import Preprocessing, frame_cell
from app.samples.smear import draw_smear
from training.augment import LUMA, augment, recolour, soften, stain, transfer, warp
from training.config import Augmentation
from training.patches import cut_patch

STILL = Augmentation(rotation=0, flip_horizontal=False, flip_vertical=False)
ROOM = 2.0


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def patches(n: int = 4) -> Tensor:
    cut = [cut_patch(draw_smear("monocyte", seed=i), Preprocessing(), 320, ROOM) for i in range(n)]
    return torch.from_numpy(np.stack(cut))


def noise(n: int = 4, size: int = 32) -> Tensor:
    return torch.randint(20, 235, (n, 3, size, size), generator=seeded()).float()


def test_without_augmentation_training_sees_what_the_service_sees() -> None:
    image = draw_smear("neutrophil", seed=3)
    patch = cut_patch(image, Preprocessing(), 448, ROOM)
    seen = augment(torch.from_numpy(patch[None].copy()), 224, ROOM, STILL, seeded())[0]
    wanted = frame_cell(image, Preprocessing()).pixels.astype(np.float32)
    assert np.abs(seen.numpy() - wanted).mean() < 2  # the two resamplings differ by a little


def test_the_same_seed_gives_the_same_images_and_another_seed_others() -> None:
    a = Augmentation(
        scale=(0.8, 1.2),
        shift=0.1,
        shear=5,
        contrast=0.2,
        tint=0.1,
        stain=0.1,
        strength=0.2,
        exchange=0.5,
        blur=1,
    )
    one, same, other = (augment(patches(), 128, ROOM, a, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (4, 128, 128, 3)
    assert 0 <= float(one.min()) < float(one.max()) <= 255


@pytest.mark.parametrize(
    ("horizontal", "vertical", "turned"), [(True, False, (-1,)), (False, True, (-2,)), (False, False, ())]
)
def test_mirrored_images_are_exact_and_about_half(
    horizontal: bool, vertical: bool, turned: tuple[int]
) -> None:
    a = Augmentation(rotation=0, flip_horizontal=horizontal, flip_vertical=vertical)
    pixels = noise(200, 8)
    seen = warp(pixels, 8, 1.0, a, seeded())
    still = (seen - pixels).abs().amax((1, 2, 3)) < 1e-2
    mirrored = (seen - pixels.flip(turned)).abs().amax((1, 2, 3)) < 1e-2
    assert (still | mirrored).all()
    assert not turned or 60 < int(mirrored.sum()) < 140


def test_a_turn_keeps_the_centre_where_it_is() -> None:
    pixels = torch.zeros(16, 3, 200, 200)
    pixels[:, :, 90:110, 90:110] = 255
    seen = warp(pixels, 100, ROOM, Augmentation(rotation=180, shear=10), seeded())
    assert seen[:, :, 49:51, 49:51].min() > 254


def test_black_lies_outside_the_image() -> None:
    seen = warp(torch.full((4, 3, 64, 64), 200.0), 64, 1.0, Augmentation(rotation=0, scale=(2, 2)), seeded())
    assert seen[:, :, 0, 0].max() == 0
    assert seen[:, :, 32, 32].min() > 199


def test_a_wider_scale_shows_more() -> None:
    pixels = torch.zeros(1, 3, 100, 100)
    pixels[:, :, 25:75, 25:75] = 255
    frame = warp(pixels, 50, ROOM, STILL, seeded())
    wide = warp(pixels, 50, ROOM, Augmentation(rotation=0, scale=(1.5, 1.5)), seeded())
    assert frame.min() > 254
    assert wide.min() == 0


def test_stain_leaves_white_white_and_black_black() -> None:
    pixels = noise()
    pixels[:, :, 0, 0], pixels[:, :, 0, 1] = 255, 0
    seen = stain(pixels, Augmentation(stain=0.2, strength=0.3, exchange=1), seeded())
    assert (seen[:, :, 0, 0] == 255).all()
    assert (seen[:, :, 0, 1] == 0).all()
    assert not torch.allclose(seen, pixels, atol=5)


def test_a_stronger_stain_is_a_multiple_of_the_optical_density() -> None:
    pixels = noise(1)
    seen = stain(pixels, Augmentation(strength=0.5), seeded(3))
    ratio = torch.log(seen / 255) / torch.log(pixels / 255)
    assert ratio.std() < 1e-3
    assert abs(float(ratio.mean()) - 1) > 0.01


def test_transfer_takes_on_the_colours_of_another_image_and_leaves_black_black() -> None:
    red = noise(1) * torch.tensor([1.0, 0.5, 0.4]).view(1, 3, 1, 1)
    blue = noise(1) * torch.tensor([0.4, 0.5, 1.0]).view(1, 3, 1, 1)
    both = torch.cat([red, blue])
    both[0, :, :4] = 0
    moved = torch.stack([transfer(both, Augmentation(transfer=1.0), seeded(i))[0] for i in range(40)])
    assert torch.equal(moved[:, :, :4], torch.zeros_like(moved[:, :, :4]))
    redness = (moved[:, 0, 4:] - moved[:, 2, 4:]).mean((1, 2))
    own, others = ((each[0, 4:] - each[2, 4:]).mean() for each in both)
    assert own - 1 > redness.max() - 2  # part of the way, each time another part
    assert redness.min() < own - 0.7 * (own - others)
    assert torch.equal(transfer(both, Augmentation(), seeded()), both)


def test_a_turned_hue_keeps_the_grey_of_the_optical_density() -> None:
    pixels = noise(8)
    turned = stain(pixels, Augmentation(hue=30.0), seeded())
    before, after = (-torch.log(each / 255) for each in (pixels, turned))
    assert torch.allclose(before.mean(1), after.mean(1), atol=1e-4)
    assert torch.allclose(before.square().sum(1), after.square().sum(1), atol=1e-3)
    change = (after - before).abs().mean((1, 2, 3))
    assert change.min() < change.max() / 3  # each image by an angle of its own
    assert torch.equal(stain(pixels, Augmentation(hue=0.0), seeded()), pixels)


def test_some_images_lose_their_colour_and_keep_their_brightness() -> None:
    pixels = noise(64)
    seen = recolour(pixels, Augmentation(grey=0.5), seeded())
    colour = seen.amax(1) - seen.amin(1)
    left = (colour.mean((1, 2)) / (pixels.amax(1) - pixels.amin(1)).mean((1, 2))).tolist()
    faded = [share for share in left if share < 0.999]
    assert 20 < len(faded) < 44
    assert 0 <= min(faded) < max(faded) <= 0.401
    luma = torch.tensor(LUMA).view(1, 3, 1, 1)
    assert torch.allclose((seen * luma).sum(1), (pixels * luma).sum(1), atol=1e-2)


def test_exchange_takes_on_the_density_of_another_image() -> None:
    pale, dark = 255 - noise(1) * 0.1, noise(1) * 0.3 + 5
    for seed in range(20):
        seen = stain(torch.cat([pale, dark]), Augmentation(exchange=1), seeded(seed))
        if (seen[0].mean() < pale.mean() - 1) and (seen[1].mean() > dark.mean() + 1):
            return
    pytest.fail("no image took on the other's strength")


def test_blurred_images_keep_their_mean_and_lose_their_grain() -> None:
    pixels = noise(8, 64)
    seen = soften(pixels, Augmentation(blur=1), seeded())
    assert seen.mean() == pytest.approx(float(pixels.mean()), abs=1)
    assert seen.std() < 0.9 * pixels.std()
    assert torch.equal(soften(pixels, Augmentation(), seeded()), pixels)


def test_nothing_is_recoloured_by_default() -> None:
    assert torch.equal(recolour(noise(), Augmentation(), seeded()), noise())
    assert torch.equal(stain(noise(), Augmentation(), seeded()), noise())


def test_a_tint_moves_channels_apart() -> None:
    seen = recolour(torch.full((4, 3, 8, 8), 100.0), Augmentation(tint=0.2), seeded())
    assert float(seen.amax((2, 3)).std(1).min()) > 0
    assert 80 <= float(seen.min()) <= float(seen.max()) <= 120
