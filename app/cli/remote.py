"""Images on this machine → answers of a service elsewhere, through its client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from app import errors
from app.archives.images import StoredImage
from app.engine.classifier import Prediction
from app.errors import LeukoError, RemoteError, SettingsError
from app.imaging.framing import Frame
from app.inference.offline import Outcome
from app.inference.pipeline import Answer
from app.wire.schemas import ModelReference

if TYPE_CHECKING:
    from leuko_client import Client, ProblemError
    from leuko_client import Prediction as Answered

BATCH = 64  # images in a request
KINDS = {kind.code: kind for kind in (errors.TooLarge, errors.UnsupportedFormat, errors.UndecodableImage)}


@contextmanager
def connect(url: str, key: str | None) -> Iterator[Remote]:
    """Raises RemoteError, SettingsError."""
    try:
        import leuko_client
    except ImportError:
        raise SettingsError(
            "--url needs Leuko's extra client, which is not installed here: make serve EXTRAS=client"
        ) from None
    with leuko_client.Client(url, key=key, retries=leuko_client.Retries(attempts=3)) as client:
        try:
            model = client.model()
        except leuko_client.LeukoError as error:
            raise RemoteError(str(error)) from error
        reference = ModelReference(name=model.name, version=model.version, sha256=model.sha256)
        yield Remote(client, reference, tuple(model.labels), min(BATCH, model.limits.max_files))


@dataclass(frozen=True)
class Remote:
    """A service and what it has loaded."""

    client: Client
    model: ModelReference
    labels: tuple[str, ...]
    batch: int

    def classify(self, sources: Iterable[StoredImage]) -> Iterator[Outcome]:
        """One outcome a source, in order. Raises RemoteError."""
        remaining = iter(sources)
        while batch := list(islice(remaining, self.batch)):
            yield from self._classify(batch)

    def _classify(self, batch: Sequence[StoredImage]) -> Iterator[Outcome]:
        import leuko_client

        answers: dict[int, Answer | LeukoError] = {}
        images: dict[int, bytes] = {}
        for index, source in enumerate(batch):
            try:
                images[index] = source.read()
            except LeukoError as error:
                answers[index] = error
        try:
            found = self.client.predict_many(list(images.values()), concurrency=4)
            for index, outcome in zip(images, found, strict=True):
                if outcome.prediction is not None:
                    answers[index] = _answer(outcome.prediction, self.labels)
                elif outcome.error is not None:
                    answers[index] = _error(outcome.error)
        except leuko_client.LeukoError as error:
            raise RemoteError(str(error)) from error
        for index, source in enumerate(batch):
            yield Outcome(source, answers[index])


def _answer(found: Answered, labels: Sequence[str]) -> Answer:
    probabilities = tuple(found.probabilities[label] for label in labels)
    prediction = Prediction(
        found.label, found.confidence, probabilities, found.ood_score, tuple(found.review_reasons)
    )
    sides = found.frame
    frame = Frame(sides.left, sides.top, sides.width, sides.height, sides.nucleus)
    return Answer(found.image_sha256, frame, prediction)


def _error(problem: ProblemError) -> LeukoError:
    return KINDS.get(problem.code, errors.EngineError)(problem.detail)
