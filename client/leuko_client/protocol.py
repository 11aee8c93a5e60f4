"""Requests, responses and retries without input or output: what both clients share."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Generic, Literal, TypeVar

import httpx

from leuko_client.errors import (
    LeukoError,
    ProblemError,
    TransportError,
    UnexpectedAnswer,
    UnreadableImage,
    problem_error,
)
from leuko_client.models import (
    Differential,
    Evaluation,
    FormerReport,
    Model,
    Prediction,
    Predictions,
    Progress,
    Report,
    build,
)
from leuko_client.proxies import shown

Result = TypeVar("Result")
Image = str | PathLike[str] | bytes | BinaryIO
Format = Literal["json", "fhir", "hl7"]
Cells = Literal["one", "all"]

URL = "http://127.0.0.1:8000"
USER = re.compile(r"^([a-z][a-z0-9+.-]*://)?.*@", re.IGNORECASE | re.DOTALL)
LINE_END = re.compile(rb"\r\n|\r|\n")

ACCEPT: Mapping[Format, str] = {
    "json": "application/json",
    "fhir": "application/fhir+json",
    "hl7": "application/hl7-v2",
}


@dataclass(frozen=True)
class Call(Generic[Result]):
    """A request, and how to parse its response."""

    method: str
    path: str
    parse: Callable[[httpx.Response], Result]
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments for httpx

    def result(self, response: httpx.Response) -> Result:
        """Return the parsed response. Raise LeukoError if it is not a success or cannot be parsed."""
        if not response.is_success:
            raise problem(response)
        return self.parse(response)


@dataclass(frozen=True)
class Outcome:
    """The result for one image: either a prediction or an error.

    cells: the predictions of all cells that were asked for, in reading order. With cells="all" there may be
    any number of them, and `prediction` is None.
    """

    name: str
    prediction: Prediction | None
    error: ProblemError | UnreadableImage | None
    cells: tuple[Prediction, ...] = ()


@dataclass(frozen=True)
class Retries:
    """When to try again. attempts: at most, including the first. longest_s: between the first and the last.

    HTTP statuses 429 and 503 and connection errors are retried.
    """

    attempts: int = 6
    longest_s: float = 120.0

    def wait(self, attempt: int, elapsed_s: float, error: LeukoError, chance: float) -> float | None:
        """Return the seconds until the next attempt; None: give up.

        Retry-After if the service sent it, else exponential backoff from 1 s. attempt: the one that failed,
        from 1. chance: 0 to 1, the random part of the backoff.
        """
        if attempt >= self.attempts:
            return None
        seconds = 2.0 ** (attempt - 1) * (0.5 + chance / 2)
        if isinstance(error, ProblemError):
            if error.status not in (429, 503):
                return None
            seconds = error.retry_after if error.retry_after is not None else seconds
        return seconds if elapsed_s + seconds <= self.longest_s else None


class Attempts:
    """The attempts at one call, counted and timed against `Retries`."""

    def __init__(self, url: str, retries: Retries, clock: Callable[[], float], route: str) -> None:
        self._url = url
        self._route = route
        self._retries = retries
        self._clock = clock
        self._began = clock()
        self._failed = 0

    def wait_s(self, error: LeukoError | httpx.RequestError) -> float:
        """Return the seconds until the next attempt. Raise `error` as a LeukoError if there is none."""
        self._failed += 1
        if isinstance(error, httpx.UnsupportedProtocol):
            # Its message may quote the user name, if the address has no scheme.
            raise TransportError(
                f"{self._url} is not the address of a service: it must begin with http:// or https://"
            ) from None
        failure: LeukoError
        if isinstance(error, UnexpectedAnswer) and self._route != self._url:
            failure = UnexpectedAnswer(f"{error}; the answer may be that of a proxy: {self._route}")
        elif isinstance(error, LeukoError):
            failure = error
        else:
            failure = TransportError(f"no answer from {self._route}: {error!r}")
            failure.__cause__ = error
        seconds = self._retries.wait(self._failed, self._clock() - self._began, failure, random.random())
        if seconds is None or isinstance(failure, UnexpectedAnswer):
            raise failure
        return seconds


def read(image: Image) -> tuple[str, bytes]:
    """Return the name and the bytes of an image or archive."""
    if isinstance(image, bytes):
        return _name(image), image
    if isinstance(image, str | PathLike):
        return _name(image), Path(image).read_bytes()
    return _name(image), image.read()


def read_or_fail(image: Image) -> tuple[str, bytes] | Outcome:
    """Return what `read` does, or the outcome of an image that cannot be read."""
    try:
        return read(image)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL, or a file that is closed
        return Outcome(_name(image), None, UnreadableImage(str(error)))


def _name(image: Image) -> str:
    if isinstance(image, bytes):
        return "image"
    path = fspath(image) if isinstance(image, str | PathLike) else str(getattr(image, "name", "image"))
    return PurePath(path).name


def predict(
    images: Sequence[tuple[str, bytes]], explain: Literal["cam"] | None, cells: Cells = "one"
) -> Call[Predictions]:
    params = {"explain": explain} if explain else {}
    options = {"files": _files(images), "params": params | _all(cells)}
    return Call("POST", "/predict", lambda response: _predictions(_json(response)), options)


def _predictions(document: Any) -> Predictions:
    """Return the predictions, each with the model that made it."""
    answer = build(Predictions, document)
    made = [replace(prediction, model=answer.model) for prediction in answer.predictions]
    return replace(answer, predictions=made)


def _all(cells: Cells) -> dict[str, str]:
    """Return the parameter; the default is not sent, so that services without it answer too."""
    return {"cells": cells} if cells != "one" else {}


def differential(
    images: Sequence[tuple[str, bytes]],
    specimen: str | None,
    accession: str | None,
    format: Format,
    cells: Cells = "one",
) -> Call[Any]:
    data = {name: text for name, text in (("specimen", specimen), ("accession", accession)) if text}
    headers = {"Accept": ACCEPT[format]}
    options = {"files": _files(images), "data": data, "headers": headers, "params": _all(cells)}
    return Call("POST", "/differential", _differential(format), options)


def differential_of(
    cells: Iterable[Prediction | Outcome],
    about: Mapping[str, str | None],
    format: Format,
    replaces: Differential | None,
    *,
    transaction: bool = False,
) -> Call[Any]:
    """about: specimen, accession, reviewer and what else a report says. replaces: what it corrects.

    Raise ValueError for several models, or if `replaces` has no fingerprint.
    """
    predictions, errors, empty, models = [], [], [], []
    for index, cell in enumerate(cells):
        for prediction in _predicted(cell):
            model = prediction.model
            models += [model] if model is not None and model not in models else []
            predictions.append(asdict(replace(prediction, model=None)))
        if isinstance(cell, Outcome) and cell.error is not None:
            errors.append({**_problem(cell.error), "index": index, "filename": cell.name})
        elif isinstance(cell, Outcome) and not _predicted(cell):
            empty.append({"index": index, "filename": cell.name})
    if len(models) > 1:
        names = ", ".join(f"{model.name} {model.version}" for model in models)
        raise ValueError(f"the predictions are of several models ({names}): predict all images with one")
    if transaction and format != "fhir":
        raise ValueError("a transaction is a FHIR report")
    document: dict[str, Any] = {
        "predictions": predictions,
        "errors": errors,
        "empty": empty,
        **about,
        **_former(replaces),
    }
    if models:
        document["model"] = asdict(models[0])
    has_review = bool(about.get("reviewer")) or any(one["reviewed"] for one in predictions)
    options = {
        "json": document,
        "headers": {"Accept": ACCEPT[format]},
        "params": {"bundle": "transaction"} if transaction else {},
    }
    return Call("POST", "/differential", _differential(format, has_review=has_review), options)


def _former(report: Differential | None) -> dict[str, Any]:
    """Return the fields that name and hold the report that is corrected."""
    if report is None:
        return {}
    if report.fingerprint is None:
        raise ValueError("a report without a fingerprint cannot be replaced: not all its images have hashes")
    former = FormerReport(
        report.fingerprint,
        report.status or "preliminary",
        report.reviewer,
        report.counts,
        report.changes,
        report.replaces,
        report.former,
    )
    return {"replaces": report.fingerprint, "former": asdict(former)}


def _predicted(cell: Prediction | Outcome) -> Sequence[Prediction]:
    if not isinstance(cell, Outcome):
        return [cell]
    return cell.cells or ([] if cell.prediction is None else [cell.prediction])


def _problem(error: ProblemError | UnreadableImage | None) -> dict[str, Any]:
    if isinstance(error, ProblemError):
        code, title, status = error.code, error.title, error.status
        return {
            "type": f"/problems/{code}",
            "code": code,
            "title": title,
            "status": status,
            "detail": error.detail,
        }
    return {
        "type": "about:blank",
        "code": "unreadable_image",
        "title": "Unreadable image",
        "status": 0,
        "detail": str(error),
    }


def evaluate(
    archive: tuple[str, bytes], groups: Mapping[str, str] | None, pattern: str | None
) -> Mapping[str, Any]:
    """Return keyword arguments for httpx; the response is an event stream."""
    data = {} if groups is None else {"groups": json.dumps(dict(groups))}
    if pattern is not None:
        data["group_pattern"] = pattern
    return {"files": {"archive": archive}, "data": data, "headers": {"Accept": "text/event-stream"}}


def evaluate_predictions(document: Mapping[str, Any]) -> Call[Report]:
    given = {name: value for name, value in document.items() if value is not None}
    return Call(
        "POST", "/evaluate/predictions", lambda response: build(Report, _json(response)), {"json": given}
    )


def model() -> Call[Model]:
    return Call("GET", "/model", lambda response: build(Model, _json(response)))


def problem(response: httpx.Response) -> LeukoError:
    """Return the error that an unsuccessful response describes. Its body must have been read."""
    try:
        seconds = response.headers.get("Retry-After", "")
        return problem_error(response.json(), float(seconds) if seconds.isdigit() else None)
    except (ValueError, KeyError, TypeError):
        return UnexpectedAnswer(
            f"status {response.status_code} without a problem document from {response.url}"
        )


def outcomes(
    names: Sequence[str], response: Predictions | ProblemError, cells: Cells = "one"
) -> list[Outcome]:
    """Return one outcome for each name. Raise a problem that is not about single images."""
    if isinstance(response, ProblemError):
        errors = {int(error["index"]): problem_error(error) for error in response.errors if "index" in error}
        if sorted(errors) != list(range(len(names))):
            raise response
        return [Outcome(name, None, errors[index]) for index, name in enumerate(names)]
    found: dict[int, list[Prediction]] = {image.index: [] for image in response.empty}
    for good in response.predictions:
        found.setdefault(good.index, []).append(good)
    failed = {bad.index: problem_error(asdict(bad)) for bad in response.errors}
    known = sorted([*found, *failed]) == list(range(len(names)))
    if not known or (cells == "one" and any(len(some) != 1 for some in found.values())):
        raise UnexpectedAnswer("the response does not have one result for each image sent")
    return [
        _outcome(name, found.get(index, []), failed.get(index), cells) for index, name in enumerate(names)
    ]


def _outcome(name: str, found: Sequence[Prediction], error: ProblemError | None, cells: Cells) -> Outcome:
    return Outcome(name, found[0] if cells == "one" and found else None, error, tuple(found))


class Events:
    """Parses the server-sent events of /evaluate (WHATWG HTML, section 9.2)."""

    def __init__(self) -> None:
        self._name = ""
        self._data: list[str] = []
        self._line: list[bytes] = []  # the pieces of a line that has not ended
        self._after_return = False  # a line feed that follows belongs to the same line end

    def feed(self, chunk: bytes) -> Iterator[Progress | Evaluation]:
        """Take a piece of the stream; yield the events that it completes. Raise LeukoError."""
        for line in self._lines(chunk):
            event = self._take(line.decode(errors="replace"))
            if event is not None:
                yield event

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that end. `str.splitlines` also cuts at U+2028 and others, which JSON may hold."""
        if not chunk:
            return
        if self._after_return:
            chunk = chunk.removeprefix(b"\n")
        self._after_return = chunk.endswith(b"\r")
        *ended, rest = LINE_END.split(chunk)
        for piece in ended:
            yield b"".join([*self._line, piece])
            self._line = []
        self._line.append(rest)

    def _take(self, line: str) -> Progress | Evaluation | None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        elif not line and self._data:
            kind, text = self._name, "\n".join(self._data)
            self._name, self._data = "", []
            try:
                document = json.loads(text)
                problem = problem_error(document) if kind == "error" else None
            except (ValueError, KeyError, TypeError):
                raise UnexpectedAnswer("an event of the evaluation cannot be parsed") from None
            if problem is not None:
                raise problem
            return build(Evaluation, document) if kind == "result" else build(Progress, document)
        return None


