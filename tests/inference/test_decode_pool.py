"""Decoding in separate processes gives the same cells and the same errors as in this one."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image

from app import private
from app.errors import LeukoError, NotReady, StartupError, TooLarge, UndecodableImage, UnsupportedFormat
from app.imaging.decode import ACCEPTED, decode
from app.imaging.framing import Cell, Preprocessing, frame_cell, frame_cells
from app.imaging.limits import ImageLimits
from app.imaging.style import describe
from app.inference.decode_pool import DecodePool, Decoder, DecoderFailed, DecoderLost
from app.inference.decode_worker import (
    CELL,
    CELLS,
    DEFECT,
    MEASURES,
    MOST_TEXT,
    REPLY,
    REQUEST,
    DecoderConfig,
    receive,
)
from app.inference.fork_server import HELLO, READY, ForkServer
from app.samples.smear import draw_smear
from benchmarks.server import family
from tests import tiffs
from tests.fields import FOUR, field, field_png
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


def test_all_cells_of_a_field_are_the_same_as_from_this_process() -> None:
    config = DecoderConfig(LARGE, Preprocessing(size=64), 30, max_cells=4)
    pool = DecodePool(1, config)
    pool.open()
    cells = pool.frame_all(field_png())
    expected = frame_cells(decode(field_png()), config.preprocessing, 4)
    assert len(cells) == len(expected) == 4
    for cell, other in zip(cells, expected, strict=True):
        assert np.array_equal(cell.pixels, other.pixels)
        assert (cell.frame, cell.quality) == (other.frame, other.quality)
    assert pool.frame_all(encode(Image.new("RGB", (64, 64), "white"), "PNG")) == []
    with pytest.raises(TooLarge, match="leukocytes"):
        pool.frame_all(encode(field(FOUR + FOUR)[0], "PNG"))
    with pytest.raises(UndecodableImage):
        pool.frame_all(field_png()[:2000])
    pool.close()


def test_samples_of_every_kind_are_scaled_in_a_confined_decoder_too(decoders: DecodePool) -> None:
    shades = np.asarray(draw_smear("monocyte", seed=3, width=160, height=120))
    deep = np.rint(shades * (4095 / 255)).astype(np.uint16)
    files = [
        tiffs.write([tiffs.page(samples, 2, planar=planar, tile=tile, compression=compression)])
        for samples in (shades, deep, (shades / 255).astype(np.float32))
        for planar, tile, compression in ((False, 0, 1), (True, 16, 8), (False, 0, 5))
    ]
    files.append(encode(Image.fromarray(shades), "TIFF", compression="jpeg"))
    for data in files:
        assert np.array_equal(decoders.frame(data).pixels, here(data).pixels)


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


def test_a_defect_is_raised_with_its_place_and_its_decoder_is_replaced() -> None:
    losses: list[None] = []
    config = DecoderConfig(LIMITS, Preprocessing(size=-1), 30)
    decoders = DecodePool(1, config, lambda: losses.append(None))
    decoders.open()
    for _ in range(2):
        with pytest.raises(DecoderFailed, match=r"^[A-Za-z]+Error( app/[a-z/_]+\.py:\d+){2,3}$"):
            decoders.frame(encode(picture(), "PNG"))
    assert len(losses) == 2
    decoders.close()


def test_a_fork_server_that_does_not_start_is_a_startup_error() -> None:
    with pytest.raises(StartupError, match="no decoder process can be started"):
        ForkServer(["false"]).fork(CONFIG.dump())


def start(server: ForkServer) -> Decoder:
    return Decoder(*server.fork(CONFIG.dump()), CONFIG)


class Obstructed(ForkServer):
    """Starts decoders while it is free; else it cannot, or is stuck until it is free."""

    def __init__(self, *, stuck: bool) -> None:
        super().__init__()
        self.free = Event()
        self.free.set()
        self._stuck = stuck

    def fork(self, config: bytes) -> tuple[socket.socket, int | None]:
        if self._stuck:
            self.free.wait()
        if not self.free.is_set():
            raise StartupError("no decoder process can be started: out of memory")
        return super().fork(config)


@pytest.mark.parametrize("stuck", [False, True])
def test_while_no_decoder_can_be_started_images_fail_with_not_ready_and_later_are_decoded(
    stuck: bool,
) -> None:
    server, beats = Obstructed(stuck=stuck), 0

    def beat() -> None:
        nonlocal beats
        beats += 1

    decoders = DecodePool(1, CONFIG, fork_server=server, wait_s=0.2 if stuck else 60)
    decoders.open()
    assert decoders.obstacle is None
    data = encode(picture(), "PNG")
    server.free.clear()
    decoder = decoders._take(beat)
    decoder.ended = True
    decoders._put_back(decoder)
    for _ in range(2):
        with pytest.raises(NotReady, match="no decoder process can be started"):
            decoders.frame(data, beat)
    assert decoders.obstacle is not None
    assert beats or not stuck
    server.free.set()
    wait_until(lambda: decoders.obstacle is None)
    assert np.array_equal(decoders.frame(data).pixels, here(data).pixels)
    decoders.close()


def test_an_image_that_waits_for_a_decoder_ends_when_the_pool_is_closed() -> None:
    server = Obstructed(stuck=True)
    decoders = DecodePool(1, CONFIG, fork_server=server, wait_s=60)
    decoders.open()
    server.free.clear()
    decoders._take(lambda: None).close()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(decoders.frame, encode(picture(), "PNG"))
        wait_until(lambda: decoders._waiting == 1)
        decoders.close()
        assert isinstance(waiting.exception(), NotReady)
    server.free.set()


@linux
def test_a_fork_server_that_is_stopped_is_replaced() -> None:
    server = ForkServer()
    start(server).close()
    stopped = server._process
    assert stopped is not None
    stopped.send_signal(signal.SIGSTOP)
    start(server).close()
    assert stopped.returncode == -signal.SIGKILL
    server._end()


@linux
def test_a_forked_child_uses_the_same_fork_server_and_ends_only_what_it_started() -> None:
    code = f"""
