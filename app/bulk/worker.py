"""A worker: holds a bundle in memory and scores one part after another."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

from app.archives.image_files import LeftOut
from app.bulk.destination import Destination, ScoredPart
from app.bulk.location import Location, without_credentials
from app.bulk.plan import Part
from app.bulk.reading import open_part
from app.engine.bundle import FILES
from app.engine.classifier import Classifier, load_classifier
from app.errors import EngineError, StartupError
from app.imaging.framing import Cell
from app.imaging.limits import ImageLimits
from app.inference.decode_pool import DecodePool
from app.inference.decode_worker import DecoderConfig
from app.inference.offline import run
from app.inference.threads import Heartbeat


class Scorer:
    """Scores parts of a source. source, destination: paths or URLs; decode_timeout_s: for one image.

    max_cells: classify all leukocytes of each image, up to this many; None: an image is one cell.

    Raise StartupError, also if the destination has not been started or is not visible from this machine.
    """

    def __init__(
        self,
        classifier: Classifier,
        source: str,
        destination: str,
        limits: ImageLimits,
        decode_timeout_s: float,
        max_cells: int | None = None,
    ) -> None:
        self._classifier = classifier
        self._source = Location.of(source)
        self._destination = Destination(Location.of(destination))
        if not self._destination.is_begun:
            raise StartupError(
                f"{gethostname()} has no access to {without_credentials(destination)}: every worker needs it"
            )
        self._max_bytes = limits.max_bytes
        self._all_cells = max_cells is not None
        config = DecoderConfig(
            limits,
            classifier.bundle.preprocessing,
            decode_timeout_s,
            max_cells=max_cells or 1,
            style=classifier.bundle.familiar is not None,
        )
        self._decoders = DecodePool(classifier.engine.workers, config)
        self._decoders.open()

    def close(self) -> None:
        self._decoders.close()

    def score(self, index: int, part: Part) -> ScoredPart:
        """Write the part's file, unless a worker that was lost afterwards has already written it.

        Raise OSError or ArrowException if the part cannot be read, EngineError if it ended too many workers.
        """
        if (done := self._destination.find(index)) is not None:
            return done
        left_out = LeftOut()
        opened = open_part(self._source, part, self._max_bytes, left_out)
        with self._destination.attempt(index), opened as images:
            frame_all = self._frame_all if self._all_cells else None
            outcomes = run(self._classifier, images, self._frame, frame_all=frame_all)
            labels = self._classifier.bundle.labels
            return self._destination.write(index, outcomes, labels, left_out, all_cells=self._all_cells)

    def _frame(self, data: bytes, heartbeat: Heartbeat) -> Cell:
        with _defects():
            return self._decoders.frame(data, heartbeat)

    def _frame_all(self, data: bytes, heartbeat: Heartbeat) -> list[Cell]:
        with _defects():
            return self._decoders.frame_all(data, heartbeat)


@contextmanager
def _defects() -> Iterator[None]:
    """Raise EngineError for a defect of Leuko: it must cost one row, not the run."""
    try:
        yield
    except RuntimeError as error:
        raise EngineError(f"the image cannot be framed: {error}") from error


def pack(bundle: Path) -> dict[str, bytes]:
    """Return the files of a bundle that are used at run time, to send them to the workers."""
    return {name: (bundle / name).read_bytes() for name in ("config.json", *FILES)}


def unpack(files: Mapping[str, bytes], engine: str, threads: int) -> Classifier:
    """Load the bundle that `pack` returned. Verify its hashes and its known answer."""
    with tempfile.TemporaryDirectory(prefix="leuko-bundle-") as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        classifier = load_classifier(Path(folder), engine, threads)
        classifier.warm_up(classifier.engine.batch)
    return classifier
