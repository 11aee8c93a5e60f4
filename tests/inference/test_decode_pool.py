"""Decoding in separate processes gives the same cells and the same errors as in this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import private
from app.errors import LeukoError, NotReady, StartupError, TooLarge, UndecodableImage, UnsupportedFormat
from app.imaging.decode import ACCEPTED, decode
from app.imaging.framing import Cell, Preprocessing, frame_cell
from app.imaging.limits import ImageLimits
from app.inference.decode_pool import DecodePool, Decoder, DecoderLost, ForkServer
from app.inference.decode_worker import CELL, HELLO, READY, REPLY, REQUEST, DecoderConfig, receive
from app.samples.smear import draw_smear
from benchmarks.server import family
from tests.pictures import encode, picture
from tests.running import ROOT, linux, runs_decoder, wait_until

LIMITS = ImageLimits(max_bytes=300_000, max_pixels=100_000)
CONFIG = DecoderConfig(LIMITS, Preprocessing(), patience_s=30)
LARGE = ImageLimits(max_bytes=10**8, max_pixels=10**8)
SLOW = encode(Image.new("RGB", (6000, 6000)), "PNG")  # takes some tenths of a second to decode


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecodePool]:
    pool = DecodePool(1, CONFIG)
    pool.open()
    yield pool
    pool.close()


def here(data: bytes) -> Cell:
    return frame_cell(decode(data, LIMITS), CONFIG.preprocessing)


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_cell_is_the_same_as_from_this_process(decoders: DecodePool, kind: str) -> None:
    data = encode(draw_smear("monocyte", seed=3), kind)
    cell, expected = decoders.frame(data), here(data)
    assert np.array_equal(cell.pixels, expected.pixels)
    assert cell.frame == expected.frame


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
    decoders: DecodePool, data: bytes, kind: type[LeukoError]
) -> None:
    with pytest.raises(kind) as there:
        decoders.frame(data)
    with pytest.raises(kind) as expected:
        here(data)
    assert there.value.detail == expected.value.detail


def test_a_defect_is_raised_with_its_traceback() -> None:
    decoders = DecodePool(1, DecoderConfig(LIMITS, Preprocessing(size=-1), 30))
    with pytest.raises(RuntimeError, match="in frame_cell"):
        decoders.frame(encode(picture(), "PNG"))
    decoders.close()


def test_a_fork_server_that_does_not_start_is_a_startup_error() -> None:
    with pytest.raises(StartupError, match="no decoder process can be started"):
        ForkServer(["false"]).start_decoder(CONFIG)


def test_while_no_decoder_can_be_started_images_fail_with_not_ready_and_later_are_decoded() -> None:
    class Flaky(ForkServer):
        broken = True

        def start_decoder(self, config: DecoderConfig) -> Decoder:
            if self.broken:
                raise StartupError("no decoder process can be started: out of memory")
            return super().start_decoder(config)

    server = Flaky()
    decoders = DecodePool(1, CONFIG, fork_server=server)
    data = encode(picture(), "PNG")
    for _ in range(2):
        with pytest.raises(NotReady, match="out of memory"):
            decoders.frame(data)
    server.broken = False
    assert np.array_equal(decoders.frame(data).pixels, here(data).pixels)
    decoders.close()


@linux
def test_a_package_named_app_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").write_text("raise SystemExit('the wrong app')\n")
    code = "from app.inference.decode_pool import ForkServer; ForkServer().start()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@linux
def test_a_pool_closed_before_it_is_opened_keeps_no_process() -> None:
    before = decoding()
    decoders = DecodePool(2, CONFIG)
    decoders.close()
    decoders.open()
    wait_until(lambda: decoding() <= before)  # decoders of an earlier test may still be ending


@linux
def test_a_decoder_that_is_busy_when_the_pool_is_closed_ends_too() -> None:
    before = decoding()
    decoders = DecodePool(1, DecoderConfig(LARGE, Preprocessing(), patience_s=0.4))
    beats = 0

    def close() -> None:
        nonlocal beats
        beats += 1
        decoders.close()

    with suppress(UndecodableImage):  # it may take too long: irrelevant here
        decoders.frame(SLOW, close)
    assert beats
    wait_until(lambda: decoding() <= before)  # decoders of an earlier test may still be ending


def test_a_decoder_that_takes_too_long_ends_itself() -> None:
    ours, theirs = socket.socketpair()
    with subprocess.Popen(private.command("app.inference.decode_worker"), stdin=theirs.fileno()), ours:
        theirs.close()
        assert receive(ours, 1) == READY
        mine, its = socket.socketpair()
        with mine:
            socket.send_fds(ours, [DecoderConfig(LARGE, Preprocessing(), 0.01).dump()], [its.fileno()])
            its.close()
            assert receive(mine, 2) == HELLO + READY
            mine.sendall(REQUEST.pack(len(SLOW)) + SLOW)
            assert receive(mine, 1) == b""  # the decoder has ended without a reply


@linux
def test_a_decoder_is_replaced_without_a_loss_when_its_processor_time_is_used_up() -> None:
    losses: list[None] = []
    decoders = DecodePool(1, DecoderConfig(LIMITS, Preprocessing(), 30, lives=0), lambda: losses.append(None))
    decoders.open()
    data = encode(picture(), "PNG")
    expected = here(data)
    for _ in range(3):
        before = decoding()
        assert np.array_equal(decoders.frame(data).pixels, expected.pixels)
        with pytest.raises(UnsupportedFormat):
            decoders.frame(b"text")
        assert decoding() - before
    assert not losses
    decoders.close()


NAN = float("nan")


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        ((7, False, 0, 0, 0, 0, False, 0), b""),  # a kind that there is not
        ((1, False, 0, 0, 0, 0, False, 2**32 - 1), b""),  # 4 GiB
        ((1, False, 0, 0, 0, 0, False, 1), b"\xff"),  # not UTF-8
        ((CELL, False, NAN, 0, 0, 0, False, 0), b""),
    ],
    ids=["kind", "length", "text", "frame"],
)
def test_a_reply_that_is_none_of_ours_counts_as_a_loss(reply: tuple[object, ...], body: bytes) -> None:
    ours, theirs = socket.socketpair()
    decoder = Decoder(ours, None, CONFIG)
    theirs.sendall(REPLY.pack(*reply) + body)
    with theirs, pytest.raises(DecoderLost) as lost:
        decoder.frame(b"", lambda: pytest.fail("it waits for more"))
    assert not lost.value.late
    decoder.close()


def test_a_reply_in_drips_ends_at_the_time_limit_and_gives_heartbeats() -> None:
    ours, theirs = socket.socketpair()
    decoder = Decoder(ours, None, DecoderConfig(LIMITS, Preprocessing(), 0.1))
    beats = 0

    def drip() -> None:
        nonlocal beats
        beats += 1
        theirs.sendall(b"\0")

    theirs.sendall(REPLY.pack(CELL, False, 0, 0, 1, 1, False, 0))
    with theirs, pytest.raises(DecoderLost) as lost:
        decoder.frame(b"", drip)
    assert beats
    assert lost.value.late
    decoder.close()


def test_after_a_failure_the_pool_starts_decoders_again_by_itself() -> None:
    class Broken(ForkServer):
        broken = False

        def start_decoder(self, config: DecoderConfig) -> Decoder:
            if self.broken:
                raise StartupError("no decoder process can be started: out of memory")
            return super().start_decoder(config)

    server = Broken()
    decoders = DecodePool(1, CONFIG, fork_server=server)
    decoders.open()
    assert decoders.obstacle is None
    server.broken = True
    decoders._take().close()
    with pytest.raises(NotReady):
        decoders.frame(encode(picture(), "PNG"))
    assert decoders.obstacle == "no decoder process can be started: out of memory"
    server.broken = False
    wait_until(lambda: decoders.obstacle is None)
    decoders.close()


def decoding() -> set[int]:
    return set(filter(runs_decoder, family(os.getpid())))
