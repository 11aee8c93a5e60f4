"""Requests, answers and retries without a connection: what both clients have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Generic, Literal, TypeVar

import httpx

from leuko_client.errors import LeukoError, ProblemError, UnexpectedAnswer, problem_error
from leuko_client.models import (
    Differential,
    Evaluation,
    Model,
    Prediction,
    Predictions,
    Progress,
    Report,
    build,
)

Result = TypeVar("Result")
Image = str | PathLike[str] | bytes | BinaryIO
Format = Literal["json", "fhir", "hl7"]

ACCEPT: Mapping[Format, str] = {
    "json": "application/json",
    "fhir": "application/fhir+json",
    "hl7": "application/hl7-v2",
}


@dataclass(frozen=True)
class Call(Generic[Result]):
    """A request and what becomes of its answer."""

    method: str
    path: str
    parse: Callable[[httpx.Response], Result]
    options: Mapping[str, Any] = field(default_factory=dict)  # of httpx


@dataclass(frozen=True)
class Outcome:
    """What came of one image; either a prediction or an error."""

    name: str
    prediction: Prediction | None
    error: ProblemError | None


@dataclass(frozen=True)
class Retries:
    """attempts: requests in all. longest_s: no wait begins that would end later than this after the first."""

    attempts: int = 6
    longest_s: float = 120.0

    def wait(self, attempt: int, elapsed_s: float, error: LeukoError, chance: float) -> float | None:
        """Seconds until the next attempt; None: give up. attempt: from 1. chance: 0 to 1."""
        if attempt >= self.attempts:
            return None
        seconds = 2.0 ** (attempt - 1) * (0.5 + chance / 2)
        if isinstance(error, ProblemError):
            if error.status not in (429, 503):
                return None
            seconds = error.retry_after if error.retry_after is not None else seconds
        return seconds if elapsed_s + seconds <= self.longest_s else None


def read(image: Image) -> tuple[str, bytes]:
    """Its name and bytes."""
    if isinstance(image, bytes):
        return "image", image
    if isinstance(image, str | PathLike):
        return PurePath(fspath(image)).name, Path(image).read_bytes()
    return PurePath(str(getattr(image, "name", "image"))).name, image.read()


def predict(images: Sequence[tuple[str, bytes]], explain: Literal["cam"] | None) -> Call[Predictions]:
    options = {"files": _files(images), "params": {"explain": explain} if explain else {}}
    return Call("POST", "/predict", lambda answer: build(Predictions, _json(answer)), options)


def differential(
    images: Sequence[tuple[str, bytes]], specimen: str | None, accession: str | None, format: Format
) -> Call[Any]:
    data = {name: text for name, text in (("specimen", specimen), ("accession", accession)) if text}
    options = {"files": _files(images), "data": data, "headers": {"Accept": ACCEPT[format]}}
    return Call("POST", "/differential", _differential(format), options)


def differential_of(
    predictions: Iterable[Prediction], specimen: str | None, accession: str | None, format: Format
) -> Call[Any]:
    cells = [asdict(one) for one in predictions]
    document = {"predictions": cells, "specimen": specimen, "accession": accession}
    options = {"json": document, "headers": {"Accept": ACCEPT[format]}}
    return Call("POST", "/differential", _differential(format), options)


def evaluate(
    archive: tuple[str, bytes], groups: Mapping[str, str] | None, pattern: str | None
) -> Mapping[str, Any]:
    """httpx's options of the request; its answer is an event stream."""
    data = {} if groups is None else {"groups": json.dumps(dict(groups))}
    if pattern is not None:
        data["group_pattern"] = pattern
    return {"files": {"archive": archive}, "data": data, "headers": {"Accept": "text/event-stream"}}


def evaluate_predictions(document: Mapping[str, Any]) -> Call[Report]:
    given = {name: value for name, value in document.items() if value is not None}
    return Call("POST", "/evaluate/predictions", lambda answer: build(Report, _json(answer)), {"json": given})


def model() -> Call[Model]:
    return Call("GET", "/model", lambda answer: build(Model, _json(answer)))


def refusal(answer: httpx.Response) -> LeukoError:
    """What an answer that is no success says; its body has been read."""
    try:
        seconds = answer.headers.get("Retry-After", "")
        return problem_error(answer.json(), float(seconds) if seconds.isdigit() else None)
    except (ValueError, KeyError, TypeError):
        return UnexpectedAnswer(f"{answer.status_code} without a problem document, from {answer.url}")


def outcomes(names: Sequence[str], found: Predictions | ProblemError) -> list[Outcome]:
    """One a name. Raises what is no fault of an image."""
    if isinstance(found, ProblemError):
        items = {int(one["index"]): problem_error(one) for one in found.errors if "index" in one}
        if sorted(items) != list(range(len(names))):
            raise found
        return [Outcome(name, None, items[index]) for index, name in enumerate(names)]
    made = {one.index: Outcome(names[one.index], one, None) for one in found.predictions}
    made |= {one.index: Outcome(names[one.index], None, problem_error(asdict(one))) for one in found.errors}
    if sorted(made) != list(range(len(names))):
        raise UnexpectedAnswer("the answer is not of the images that were sent")
    return [made[index] for index in range(len(names))]


class Events:
    """Server-sent events of /evaluate, line by line."""

    def __init__(self) -> None:
        self._name = ""
        self._data: list[str] = []

    def feed(self, line: str) -> Progress | Evaluation | None:
        """Raises ProblemError."""
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        elif not line and self._data:
            kind, document = self._name, json.loads("\n".join(self._data))
            self._name, self._data = "", []
            if kind == "error":
                raise problem_error(document)
            return build(Evaluation, document) if kind == "result" else build(Progress, document)
        return None


def batches(images: Iterable[Image], size: int) -> Iterator[list[Image]]:
    batch: list[Image] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _files(images: Sequence[tuple[str, bytes]]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", image) for image in images]


def _differential(format: Format) -> Callable[[httpx.Response], Any]:
    if format == "hl7":
        return lambda answer: answer.content.decode()
    if format == "fhir":
        return _json
    return lambda answer: build(Differential, _json(answer))


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise UnexpectedAnswer(f"the answer of {answer.url} is no JSON") from None
