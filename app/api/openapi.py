"""Complete the OpenAPI document: request bodies that routes parse themselves, problems, examples."""

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
    {"name": "classify", "description": "Classify images and count cells."},
    {"name": "evaluate", "description": "Measure how good the model is on labelled data."},
    {"name": "operate", "description": "Inspect the loaded model, health and metrics."},
]
BINARY = {"type": "string", "format": "binary"}


REF = "#/components/schemas/{model}"

# A request that needs a key may send it in either header.
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key created by `leuko key`."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}


def describe(app: FastAPI, access: Access) -> Document:
    """Return the OpenAPI document; it is built by the first call."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=TAGS,
        )
        # Routes parse or write these themselves, so that FastAPI does not list them.
        unlisted = [
            (model, "validation") for model in (ClassifiedCells, EvaluationProgress, Outcomes, Problem)
        ]
        _, definitions = models_json_schema(unlisted, ref_template=REF)  # type: ignore[arg-type]
        document["components"]["schemas"].update(definitions["$defs"])
        _name_forms(document)
        if access.keys is not None:
            _ask_for_keys(document, access)
        else:
            _refuse_other_sites(document, access)
        app.openapi_schema = document
    return app.openapi_schema


def _name_forms(document: Document) -> None:
    """Move form schemas to the components, so that generated clients name them by their title."""
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
            key_errors = refusals(errors.Unauthenticated, errors.Forbidden)
            operation["responses"] |= {str(status): response for status, response in key_errors.items()}


def _refuse_other_sites(document: Document, access: Access) -> None:
    for path, operations in document["paths"].items():
        if access.need(path) == OPEN:
            continue
        for operation in operations.values():
            for status, response in refusals(errors.CrossSite).items():
                operation["responses"][str(status)] = response


def refusals(*kinds: type[LeukoError]) -> dict[int | str, Document]:
    """Return the error responses of a route: each kind under its status, with an example."""
    responses: dict[int | str, Document] = {}
    for kind in kinds:
        status = problems.STATUS[kind]
        response = responses.setdefault(
            status, {"description": "", "content": {problems.MEDIA_TYPE: _problem()}}
        )
        meaning = problems.MEANINGS[kind.code]
        response["description"] = f"{response['description']} {meaning}".strip()
        examples = response["content"][problems.MEDIA_TYPE]["examples"]
        examples[kind.code] = {"value": problems.problem(kind(meaning), REQUEST_ID).model_dump()}
        if hasattr(kind("…"), "retry_after"):
            response["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return responses


def not_found(code: str = "not_found", detail: str = "Not Found") -> dict[int | str, Document]:
    """Return the 404 response of a route, with an example."""
    # The range 4XX keeps FastAPI from adding its own 422 to every path with a parameter.
    example = problems.document(code, 404, detail, REQUEST_ID).model_dump()
    content = {problems.MEDIA_TYPE: {"schema": ref("Problem"), "example": example}}
    return {"4XX": {"description": problems.MEANINGS[code], "content": content}}


def answer(example: Mapping[str, Any], **others: Document) -> dict[int | str, Document]:
    """Return the 200 response of a route.

    others: further content by media type.
    """
    content: Document = {"application/json": {"example": example}}
    return {200: {"content": content | others, "description": "Success."}}


def event_stream(example: str, **payloads: str) -> Document:
    """Return the content of a stream of server-sent events.

    payloads: event name → schema of its data.
    """
    data = {"type": "string", "contentMediaType": "application/json"}
    events = [
        {
            "type": "object",
            "properties": {"event": {"const": name}, "data": data | {"contentSchema": ref(model)}},
            "required": ["event", "data"],
        }
        for name, model in payloads.items()
    ]
    # The schema of a single event: `itemSchema` for streams exists only in OpenAPI 3.2.
    return {"schema": {"oneOf": events}, "example": example}


def form(
    name: str, properties: Mapping[str, Document], *, required: list[str], example: Document
) -> Document:
    """Return the content of a multipart form; generated clients call its type `name`."""
    schema = {
        "title": name,
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }
    return {"multipart/form-data": {"schema": schema, "example": example}}


def text_field(description: str) -> Document:
    """Return the schema of an optional text of a form.

    It is empty by default: Swagger UI sends "string" where a schema says nothing.
    """
    return {"type": "string", "description": description, "default": ""}


def body(content: Document) -> Document:
    return {"requestBody": {"required": True, "content": content}}


def ref(model: str) -> Document:
    return {"$ref": REF.format(model=model)}


def _problem() -> Document:
    return {"schema": ref("Problem"), "examples": {}}


# Errors that every route with a body may raise.
BODY_ERRORS = (
    errors.MalformedRequest,
    errors.UnknownModel,
    errors.BodyTimeout,
    errors.TooLarge,
    errors.UnsupportedFormat,
    errors.QueueFull,
    errors.NotReady,
)
