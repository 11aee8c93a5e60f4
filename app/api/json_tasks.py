"""Bodies of JSON → finished responses of `/evaluate/predictions` and `/differential`.

For a large body, a new process imports this module, so it must not import FastAPI, which takes long.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from struct import Struct
from typing import Any, BinaryIO, Protocol, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from app import __version__, validation
from app.api.json_response import render
from app.archives.file_labels import class_indices
from app.archives.spelling import composed
from app.engine.bundle import Bundle
from app.errors import BadLabels, TooLarge, Unusable
from app.evaluation import report
from app.reports import fhir, hl7
from app.reports.loinc import NO_CODES, Codes
from app.validation import Fault
from app.wire.differential import differential
from app.wire.schemas import Outcomes, Report
from app.wire.specimen import MAX_CELLS, ClassifiedCells, Differential

Schema = TypeVar("Schema", bound=BaseModel)

JSON = "application/json"

_ERRORS = {kind.code: kind for kind in (BadLabels, TooLarge, Unusable)}
_LENGTHS = Struct("<QQ")  # of the task and of the body
_VALUES_OF_A_CELL = (
    160  # at most, with an activation map and a former report, besides its probabilities; see `most_values`
)
_VALUES_OF_A_ROW = 8  # at most, besides its probabilities


class Invalid(Exception):
    """The body violates the schema."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__(faults)
        self.faults = faults


@dataclass(frozen=True)
class Finished:
    """A response. findings: what the audit log says of it."""

    body: bytes
    media_type: str = JSON
    findings: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """What is done with a body: raise Invalid, BadLabels, TooLarge or Unusable, or return the response.

    most_values: number of commas, colons and opening brackets above which the body is not even parsed, since
    a parser takes up to 200 bytes for each of them.
    """

    @property
    def most_values(self) -> int: ...

    @property
    def too_many(self) -> str: ...

    def __call__(self, body: bytes) -> Finished: ...


@dataclass(frozen=True)
class ScoreOutcomes:
    """Evaluate predictions made elsewhere. labels: the classes; most_rows: rows that are accepted."""

    request_id: str
    labels: tuple[str, ...]
    most_rows: int

    @property
    def most_values(self) -> int:
        return self.most_rows * (_VALUES_OF_A_ROW + len(self.labels))

    @property
    def too_many(self) -> str:
        return f"there are more than {self.most_rows} rows"

    def __call__(self, body: bytes) -> Finished:
        outcomes = parse(Outcomes, body)
        del body
        columns = (outcomes.labels, outcomes.predictions, outcomes.probabilities, outcomes.groups)
        if any(column is not None and len(column) > self.most_rows for column in columns):
            raise TooLarge(self.too_many)
        predictions = outcomes.predictions
        scores = report.evaluate(
            class_indices("labels", outcomes.labels, self.labels),
            None if predictions is None else class_indices("predictions", predictions, self.labels),
            outcomes.probabilities,
            names=self.labels,
            groups=outcomes.groups and [composed(g) if isinstance(g, str) else g for g in outcomes.groups],
        )
        return Finished(render(Report(request_id=self.request_id, **asdict(scores))))


@dataclass(frozen=True)
class CountCells:
    """Count cells classified before. media_type, loinc_method, bundle_type: as for `render_count`."""

    request_id: str
    bundle: Bundle
    media_type: str
    loinc_method: str
    bundle_type: str = fhir.COLLECTION

    @property
    def most_values(self) -> int:
        return MAX_CELLS * (_VALUES_OF_A_CELL + 2 * len(self.bundle.labels))  # names and numbers

    @property
    def too_many(self) -> str:
        return f"there are more than {MAX_CELLS} predictions, or more values in each than /predict returns"

    def __call__(self, body: bytes) -> Finished:
        specimen = parse(ClassifiedCells, body)
        count = differential(
            self.request_id,
            self.bundle,
            specimen,
            dict(enumerate(specimen.predictions)),
            specimen.errors,
            specimen.model,
            specimen.empty,
            sign_off=specimen,
        )
        return render_count(count, self.media_type, self.loinc_method, self.bundle_type, self.bundle.codes)


def render_count(
    count: Differential,
    media_type: str,
    loinc_method: str,
    bundle_type: str = fhir.COLLECTION,
    codes: Codes = NO_CODES,
) -> Finished:
    """Render a count as JSON, FHIR or HL7, as media_type says. bundle_type: of FHIR's Bundle.

    codes: LOINC codes of the model's bundle. Raise Unusable for what the caller gave and the format cannot
    hold.
    """
    findings = {"model_sha256": count.model.sha256, "n": count.n, **_report(count)}
    now = datetime.now(UTC)
    if media_type == fhir.MEDIA_TYPE:
        bundle = fhir.bundle(
            count, method=loinc_method, software=__version__, at=now, kind=bundle_type, own=codes
        )
        return Finished(json.dumps(bundle, ensure_ascii=False).encode(), media_type, findings)
    if media_type == hl7.MEDIA_TYPE:
        message = hl7.message(count, method=loinc_method, at=now, own=codes)
        return Finished(message.encode(), f"{media_type}; charset=utf-8", findings)
    return Finished(render(count), media_type, findings)


def _report(count: Differential) -> dict[str, Any]:
    """Return what the audit log says of a review: never the name of the reviewer, nor the labels of cells."""
    agreement = count.agreement
    if count.reviewer is None and not agreement.reviewed:
        return {}
    return {
        "report": {
            "status": count.status,
            "fingerprint": count.fingerprint,
            "replaces": count.replaces,
            "reviewed": agreement.reviewed,
            "kept": agreement.kept,
        }
    }


def parse(schema: type[Schema], body: bytes) -> Schema:
    """Return a validated body. Raise Invalid."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise Invalid(
            validation.faults({**fault, "loc": ("body", *fault["loc"])} for fault in faults)
        ) from None


def pack(task: Task, body: bytes) -> list[bytes]:
    """Return the input of the process that runs `work`."""
    kind = type(task)
    described = b"%s\n%s" % (kind.__name__.encode(), TypeAdapter(kind).dump_json(task))
    return [_LENGTHS.pack(len(described), len(body)), described, body]


def work(stdin: BinaryIO) -> bytes:
    """Do a task in the process. The service described the task; the body is the client's."""
    task_size, body_size = _LENGTHS.unpack(stdin.read(_LENGTHS.size))
    name, _, fields = stdin.read(task_size).partition(b"\n")
    kind = {kind.__name__: kind for kind in (ScoreOutcomes, CountCells)}[name.decode()]
    task = TypeAdapter[Task](kind).validate_json(fields)
    head: dict[str, Any]
    body = b""
    try:
        finished = task(stdin.read(body_size))
        head, body = {"media_type": finished.media_type, "findings": finished.findings}, finished.body
    except Invalid as invalid:
        head = {"invalid": [asdict(fault) for fault in invalid.faults]}
    except (BadLabels, TooLarge, Unusable) as error:
        head = {"code": error.code, "detail": error.detail}
    return json.dumps(head).encode() + b"\n" + body


def unpack(output: bytes) -> Finished:
    """Return what the task returned in the process, or raise what it raised."""
    end = output.index(b"\n")
    head = json.loads(output[:end])
    if "invalid" in head:
        raise Invalid([Fault(**fault) for fault in head["invalid"]])
    if "code" in head:
        raise _ERRORS[head["code"]](head["detail"])
    return Finished(output[end + 1 :], head["media_type"], head["findings"])