def batches(images: Iterable[Image], size: int) -> Iterator[list[Image]]:
    """Cut into lists of `size`; the last one may be shorter."""
    batch: list[Image] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def headers(key: str | None) -> dict[str, str]:
    """Return the headers of every request. Raise ValueError, which does not quote the key."""
    if key is None:
        return {}
    if not key or " " in key or not (key.isascii() and key.isprintable()):
        raise ValueError("the key must be ASCII characters without spaces and line ends")
    return {"Authorization": f"Bearer {key}"}


def address(url: str) -> tuple[httpx.URL, tuple[str, str] | None]:
    """Split an address from its user name and password, so that httpx cannot show them either.

    Raise ValueError, which does not quote them.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:  # its message may quote a part of the password
        raise ValueError(f"{without_user(url)!r} is not the address of a service") from None
    user = (parsed.username, parsed.password) if parsed.userinfo else None
    return parsed.copy_with(userinfo=b""), user


def route(url: str, proxy: httpx.Proxy | None) -> str:
    """Return how a service is reached, for messages."""
    return url if proxy is None else f"{url} through the proxy {shown(proxy)}"


def without_user(url: str) -> str:
    """Remove user name and password from an address, also from one that is not valid."""
    return USER.sub(r"\1", url)


def _files(images: Sequence[tuple[str, bytes]]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", image) for image in images]


def _differential(format: Format, *, has_review: bool = False) -> Callable[[httpx.Response], Any]:
    """Return what parses a differential. has_review: one was sent; a service that ignores it is refused."""
    if format == "hl7":
        return lambda response: response.content.decode()
    if format == "fhir":
        return _json

    def parse(response: httpx.Response) -> Differential:
        count = build(Differential, _json(response))
        if has_review and count.status is None:
            raise UnexpectedAnswer("the service is too old for reviews: it counted the model's labels")
        return count

    return parse


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        raise UnexpectedAnswer(f"the response from {response.url} is not JSON") from None
