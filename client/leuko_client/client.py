"""The client for ordinary code."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from leuko_client import protocol
from leuko_client.errors import LeukoError, ProblemError, TransportError, UnexpectedAnswer
from leuko_client.models import Differential, Evaluation, Model, Prediction, Progress, Report
from leuko_client.progress import Bar, counted
from leuko_client.protocol import Call, Format, Image, Outcome, Result, Retries

URL = "http://127.0.0.1:8000"


class Client:
    """May be used by several threads. Closes its connections as a context manager, or by `close`.

    url: of the service, with a prefix where it has one. key: as `leuko key` printed it. timeout: seconds for
    one answer. transport: of httpx, for tests and proxies. Every method raises LeukoError.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: Retries = Retries(),  # noqa: B008 (it is frozen)
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self._http = httpx.Client(
            base_url=url, headers=protocol.headers(key), timeout=timeout, transport=transport
        )
        self._retries = retries
        self._sleep = sleep
        self._clock = clock

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def predict(self, image: Image, *, explain: Literal["cam"] | None = None) -> Prediction:
        """explain: `cam` adds an activation map."""
        (found,) = self._call(protocol.predict([protocol.read(image)], explain)).predictions
        return found

    def predict_many(
        self,
        images: Iterable[Image],
        *,
        explain: Literal["cam"] | None = None,
        batch: int = 8,
        concurrency: int = 8,
        progress: bool = False,
    ) -> Iterator[Outcome]:
        """An outcome an image, in order, as they come; an image that fails fails alone.

        batch: images in a request. concurrency: requests at once. Images are read when their turn comes.
        """
        bar = Bar(len(images) if isinstance(images, Sized) else None) if progress else None
        ahead: deque[Future[list[Outcome]]] = deque()
        with ThreadPoolExecutor(concurrency) as pool:
            try:
                for some in protocol.batches(images, batch):
                    ahead.append(pool.submit(self._outcomes, some, explain))
                    if len(ahead) >= 2 * concurrency:
                        yield from counted(ahead.popleft().result(), bar)
                while ahead:
                    yield from counted(ahead.popleft().result(), bar)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                if bar is not None:
                    bar.close()

    def differential(
        self,
        images: Sequence[Image],
        *,
        specimen: str | None = None,
        accession: str | None = None,
    ) -> Differential:
        """The cells of one specimen, counted."""
        read = [protocol.read(image) for image in images]
        found: Differential = self._call(protocol.differential(read, specimen, accession, "json"))
        return found

    def differential_of(
        self, predictions: Iterable[Prediction], *, specimen: str | None = None, accession: str | None = None
    ) -> Differential:
        """Of cells that `predict` or `predict_many` classified; no image is sent again."""
        found: Differential = self._call(protocol.differential_of(predictions, specimen, accession, "json"))
        return found

    def report(
        self,
        predictions: Iterable[Prediction],
        format: Format,
        *,
        specimen: str | None = None,
        accession: str | None = None,
    ) -> Any:
        """`fhir`: a Bundle as parsed JSON; `hl7`: a message as text."""
        return self._call(protocol.differential_of(predictions, specimen, accession, format))

    def evaluate(
        self,
        archive: Image,
        *,
        groups: Mapping[str, str] | None = None,
        group_pattern: str | None = None,
        on_progress: Callable[[Progress], object] = lambda _: None,
        timeout: float | None = None,
    ) -> Evaluation:
        """archive: a ZIP with a folder for each class. timeout: seconds between two signs of life."""
        options = protocol.evaluate(protocol.read(archive), groups, group_pattern)
        return self._again(lambda: self._evaluate(options, on_progress, timeout))

    def evaluate_predictions(
        self,
        labels: Sequence[str | int],
        *,
        predictions: Sequence[str | int] | None = None,
        probabilities: Sequence[Sequence[float]] | None = None,
        groups: Sequence[str | int] | None = None,
    ) -> Report:
        """The same report, of predictions made elsewhere."""
        document = {
            "labels": labels,
            "predictions": predictions,
            "probabilities": probabilities,
            "groups": groups,
        }
        return self._call(protocol.evaluate_predictions(document))

    def model(self) -> Model:
        return self._call(protocol.model())

    def ready(self) -> bool:
        """It wants traffic; one that cannot be reached does not."""
        return self._probe("/readyz")

    def live(self) -> bool:
        return self._probe("/healthz")

    def _probe(self, path: str) -> bool:
        try:
            return self._http.get(path).is_success
        except httpx.TransportError:
            return False

    def _outcomes(self, images: Sequence[Image], explain: Literal["cam"] | None) -> list[Outcome]:
        read = [protocol.read(image) for image in images]
        names = [name for name, _ in read]
        try:
            found = self._call(protocol.predict(read, explain))
        except ProblemError as problem:
            return protocol.outcomes(names, problem)
        return protocol.outcomes(names, found)

    def _call(self, call: Call[Result]) -> Result:
        return self._again(lambda: call.parse(self._send(call)))

    def _send(self, call: Call[Any]) -> httpx.Response:
        answer = self._http.request(call.method, call.path, **call.options)
        if not answer.is_success:
            raise protocol.refusal(answer)
        return answer

    def _evaluate(
        self, options: Mapping[str, Any], on_progress: Callable[[Progress], object], timeout: float | None
    ) -> Evaluation:
        events = protocol.Events()
        wait = httpx.Timeout(self._http.timeout if timeout is None else timeout)
        with self._http.stream("POST", "/evaluate", timeout=wait, **options) as answer:
            if not answer.is_success:
                answer.read()
                raise protocol.refusal(answer)
            for line in answer.iter_lines():
                event = events.feed(line)
                if isinstance(event, Evaluation):
                    return event
                if event is not None:
                    on_progress(event)
        raise UnexpectedAnswer("the evaluation broke off before its result")

    def _again(self, attempt: Callable[[], Result]) -> Result:
        began = self._clock()
        for number in count(1):
            try:
                return attempt()
            except httpx.UnsupportedProtocol as fault:
                raise TransportError(f"{self.url} is no address of a service: {fault}") from fault
            except httpx.TransportError as fault:
                error: LeukoError = TransportError(f"no answer from {self.url}: {fault!r}")
                error.__cause__ = fault
            except LeukoError as refused:
                error = refused
            wait = self._retries.wait(number, self._clock() - began, error, random.random())
            if wait is None or isinstance(error, UnexpectedAnswer):
                raise error
            self._sleep(wait)
        raise AssertionError("count ends never")
