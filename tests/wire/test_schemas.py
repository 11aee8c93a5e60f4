"""The schemas accept what the documentation shows, and refuse what no answer may hold."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.api.routes import examples
from app.evaluation import report
from app.imaging import framing
from app.wire import schemas, specimen

EXAMPLES: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (schemas.Predictions, examples.PREDICTIONS),
    (specimen.Differential, examples.DIFFERENTIAL),
    *((specimen.ClassifiedCells, example["value"]) for example in examples.CELLS.values()),
    (schemas.Report, examples.REPORT),
    (schemas.Evaluation, examples.EVALUATION),
    (schemas.Outcomes, examples.OUTCOMES),
    (schemas.Model, examples.MODEL_CARD),
]


@pytest.mark.parametrize(("schema", "example"), EXAMPLES, ids=lambda value: getattr(value, "__name__", ""))
def test_an_example_is_what_its_schema_says(schema: type[BaseModel], example: dict[str, Any]) -> None:
    assert set(example) <= set(schema.model_fields)
    schema.model_validate(example)


def test_a_frame_on_the_wire_has_the_fields_of_the_frame_inside() -> None:
    assert [field.name for field in fields(framing.Frame)] == list(schemas.Frame.model_fields)


def test_a_report_has_the_fields_of_an_evaluation() -> None:
    inside = {field.name for field in fields(report.Report)}
    assert inside | {"request_id"} == set(schemas.Report.model_fields)


def test_the_example_report_adds_up() -> None:
    report = schemas.Report.model_validate(examples.REPORT)
    hits = sum(report.confusion_matrix[i][i] for i in range(4))
    assert sum(map(sum, report.confusion_matrix)) == report.n
    assert report.accuracy == hits / report.n
    assert report.rmse == pytest.approx(report.mse**0.5, abs=1e-4)


@pytest.mark.parametrize(
    "outcomes",
    [
        {"labels": []},
        {"labels": [True]},
        {"labels": [1.5]},
        {"labels": None},
        {"labels": [0], "predictons": [0]},
        {"labels": [0], "probabilities": [["much"]]},
    ],
)
def test_outcomes_of_a_wrong_shape_are_refused(outcomes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        schemas.Outcomes.model_validate(outcomes)


def test_a_probability_over_one_is_never_sent() -> None:
    with pytest.raises(ValidationError):
        schemas.Mistake(filename="a", label="b", predicted="c", confidence=1.1)


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (schemas.Outcomes, b'{"labels":[' + b"{}," * 1000 + b"{}]}"),
        (schemas.Outcomes, b'{"labels":[1],"predictions":[' + b"{}," * 1000 + b"{}]}"),
        (schemas.Outcomes, b'{"labels":[1],"groups":[' + b"{}," * 1000 + b"{}]}"),
        (schemas.Outcomes, b'{"labels":[1],"probabilities":[' + b"{}," * 1000 + b"{}]}"),
        (schemas.Outcomes, b'{"labels":[1],"probabilities":[[' + b"{}," * 1000 + b"{}]]}"),
        (specimen.ClassifiedCells, b'{"predictions":[' + b"{}," * 1000 + b"{}]}"),
        (
            specimen.ClassifiedCells,
            b'{"predictions":[{"label":"x","review_reasons":[' + b"1," * 1000 + b"1]}]}",
        ),
    ],
)
def test_the_check_of_a_list_stops_at_its_first_error(schema: type[BaseModel], body: bytes) -> None:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate_json(body)
    assert caught.value.error_count() <= 2  # a class may be text or a number, so it has two
