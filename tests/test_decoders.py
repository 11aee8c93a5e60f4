"""Decoders in processes of their own: the same cells and the same errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from app.decoder import Orders
from app.decoders import Decoders, ForkServer
from app.errors import LeukoError, StartupError, TooLarge, UndecodableImage, UnsupportedFormat
from app.vision.decode import ACCEPTED, ImageLimits, decode
from app.vision.framing import Cell, Preprocessing, frame_cell
from app.vision.sample import draw_smear
from tests.vision.pictures import encode, picture

LIMITS = ImageLimits(max_bytes=300_000, max_pixels=100_000)
ORDERS = Orders(LIMITS, Preprocessing(), patience_s=30)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    found = Decoders(1, ORDERS)
    yield found
    found.close()


def here(data: bytes) -> Cell:
    return frame_cell(decode(data, LIMITS), ORDERS.preprocessing)


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_cell_is_the_same_as_from_this_process(decoders: Decoders, kind: str) -> None:
    data = encode(draw_smear("monocyte", seed=3), kind)
    found, expected = decoders.frame(data), here(data)
    assert np.array_equal(found.pixels, expected.pixels)
    assert found.frame == expected.frame


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", UndecodableImage),
        (b"text", UnsupportedFormat),
        (encode(picture(), "PNG")[:-30], UndecodableImage),
        (encode(picture(400, 300), "BMP"), TooLarge),  # pixels
        (bytes(LIMITS.max_bytes + 1), TooLarge),
    ],
    ids=["empty", "text", "cut", "pixels", "bytes"],
)
def test_an_error_is_the_same_as_from_this_process(
    decoders: Decoders, data: bytes, kind: type[LeukoError]
) -> None:
    with pytest.raises(kind) as there:
        decoders.frame(data)
    with pytest.raises(kind) as expected:
        here(data)
    assert there.value.detail == expected.value.detail


def test_a_defect_is_raised_with_the_place_where_it_is() -> None:
    decoders = Decoders(1, Orders(LIMITS, Preprocessing(size=-1), 30))
    with pytest.raises(RuntimeError, match="in frame_cell"):
        decoders.frame(encode(picture(), "PNG"))
    decoders.close()


def test_what_cannot_be_started_is_a_startup_error() -> None:
    with pytest.raises(StartupError, match="no decoder can be started"):
        ForkServer(["false"]).decoder(ORDERS)