import os
from app.inference.fork_server import ForkServer, end
def start():
    connection, process = server.fork({CONFIG.dump()!r})
    connection.close()
    end(process)
server = ForkServer()
server.launch()
server.start()
process = server._process
if (child := os.fork()) == 0:
    start()
    server._end()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
start()
assert server._process is process and process.poll() is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@linux
def test_a_package_named_app_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").write_text("raise SystemExit('the wrong app')\n")
    code = "from app.inference.fork_server import ForkServer; ForkServer().start()"
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
    decoders.open()
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
            mine.sendall(REQUEST.pack(len(SLOW), False) + SLOW)
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
        wait_until(lambda known=before: bool(decoding() - known))  # type: ignore[misc]
    assert not losses
    decoders.close()


NAN = float("nan")
NONE = (0.0,) * 8  # measures of quality


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        ((7, False, 0, 0, 0, 0, False, *NONE, 0), b""),  # a kind that there is not
        ((1, False, 0, 0, 0, 0, False, *NONE, 2**32 - 1), b""),  # 4 GiB
        ((1, False, 0, 0, 0, 0, False, *NONE, MOST_TEXT + 1), b"a" * (MOST_TEXT + 1)),
        ((DEFECT, False, 0, 0, 0, 0, False, *NONE, MOST_TEXT + 1), b"a" * (MOST_TEXT + 1)),
        ((1, False, 0, 0, 0, 0, False, *NONE, 1), b"\xff"),  # not ASCII
        ((1, False, 0, 0, 0, 0, False, *NONE, 3), "\u202e".encode()),  # turns the direction of what follows
        ((1, False, 0, 0, 0, 0, False, *NONE, 2), b"\x1b["),  # for a terminal
        ((CELL, False, NAN, 0, 0, 0, False, *NONE, 0), b""),
        ((CELL, False, 0, 0, 0, 0, False, *NONE[1:], NAN, 0), b""),
    ],
    ids=["kind", "length", "long text", "long defect", "text", "direction", "control", "frame", "quality"],
)
def test_a_reply_that_is_none_of_ours_counts_as_a_loss(reply: tuple[object, ...], body: bytes) -> None:
    ours, theirs = socket.socketpair()
    decoder = Decoder(ours, None, CONFIG)
    theirs.sendall(REPLY.pack(*reply) + body)
    with theirs, pytest.raises(DecoderLost) as lost:
        decoder.frame(b"", lambda: pytest.fail("it waits for more"))
    assert not lost.value.late
    decoder.close()


@pytest.mark.parametrize(
    "length",
    [1, 257 * (MEASURES.size + 3 * 224**2), 2**32 - 1],
    ids=["part of a cell", "more than there may be", "4 GiB"],
)
def test_a_reply_of_cells_that_is_none_of_ours_counts_as_a_loss(length: int) -> None:
    ours, theirs = socket.socketpair()
    decoder = Decoder(ours, None, CONFIG)
    theirs.sendall(REPLY.pack(CELLS, False, 0, 0, 0, 0, False, *NONE, length) + b"a")
    with theirs, pytest.raises(DecoderLost):
        decoder.frame_all(b"", lambda: pytest.fail("it waits for more"))
    decoder.close()


