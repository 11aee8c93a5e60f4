"""The client for asyncio. `client.py` is generated from this file: `make format`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Sized
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from leuko_client import protocol
from leuko_client.errors import LeukoError, ProblemError, UnexpectedAnswer
from leuko_client.models import Differential, Evaluation, Model, Prediction, Progress, Report
from leuko_client.progress import Bar, counted
from leuko_client.protocol import URL, Attempts, Call, Cells, Format, Image, Outcome, Result, Retries
from leuko_client.proxies import proxy_of
from leuko_client.tasks import Sleep, map_ahead, sleep


class AsyncClient:
    """A client of one service. Its methods may be called concurrently and raise LeukoError.

    Use it as a context manager or call `close`, so that its connections are closed.

    url: of the service, including a path prefix if it has one. key: the secret that `leuko key` printed.
    timeout: seconds to connect, and then without a byte sent or received; a response that arrives slowly
    takes longer in total, and each attempt begins anew. transport: an httpx transport, for tests and for
    other proxies than those of HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; no proxy is asked for this
    machine. sleep, clock: used between attempts; for tests. Raise ValueError if url, key or proxy cannot be
    used; neither the key nor a user name and password in url are ever shown.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: Retries = Retries(),  # noqa: B008 (it is frozen)
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Sleep = sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = protocol.without_user(url)
        base_url, user = protocol.address(url)
        proxy = None if transport is not None else proxy_of(base_url)
        self._route = protocol.route(self.url, proxy)
        self._http = httpx.AsyncClient(
            base_url=base_url,
            auth=user,
            headers=protocol.headers(key),
            timeout=timeout,
            transport=transport or _transport(proxy),
        )
        self._retries = retries
        self._sleep = sleep
        self._clock = clock

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def predict(self, image: Image, *, explain: Literal["cam"] | None = None) -> Prediction:
        """Classify one image. explain: `cam` adds an activation map."""
        response = await self._call(protocol.predict([protocol.read(image)], explain))
        (prediction,) = response.predictions
        return prediction

    async def predict_cells(self, image: Image, *, explain: Literal["cam"] | None = None) -> list[Prediction]:
        """Classify all leukocytes of one image; return a prediction for each, in reading order."""
        response = await self._call(protocol.predict([protocol.read(image)], explain, "all"))
        return response.predictions

    async def predict_many(
        self,
        images: Iterable[Image],
        *,
        cells: Cells = "one",
        explain: Literal["cam"] | None = None,
        batch: int = 8,
        concurrency: int = 8,
        progress: bool = False,
    ) -> AsyncIterator[Outcome]:
        """Classify images; yield one outcome for each, in order. An image that is bad, or cannot be read,
        does not fail the others.

        cells: `all` classifies all leukocytes of each image; they are in the outcome's `cells`. batch: images
        in one request. concurrency: requests in flight. progress: show a progress bar on a terminal. Images
        are read shortly before they are sent.
        """
        bar = Bar(len(images) if isinstance(images, Sized) else None) if progress else None
        batches = protocol.batches(images, batch)
        try:
            async with aclosing(
                map_ahead(lambda some: self._outcomes(some, explain, cells), batches, concurrency)
            ) as results:
                async for outcomes in results:
                    for outcome in counted(outcomes, bar):
                        yield outcome
        finally:
            if bar is not None:
                bar.close()

    async def differential(
        self,
        images: Sequence[Image],
        *,
        cells: Cells = "one",
        specimen: str | None = None,
        accession: str | None = None,
    ) -> Differential:
        """Classify the images of one specimen and return its differential count.

        cells: `all` counts all leukocytes of each image.
        """
        files = [protocol.read(image) for image in images]
        call = protocol.differential(files, specimen, accession, "json", cells)
        count: Differential = await self._call(call)
        return count

    async def differential_of(
        self,
        cells: Iterable[Prediction | Outcome],
        *,
        specimen: str | None = None,
        accession: str | None = None,
        reviewer: str | None = None,
        replaces: Differential | None = None,
    ) -> Differential:
        """Return the differential count of predictions, or of all outcomes of `predict_many`; sends no image.

        With outcomes, it says how many images could not be classified. A prediction that has `reviewed` is
        counted by that. reviewer: name of the person who signs, which makes it final; replaces: a signed
        differential that this one corrects. Raise ValueError if several models made the predictions, or if
        `replaces` has no fingerprint.
        """
        about = {"specimen": specimen, "accession": accession, "reviewer": reviewer}
        count: Differential = await self._call(protocol.differential_of(cells, about, "json", replaces))
        return count

    async def report(
        self,
        cells: Iterable[Prediction | Outcome],
        format: Format,
        *,
        specimen: str | None = None,
        accession: str | None = None,
        subject: str | None = None,
        effective: str | None = None,
        performer: str | None = None,
        reviewer: str | None = None,
        replaces: Differential | None = None,
        transaction: bool = False,
    ) -> Any:
        """Return the differential count as a report. `fhir`: a Bundle as parsed JSON; `hl7`: a str.

        cells: predictions, or all outcomes of `predict_many`; then it says what could not be classified.
        subject, effective, performer: FHIR's Patient, date or time, and laboratory, for FHIR only.
        reviewer, replaces, and `reviewed` of predictions: as for `differential_of`. transaction: return a
        Bundle that a FHIR server stores. Raise ValueError if several models made the predictions, or if
        `replaces` has no fingerprint.
        """
        about = {"specimen": specimen, "accession": accession, "reviewer": reviewer}
        about |= {"subject": subject, "effectiveDateTime": effective, "performer": performer}
        call = protocol.differential_of(cells, about, format, replaces, transaction=transaction)
        return await self._call(call)

    async def evaluate(
        self,
        archive: Image,
        *,
        groups: Mapping[str, str] | None = None,
        group_pattern: str | None = None,
        on_progress: Callable[[Progress], object] = lambda _: None,
        timeout: float | None = None,
    ) -> Evaluation:
        """Classify a labelled archive and score the predictions.

        archive: a ZIP with one folder for each class. groups: source of each file, by file name.
        group_pattern: regular expression whose first group is the source. on_progress: called with each
        progress event. timeout: seconds between two events, not in total.
        """
        options = protocol.evaluate(protocol.read(archive), groups, group_pattern)
        attempts = self._attempts()
        while True:
            try:
                return await self._evaluate(options, on_progress, timeout)
            except (LeukoError, httpx.RequestError) as error:
                await self._sleep(attempts.wait_s(error))

    async def evaluate_predictions(
        self,
        labels: Sequence[str | int],
        *,
        predictions: Sequence[str | int] | None = None,
        probabilities: Sequence[Sequence[float]] | None = None,
        groups: Sequence[str | int] | None = None,
    ) -> Report:
        """Score predictions made elsewhere; the report is the same as that of `evaluate`."""
        document = {
            "labels": labels,
            "predictions": predictions,
            "probabilities": probabilities,
            "groups": groups,
        }
        return await self._call(protocol.evaluate_predictions(document))

    async def model(self) -> Model:
        """Describe the model that the service has loaded."""
        return await self._call(protocol.model())

    async def ready(self) -> bool:
        """Return whether the service accepts traffic; False if it cannot be reached."""
        return await self._probe("/readyz")

    async def live(self) -> bool:
        """Return whether the service runs; False if it cannot be reached."""
        return await self._probe("/healthz")

    async def _probe(self, path: str) -> bool:
        try:
            response = await self._http.get(path)
        except httpx.TransportError:
            return False
        return response.is_success

    async def _outcomes(
        self, images: Sequence[Image], explain: Literal["cam"] | None, cells: Cells
    ) -> list[Outcome]:
        read = [protocol.read_or_fail(image) for image in images]
        files = [item for item in read if not isinstance(item, Outcome)]
        sent = iter(await self._sent(files, explain, cells))
        return [item if isinstance(item, Outcome) else next(sent) for item in read]

    async def _sent(
        self, files: Sequence[tuple[str, bytes]], explain: Literal["cam"] | None, cells: Cells
    ) -> list[Outcome]:
        if not files:
            return []
        names = [name for name, _ in files]
        try:
            predictions = await self._call(protocol.predict(files, explain, cells))
        except ProblemError as problem:
            return protocol.outcomes(names, problem)
        return protocol.outcomes(names, predictions, cells)

    def _attempts(self) -> Attempts:
        return Attempts(self.url, self._retries, self._clock, self._route)

    async def _call(self, call: Call[Result]) -> Result:
        attempts = self._attempts()
        while True:
            try:
                response = await self._http.request(call.method, call.path, **call.options)
                return call.result(response)
            except (LeukoError, httpx.RequestError) as error:
                await self._sleep(attempts.wait_s(error))

    async def _evaluate(
        self, options: Mapping[str, Any], on_progress: Callable[[Progress], object], timeout: float | None
    ) -> Evaluation:
        events = protocol.Events()
        limits = httpx.Timeout(self._http.timeout if timeout is None else timeout)
        async with self._http.stream("POST", "/evaluate", timeout=limits, **options) as response:
            if not response.is_success:
                await response.aread()
                raise protocol.problem(response)
            async for chunk in response.aiter_bytes():
                for event in events.feed(chunk):
                    if isinstance(event, Evaluation):
                        return event
                    on_progress(event)
        raise UnexpectedAnswer("the evaluation broke off before its result")


def _transport(proxy: httpx.Proxy | None) -> httpx.AsyncBaseTransport:
    """Return a transport that asks no other proxy. Raise ValueError if the one for SOCKS is not installed."""
    try:
        return httpx.AsyncHTTPTransport(proxy=proxy)
    except ImportError:
        raise ValueError("a SOCKS proxy needs the package socksio: pip install 'httpx[socks]'") from None
