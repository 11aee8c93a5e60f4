"""`app.inference.decode_worker` with an image that stops the decoder that is decoding it.

A decoder that has stopped is at work on a known image for as long as a test wants, so that a signal meets it
there on any machine.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from PIL import Image

from app.imaging.decode import decode
from app.imaging.limits import DEFAULT_LIMITS, ImageLimits
from app.inference import decode_worker
from tests.fake_classifier import png

FOLDER = "LEUKO_TEST_FAULTS"
RESUME = "resume"  # a file in that folder: from then on, the image is decoded like any other
HALT = png(0) + b"stop the decoder"


def halting(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    if data == HALT and not (Path(os.environ[FOLDER]) / RESUME).exists():
        os.kill(os.getpid(), signal.SIGSTOP)
    return decode(data, limits)


def main() -> int:
    decode_worker.decode = halting  # type: ignore[attr-defined]
    return decode_worker.main()


if __name__ == "__main__":
    sys.exit(main())
