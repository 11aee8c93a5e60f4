"""The client for asyncio."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence, Sized
from itertools import count
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from leuko_client import protocol
from leuko_client.client import URL
from leuko_client.errors import LeukoError, ProblemError, TransportError, UnexpectedAnswer
from leuko_client.models import Differential, Evaluation, Model, Prediction, Progress, Report
from leuko_client.progress import Bar, counted
from leuko_client.protocol import Call, Format, Image, Outcome, Result, Retries


class AsyncClient:
    """As `Client`, with `await` and `async for`."""

    def __init__(
        self,
        url: str = URL,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: Retries = Retries(),  # noqa: B008 (it is frozen)
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self._http = httpx.AsyncClient(
            base_url=url, headers=protocol.headers(key), timeout=timeout, transport=transport
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
        (found,) = (await self._call(protocol.predict([protocol.read(image)], explain))).predictions
        return found

    async def predict_many(
        self,
        images: Iterable[Image],
        *,
        explain: Literal["cam"] | None = None,
        batch: int = 8,
        concurrency: int = 8,
        progress: bool = False,
    ) -> AsyncIterator[Outcome]:
        bar = Bar(len(images) if isinstance(images, Sized) else None) if progress else None
        ahead: deque[asyncio.Task[list[Outcome]]] = deque()
        try:
            for some in protocol.batches(images, batch):
                ahead.append(asyncio.create_task(self._outcomes(some, explain)))
                if len(ahead) >= concurrency:
                    for outcome in counted(await ahead.popleft(), bar):
                        yield outcome
            while ahead:
                for outcome in counted(await ahead.popleft(), bar):
                    yield outcome
        finally:
            for task in ahead:
                task.cancel()
            if bar is not None:
                bar.close()

    async def differential(
        self, images: Sequence[Image], *, specimen: str | None = None, accession: str | None = None
    ) -> Differential:
        read = [protocol.read(image) for image in images]
        found: Differential = await self._call(protocol.differential(read, specimen, accession, "json"))
        return found

    async def differential_of(
        self, predictions: Iterable[Prediction], *, specimen: str | None = None, accession: str | None = None
    ) -> Differential:
        call = protocol.differential_of(predictions, specimen, accession, "json")
        found: Differential = await self._call(call)
        return found

    async def report(
        self,
        predictions: Iterable[Prediction],
        format: Format,
        *,
        specimen: str | None = None,
        accession: str | None = None,
    ) -> Any:
        return await self._call(protocol.differential_of(predictions, specimen, accession, format))

    async def evaluate(
        self,
        archive: Image,
        *,
        groups: Mapping[str, str] | None = None,
        group_pattern: str | None = None,
        on_progress: Callable[[Progress], object] = lambda _: None,
        timeout: float | None = None,
    ) -> Evaluation:
        options = protocol.evaluate(protocol.read(archive), groups, group_pattern)
        return await self._again(lambda: self._evaluate(options, on_progress, timeout))

    async def evaluate_predictions(
        self,
        labels: Sequence[str | int],
        *,
        predictions: Sequence[str | int] | None = None,
        probabilities: Sequence[Sequence[float]] | None = None,
        groups: Sequence[str | int] | None = None,
    ) -> Report:
        document = {
            "labels": labels,
            "predictions": predictions,
            "probabilities": probabilities,
            "groups": groups,
        }
        return await self._call(protocol.evaluate_predictions(document))

    async def model(self) -> Model:
        return await self._call(protocol.model())

    async def ready(self) -> bool:
        return await self._probe("/readyz")

    async def live(self) -> bool:
        return await self._probe("/healthz")

    async def _probe(self, path: str) -> bool:
        try:
            return (await self._http.get(path)).is_success
        except httpx.TransportError:
            return False

    async def _outcomes(self, images: Sequence[Image], explain: Literal["cam"] | None) -> list[Outcome]:
        read = [protocol.read(image) for image in images]
        names = [name for name, _ in read]
        try:
            found = await self._call(protocol.predict(read, explain))
        except ProblemError as problem:
            return protocol.outcomes(names, problem)
        return protocol.outcomes(names, found)

    async def _call(self, call: Call[Result]) -> Result:
        async def attempt() -> Result:
            return call.parse(await self._send(call))

        return await self._again(attempt)

    async def _send(self, call: Call[Any]) -> httpx.Response:
        answer = await self._http.request(call.method, call.path, **call.options)
        if not answer.is_success:
            raise protocol.refusal(answer)
        return answer

    async def _evaluate(
        self, options: Mapping[str, Any], on_progress: Callable[[Progress], object], timeout: float | None
    ) -> Evaluation:
        events = protocol.Events()
        wait = httpx.Timeout(self._http.timeout if timeout is None else timeout)
        async with self._http.stream("POST", "/evaluate", timeout=wait, **options) as answer:
            if not answer.is_success:
                await answer.aread()
                raise protocol.refusal(answer)
            async for line in answer.aiter_lines():
                event = events.feed(line)
                if isinstance(event, Evaluation):
                    return event
                if event is not None:
                    on_progress(event)
        raise UnexpectedAnswer("the evaluation broke off before its result")

    async def _again(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        began = self._clock()
        for number in count(1):
            try:
                return await attempt()
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
            await self._sleep(wait)
        raise AssertionError("count ends never")
