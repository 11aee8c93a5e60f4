"""Scenarios 1 to 4, 7 and 8 of the safety plan: pictures that lie, lack their end, or are none."""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.errors import UndecodableImage
from app.imaging.decode import decode
from tests.fuzz import fuzz_decode
from tests.fuzz.mutations import mutate
from tests.pictures import colour, encode, picture, pixels, png, real
from tests.running import Running, running
from tests.safety.memory import growing_less_than
from tests.safety.sending import IMAGE, alone, status, together
from tests.safety.unshaken import UNSHAKEN

REFUSALS = {413, 415, 422}
START_OF_FRAME, START_OF_SCAN = b"\xff\xc0", b"\xff\xda"


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(UNSHAKEN) as found:
        yield found


def noise(side: int = 48) -> Image.Image:
    """Nothing in it follows from what surrounds it, so whatever is lost is seen."""
    return Image.fromarray(np.random.default_rng(4).integers(0, 90, (side, side, 3), dtype=np.uint8))


# --- 1: malformed -----------------------------------------------------------------------------------


def test_01_thousands_of_malformed_images_are_refused_by_name_and_memory_stays_flat(service: Running) -> None:
    random, seeds = Random(1), fuzz_decode.seeds()
    warm_up, images = ([mutate(random, seeds) for _ in range(1500)] for _ in range(2))
    with service.client() as client:
        list(together(client, warm_up))
        before = service.resident_mib()
        found = Counter(map(status, together(client, images)))
        assert service.resident_mib() - before < 24
        assert client.get("/readyz").status_code == 200
    assert set(found) == {200, *REFUSALS}


def test_01_a_malformed_image_has_the_same_status_alone_and_among_others(service: Running) -> None:
    random, seeds = Random(2), fuzz_decode.seeds()
    images = [mutate(random, seeds) for _ in range(320)]
    with service.client() as client:
        among_others = [status(item) for item in together(client, images)]
        assert [alone(client, image).status_code for image in images] == among_others


def test_01_the_malformed_collection_is_answered_by_name(service: Running) -> None:
    files = sorted(filter(Path.is_file, real("malformed").rglob("*")))
    with service.client() as client:
        found = Counter(alone(client, file.read_bytes()).status_code for file in files)
        assert client.get("/readyz").status_code == 200
    assert set(found) == {200, *REFUSALS}
    assert found.total() > 600


# --- 2 and 3: more pixels claimed than are there ----------------------------------------------------


@pytest.mark.parametrize("side", [5_001, 50_000])
def test_02_a_small_png_that_claims_a_flood_of_pixels_costs_no_memory(service: Running, side: int) -> None:
    flood = png(side, side)
    assert len(flood) < 1024
    with service.client() as client:
        alone(client, png(10, 10))
        with growing_less_than(20, service):
            answer = alone(client, flood)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize(("width", "height"), [(65_535, 65_535), (5_001, 5_001), (12_001, 8), (8, 12_001)])
def test_03_a_jpeg_is_too_large_by_its_header_before_anything_is_decoded(
    service: Running, width: int, height: int
) -> None:
    data = encode(picture(), "JPEG")
    place = data.index(START_OF_FRAME) + 5
    claiming = data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]
    # With no pixels at all, a decoder that began would have said 422.
    empty = claiming[: claiming.index(START_OF_SCAN) + 14]
    with service.client() as client, growing_less_than(20, service):
        answer = alone(client, empty)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert f"{width} by {height}" in answer.json()["detail"] or width * height > 10**9


