"""`app.inference.decode_worker` with an image that halts the decoder that is decoding it.

A decoder that has halted is at work on a known image for as long as a test wants, so that a signal meets it
there on any machine. It can open no file and send no signal, so it shares a page of memory with the test.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from app.imaging.decode import decode
from app.imaging.limits import DEFAULT_LIMITS, ImageLimits
from app.inference import decode_worker
from tests.fake_classifier import png

FOLDER = "LEUKO_TEST_FAULTS"
# A file in that folder: the process that halted last, and whether HALT is decoded like any other image.
BOARD = "board"
HALT = png(0) + b"stop the decoder"
_GO = 4  # the offset of the second


def halted(folder: Path) -> int:
    """Return the decoder that has halted last, 0 for none."""
    return int.from_bytes(_open(folder)[:_GO], sys.byteorder)


@contextmanager
def resumed(folder: Path) -> Iterator[None]:
    """Within the context, HALT is decoded like any other image."""
    board = _open(folder)
    board[_GO] = 1
    yield
    board[_GO] = 0


def _open(folder: Path) -> mmap.mmap:
    descriptor = os.open(folder / BOARD, os.O_RDWR | os.O_CREAT, 0o666)
    os.ftruncate(descriptor, mmap.PAGESIZE)
    board = mmap.mmap(descriptor, mmap.PAGESIZE)
    os.close(descriptor)
    return board


def main() -> int:
    board = _open(Path(sys.argv[1]))

    def halting(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
        if data == HALT and not board[_GO]:
            board[:_GO] = os.getpid().to_bytes(_GO, sys.byteorder)
            while not board[_GO]:
                time.sleep(0.01)
        return decode(data, limits)

    decode_worker.decode = halting  # type: ignore[attr-defined]
    return decode_worker.main()


if __name__ == "__main__":
    sys.exit(main())