@pytest.mark.parametrize(("kind", "all_cells"), [(CELL, True), (CELLS, False)])
def test_a_reply_to_another_question_counts_as_a_loss(kind: int, all_cells: bool) -> None:
    ours, theirs = socket.socketpair()
    decoder = Decoder(ours, None, CONFIG)
    theirs.sendall(REPLY.pack(kind, False, 0, 0, 0, 0, False, *NONE, 0))
    with theirs, pytest.raises(DecoderLost):
        (decoder.frame_all if all_cells else decoder.frame)(b"", lambda: None)
    decoder.close()


def test_a_reply_in_drips_ends_at_the_time_limit_and_gives_heartbeats() -> None:
    ours, theirs = socket.socketpair()
    decoder = Decoder(ours, None, DecoderConfig(LIMITS, Preprocessing(), 0.1))
    beats = 0

    def drip() -> None:
        nonlocal beats
        beats += 1
        theirs.sendall(b"\0")

    theirs.sendall(REPLY.pack(CELL, False, 0, 0, 1, 1, False, *NONE, 0))
    with theirs, pytest.raises(DecoderLost) as lost:
        decoder.frame(b"", drip)
    assert beats
    assert lost.value.late
    decoder.close()


@pytest.mark.parametrize("eager", [False, True])
def test_an_image_that_is_read_slowly_or_not_at_all_ends_at_the_time_limit_and_gives_heartbeats(
    eager: bool,
) -> None:
    ours, theirs = socket.socketpair()
    decoder = Decoder(ours, None, DecoderConfig(LIMITS, Preprocessing(), 0.2))
    beats = 0

    def sip() -> None:
        nonlocal beats
        beats += 1
        if eager:
            theirs.recv(40_000)

    with theirs, pytest.raises(DecoderLost) as lost:
        decoder.frame(bytes(100_000_000), sip)
    assert beats > 2
    assert lost.value.late
    decoder.close()


def test_a_large_image_arrives_whole() -> None:
    data = np.random.default_rng(0).bytes(3_000_000)
    ours, theirs = socket.socketpair()
    decoder = Decoder(ours, None, CONFIG)

    def answer() -> bytes:
        found = receive(theirs, REQUEST.size + len(data))
        theirs.sendall(REPLY.pack(1, False, 0, 0, 0, 0, False, *NONE, 3) + b"yes")
        return found

    with theirs, ThreadPoolExecutor() as pool:
        reading = pool.submit(answer)
        with pytest.raises(TooLarge, match="yes"):
            decoder.frame(data, lambda: None)
        assert reading.result() == REQUEST.pack(len(data), False) + data
    decoder.close()


@pytest.mark.parametrize(
    "text",
    [
        "images of others",
        "object",
        "ValueError 4a6f686e",
        "ValueError app/imaging/none.py:1",
        "ValueError app/../tests/running.py:1",
        "ValueError app/imaging/decode.py:12345",
        "ValueError" + 4 * " app/imaging/decode.py:1",
    ],
)
def test_of_a_defect_nothing_is_told_but_a_type_and_places_in_our_files(text: str) -> None:
    ours, theirs = socket.socketpair()
    decoder = Decoder(ours, None, CONFIG)
    theirs.sendall(REPLY.pack(DEFECT, False, 0, 0, 0, 0, False, *NONE, len(text)) + text.encode())
    with theirs, pytest.raises(DecoderFailed, match=r"^unknown$"):
        decoder.frame(b"", lambda: None)
    decoder.close()


def test_a_decoder_whose_reply_was_not_awaited_is_not_used_again() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    losses: list[None] = []
    decoders = DecodePool(1, DecoderConfig(LARGE, Preprocessing(), 4), lambda: losses.append(None))
    decoders.open()
    decoder = decoders._idle[0]
    decoder._slice_s = 0.001
    decoder._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 1000))
    with pytest.raises(KeyboardInterrupt):
        decoders.frame(SLOW, interrupt)
    assert len(losses) == 1
    decoders.close()


def decoding() -> set[int]:
    return set(filter(runs_decoder, family(os.getpid())))


def test_a_decoder_describes_the_style_of_its_cells_if_asked() -> None:
    data = field_png()
    decoders = DecodePool(1, replace(CONFIG, limits=ImageLimits(), style=True))
    decoders.open()
    cells = [decoders.frame(data), *decoders.frame_all(data)]
    decoders.close()
    assert len(cells) > 2
    for cell in cells:
        assert cell.style is not None
        assert cell.style == pytest.approx(describe(cell.pixels), abs=1e-5)