# --- 4: the end is missing --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 1, "progressive": True},
        {"subsampling": 0, "optimize": True},
    ],
    ids=str,
)
def test_04_a_jpeg_cut_anywhere_is_refused_or_whole(mode: str, options: dict[str, Any]) -> None:
    data = encode(noise().convert(mode), "JPEG", quality=70, **options)
    whole = pixels(decode(data))
    for end in range(len(data)):
        try:
            found = decode(data[:end])
        except UndecodableImage:
            continue
        assert np.array_equal(pixels(found), whole), end


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_04_no_cut_jpeg_is_answered_as_grey(service: Running, options: dict[str, Any]) -> None:
    data = encode(noise(40), "JPEG", quality=60, **options)
    with service.client() as client:
        whole = alone(client, data).json()["predictions"][0]
        assert whole["label"] == "eosinophil"  # the fake's name of dark; grey is a monocyte
        items = list(together(client, [data[:end] for end in range(len(data))]))
    assert {status(item) for item in items} <= {200, 422}
    kept = [item for item in items if status(item) == 200]
    assert all(item["probabilities"] == whole["probabilities"] for item in kept)
    assert len(kept) < 8


# --- 7: other formats -------------------------------------------------------------------------------

OTHERS = {
    "svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "html": b"<!doctype html><script>alert(1)</script>",
    "zip": b"PK\3\4" + bytes(90),
} | {kind: encode(picture(), kind) for kind in ("EPS", "PDF", "JPEG2000", "ICO", "TGA", "PPM")}


@pytest.mark.parametrize("kind", OTHERS)
def test_07_another_format_named_png_is_not_accepted(service: Running, kind: str) -> None:
    data = OTHERS[kind]
    with service.client() as client:
        form = client.post("/predict", files=[("files", ("cell.png", data, "image/png"))])
        bare = client.post("/predict", content=data, headers=IMAGE)
    for answer in (form, bare):
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_format")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "alert" not in answer.text


# --- 8: more than one frame -------------------------------------------------------------------------


def poisoned_gif(frames: int) -> bytes:
    """One frame of red; each of the rest claims 65,535² pixels and has data of no kind."""
    red = encode(Image.new("RGB", (16, 16), "red"), "GIF")
    poison = b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x08\x04\xff\xff\xff\xff\0"
    return red[:-1] + poison * (frames - 1) + red[-1:]


def poisoned_mpo() -> bytes:
    red = Image.new("RGB", (16, 16), "red")
    data = bytearray(encode(red, "MPO", save_all=True, append_images=[red]))
    place = data.rindex(START_OF_FRAME) + 5
    data[place : place + 4] = b"\xff" * 4
    return bytes(data)


def poisoned_tiff() -> bytes:
    """A page of red, and one of 65,535² pixels that says that it is followed by itself."""
    red = encode(Image.new("RGB", (16, 16), "red"), "TIFF")
    first, here = int.from_bytes(red[4:8], "little"), struct.pack("<L", len(red))
    link = first + 2 + 12 * int.from_bytes(red[first : first + 2], "little")
    page = bytearray(red[first:link] + here)
    for place in range(2, len(page) - 4, 12):
        if int.from_bytes(page[place : place + 2], "little") in (256, 257):  # width, height
            page[place + 8 : place + 10] = b"\xff\xff"
    return red[:link] + here + red[link + 4 :] + page


def read_second(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.seek(1)
        image.load()


POISONED = {"GIF": poisoned_gif(10_000), "MPO": poisoned_mpo(), "TIFF": poisoned_tiff()}


@pytest.mark.parametrize("kind", POISONED)
def test_08_only_the_first_frame_is_read(kind: str) -> None:
    red, green, blue = colour(decode(POISONED[kind]))
    assert (red > 250, green < 5, blue < 5) == (True, True, True)


@pytest.mark.parametrize("kind", POISONED)
def test_08_the_frames_after_the_first_are_truly_poison(kind: str) -> None:
    with pytest.raises(Image.DecompressionBombError):
        read_second(POISONED[kind])


@pytest.mark.parametrize("kind", POISONED)
def test_08_frames_that_are_not_read_cost_no_memory(service: Running, kind: str) -> None:
    with service.client() as client:
        alone(client, encode(picture(), "GIF"))
        with growing_less_than(20, service):
            assert alone(client, POISONED[kind]).status_code == 200
