"""What FastAPI cannot see of the API: bodies read by hand, problems, and worked examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app import errors
from app.edge.access import OPEN, Access
from app.errors import LeukoError
from app.wire import problems
from app.wire.schemas import EvaluationProgress, Outcomes, Problem
from app.wire.specimen import ClassifiedCells

Document = dict[str, Any]

REQUEST_ID = "0f8fad5bd9cb469fa16570867728950e"
TAGS = [
    {"name": "classify", "description": "Images in, answers out."},
    {"name": "evaluate", "description": "How good the answers are."},
    {"name": "operate", "description": "What is loaded and how it fares."},
]
BINARY = {"type": "string", "format": "binary"}
REF = "#/components/schemas/{model}"


# Either of them, wherever a key is needed.
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key that `leuko key` made."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}


def describe(app: FastAPI, access: Access) -> Document:
    """The whole document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=TAGS,
        )
        by_hand = [
            (model, "validation") for model in (ClassifiedCells, EvaluationProgress, Outcomes, Problem)
        ]
        _, definitions = models_json_schema(by_hand, ref_template=REF)  # type: ignore[arg-type]
        document["components"]["schemas"].update(definitions["$defs"])
        _name_forms(document)
        if access.keys is not None:
            _ask_for_keys(document, access)
        app.openapi_schema = document
    return app.openapi_schema


def _name_forms(document: Document) -> None:
    """Among the other schemas, so that generated clients call them by their title."""
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {"content": {}})["content"]
            if (media := content.get("multipart/form-data")) is not None:
                schema = media["schema"]
                document["components"]["schemas"][schema["title"]] = schema
                media["schema"] = ref(schema["title"])


def _ask_for_keys(document: Document, access: Access) -> None:
    document["components"]["securitySchemes"] = KEYS
    for path, operations in document["paths"].items():
        if access.need(path) == OPEN:
            continue
        for operation in operations.values():
            operation["security"] = [{name: []} for name in KEYS]
            refused = refusals(errors.Unauthenticated, errors.Forbidden)
            operation["responses"] |= {str(status): response for status, response in refused.items()}


def refusals(*kinds: type[LeukoError]) -> dict[int | str, Document]:
    """Responses of a route: each kind of error with its status and an example."""
    found: dict[int | str, Document] = {}
    for kind in kinds:
        status = problems.STATUS[kind]
        entry = found.setdefault(status, {"description": "", "content": {problems.MEDIA_TYPE: _problem()}})
        meaning = problems.MEANINGS[kind.code]
        entry["description"] = f"{entry['description']} {meaning}".strip()
        examples = entry["content"][problems.MEDIA_TYPE]["examples"]
        examples[kind.code] = {"value": problems.problem(kind(meaning), REQUEST_ID).model_dump()}
        if hasattr(kind("…"), "retry_after"):
            entry["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return found


def not_found(code: str = "not_found", detail: str = "Not Found") -> dict[int | str, Document]:
    # As a range, for FastAPI adds a 422 of its own to every path with a parameter unless it sees one.
    example = problems.document(code, 404, detail, REQUEST_ID).model_dump()
    content = {problems.MEDIA_TYPE: {"schema": ref("Problem"), "example": example}}
    return {"4XX": {"description": problems.MEANINGS[code], "content": content}}


def answer(example: Mapping[str, Any], **others: Document) -> dict[int | str, Document]:
    """The 200 of a route; `others`: further media types."""
    content: Document = {"application/json": {"example": example}}
    return {200: {"content": content | others, "description": "Done."}}


def event_stream(example: str, **payloads: str) -> Document:
    """Server-sent events, each name with the model that its data is."""
    data = {"type": "string", "contentMediaType": "application/json"}
    described = [
        {
            "type": "object",
            "properties": {"event": {"const": name}, "data": data | {"contentSchema": ref(model)}},
            "required": ["event", "data"],
        }
        for name, model in payloads.items()
    ]
    # Of one event: `itemSchema` is of OpenAPI 3.2, and a validator of 3.1 refuses it.
    return {"schema": {"oneOf": described}, "example": example}


def form(
    name: str, properties: Mapping[str, Document], *, required: list[str], example: Document
) -> Document:
    """name: for generated clients."""
    schema = {
        "title": name,
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }
    return {"multipart/form-data": {"schema": schema, "example": example}}


def body(content: Document) -> Document:
    return {"requestBody": {"required": True, "content": content}}


def ref(model: str) -> Document:
    return {"$ref": REF.format(model=model)}


def _problem() -> Document:
    return {"schema": ref("Problem"), "examples": {}}


# What any route with a body may answer.
BODY_ERRORS = (
    errors.MalformedRequest,
    errors.UnknownModel,
    errors.BodyTimeout,
    errors.TooLarge,
    errors.UnsupportedFormat,
    errors.QueueFull,
    errors.NotReady,
)
