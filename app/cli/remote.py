"""`leuko predict --url`: classifies stored images on a running service, through leuko-client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Literal

from app import errors
from app.archives.images import StoredImage
from app.engine.classifier import Prediction
from app.errors import LeukoError, RemoteError, SettingsError
from app.imaging.framing import Frame
from app.inference.offline import Outcome
from app.inference.pipeline import Answer, Field, Result
from app.wire.schemas import ModelReference

if TYPE_CHECKING:
    from leuko_client import Client, ProblemError, UnreadableImage
    from leuko_client import Prediction as RemotePrediction

BATCH = 64  # images in a request
BY_CODE = {kind.code: kind for kind in (errors.TooLarge, errors.UnsupportedFormat, errors.UndecodableImage)}


@contextmanager
def connect(url: str, key: str | None) -> Iterator[Remote]:
    """Connect to the service at `url`.

    Raise RemoteError, or SettingsError if leuko-client is missing or `url` or `key` cannot be used.
    """
    try:
        import leuko_client
    except ImportError:
        raise SettingsError(
            "--url needs leuko-client: run `make install EXTRAS=client` in Leuko's checkout"
        ) from None
    try:
        opened = leuko_client.Client(url, key=key, retries=leuko_client.Retries(attempts=3))
    except ValueError as error:
        raise SettingsError(str(error)) from None
    with opened as client:
        try:
            model = client.model()
        except leuko_client.LeukoError as error:
            raise RemoteError(str(error)) from error
        reference = ModelReference(name=model.name, version=model.version, sha256=model.sha256)
        yield Remote(client, reference, tuple(model.labels), min(BATCH, model.limits.max_files))


@dataclass(frozen=True)
class Remote:
    """A running service. model, labels: of the bundle it has loaded; batch: images in one request."""

    client: Client
    model: ModelReference
    labels: tuple[str, ...]
    batch: int

    def classify(self, images: Iterable[StoredImage], *, all_cells: bool = False) -> Iterator[Outcome]:
        """Yield one outcome for each image, in order. all_cells: of all its leukocytes. Raise RemoteError."""
        remaining = iter(images)
        while batch := list(islice(remaining, self.batch)):
            yield from self._classify(batch, all_cells)

    def _classify(self, batch: Sequence[StoredImage], all_cells: bool) -> Iterator[Outcome]:
        import leuko_client

        answers: dict[int, Result | LeukoError] = {}
        files: dict[int, bytes] = {}
        for index, image in enumerate(batch):
            try:
                files[index] = image.read()
            except LeukoError as error:
                answers[index] = error
        try:
            cells: Literal["one", "all"] = "all" if all_cells else "one"
            outcomes = self.client.predict_many(list(files.values()), cells=cells, concurrency=4)
            for index, outcome in zip(files, outcomes, strict=True):
                if outcome.error is not None:
                    answers[index] = _error(outcome.error)
                elif all_cells:
                    found = tuple(_answer(cell, self.labels) for cell in outcome.cells)
                    answers[index] = Field(sha256(files[index]).hexdigest(), found)
                elif outcome.prediction is not None:
                    answers[index] = _answer(outcome.prediction, self.labels)
        except leuko_client.LeukoError as error:
            raise RemoteError(str(error)) from error
        for index, image in enumerate(batch):
            yield Outcome(image, answers[index])


def _answer(remote: RemotePrediction, labels: Sequence[str]) -> Answer:
    probabilities = tuple(remote.probabilities[label] for label in labels)
    prediction = Prediction(
        remote.label, remote.confidence, probabilities, remote.ood_score, tuple(remote.review_reasons)
    )
    left, top, width, height = remote.frame.left, remote.frame.top, remote.frame.width, remote.frame.height
    frame = Frame(left, top, width, height, remote.frame.nucleus)
    return Answer(remote.image_sha256, frame, prediction, remote.cell)


def _error(error: ProblemError | UnreadableImage) -> LeukoError:
    from leuko_client import ProblemError

    if not isinstance(error, ProblemError):  # cannot be: the images are sent as bytes
        return errors.EngineError(str(error))
    return BY_CODE.get(error.code, errors.EngineError)(error.detail)
