"""What each worker does: a bundle in memory, part after part through it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from socket import gethostname

from app.bulk.destination import Destination, Written
from app.bulk.location import Location, shown
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
    """source, destination: addresses; patience_s: for decoding one image.

    Raises StartupError, also where it sees no destination.
    """

    def __init__(
        self,
        classifier: Classifier,
        source: str,
        destination: str,
        limits: ImageLimits,
        patience_s: float,
    ) -> None:
        self._classifier = classifier
        self._source = Location.of(source)
        self._destination = Destination(Location.of(destination))
        if not self._destination.is_begun:
            raise StartupError(f"{gethostname()} does not see {shown(destination)}: all workers have to")
        self._most = limits.max_bytes
        orders = DecoderConfig(limits, classifier.bundle.preprocessing, patience_s)
        self._decoders = DecodePool(classifier.engine.workers, orders)
        self._decoders.open()

    def close(self) -> None:
        self._decoders.close()

    def score(self, index: int, part: Part) -> Written:
        """Writes the part's file, unless a worker has done so that was lost before it could say so.

        Raises OSError or ArrowException where the part cannot be read, EngineError where it ends its workers.
        """
        if (done := self._destination.find(index)) is not None:
            return done
        with self._destination.trying(index), open_part(self._source, part, self._most) as sources:
            outcomes = run(self._classifier, sources, self._frame)
            return self._destination.write(index, outcomes, self._classifier.bundle.labels)

    def _frame(self, data: bytes, heartbeat: Heartbeat) -> Cell:
        try:
            return self._decoders.frame(data, heartbeat)
        except RuntimeError as error:  # a defect of ours: one image of millions, and it is said in its row
            raise EngineError(f"the image cannot be framed: {error}") from error


def pack(bundle: Path) -> dict[str, bytes]:
    """The files of a bundle that are used at run time, to be sent to where they are needed."""
    return {name: (bundle / name).read_bytes() for name in ("config.json", *FILES)}


def unpack(files: Mapping[str, bytes], engine: str, threads: int) -> Classifier:
    """Loads what `pack` took, verified, and holds it against its known answer."""
    with tempfile.TemporaryDirectory(prefix="leuko-bundle-") as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        classifier = load_classifier(Path(folder), engine, threads)
        classifier.warm_up(classifier.engine.batch)
    return classifier
