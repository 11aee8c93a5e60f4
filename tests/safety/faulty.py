"""`leuko serve` with an engine that an image, by its grey, can hold, hang, break or kill.

Its decoders are those of `halting_decoder`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np

from app.cli.main import main
from app.engine.classifier import Classifier, Prediction
from app.errors import BundleError, EngineError
from app.imaging.framing import Cell
from app.inference import fork_server
from app.settings import Settings
from tests.fake_classifier import FakeClassifier
from tests.running import Running, running, wait_until
from tests.safety.halting_decoder import FOLDER

FAULTY = "import tests.safety.faulty as faulty; faulty.serve()"
# What the engine is told besides: files of these names, in FOLDER.
HELD, GO, BROKEN, LOAD = "held", "go", "broken", "load"
SECONDS = "LEUKO_TEST_SECONDS"  # that each batch takes

POISON, HOLD, HANG, BREAK, LEAVE, KILL = 3, 4, 5, 6, 7, 8  # greys


def _folder() -> Path:
    return Path(os.environ[FOLDER])


class FaultyClassifier(FakeClassifier):
    def warm_up(self, max_batch: int) -> None:
        super().warm_up(max_batch)
        self.check()

    def check(self) -> None:
        if (_folder() / BROKEN).exists():
            raise BundleError("the engine does not compute the bundle's network")

    def classify(self, cells: Sequence[Cell], *, exclusive: bool = True) -> list[Prediction | EngineError]:
        time.sleep(float(os.environ.get(SECONDS, "0")))
        for grey in [int(np.median(cell.pixels)) for cell in cells]:
            FAULTS.get(grey, _nothing)()
        if (_folder() / BROKEN).exists():
            raise RuntimeError("broken")
        return super().classify(cells, exclusive=exclusive)


def _nothing() -> None:
    pass


def _poison() -> None:
    raise RuntimeError("poison")


def _hold() -> None:
    (_folder() / HELD).touch()
    wait_for(_folder() / GO)


def _hang() -> None:
    threading.Event().wait()


def _break() -> None:
    (_folder() / BROKEN).touch()


def _leave() -> None:
    raise SystemExit("out of the thread")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[int, Callable[[], None]] = {
    POISON: _poison,
    HOLD: _hold,
    HANG: _hang,
    BREAK: _break,
    LEAVE: _leave,
    KILL: _kill,
}


def load(_: Settings) -> Classifier:
    if (_folder() / LOAD).exists():
        wait_for(_folder() / GO)
    return cast(Classifier, FaultyClassifier())


# `runs_decoder` knows decoders by the name of the module.
DECODER = "import sys, app.inference.decode_worker, tests.safety.halting_decoder as it; sys.exit(it.main())"


def serve(load: Callable[[Settings], Classifier] = load) -> None:
    fork_server.shared._command = (sys.executable, "-c", DECODER, str(_folder()))
    sys.exit(main(load=load))


def wait_for(path: Path) -> None:
    wait_until(path.exists)


@contextmanager
def faulty(folder: Path, *arguments: str, seconds: float = 0) -> Iterator[Running]:
    environ = {FOLDER: str(folder), SECONDS: str(seconds)}
    with running(FAULTY, "--decode-workers", "1", *arguments, environ=environ) as service:
        yield service
