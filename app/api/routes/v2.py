"""`/v2`: the Open Inference Protocol, for Triton's and KServe's clients.

Not in the OpenAPI document: the protocol has its own, and its errors are not problem documents.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from app import __version__
from app.api import oip
from app.api.negotiation import choose_coding
from app.api.routes.images import findings, image_limit
from app.api.routes.parameters import Context, Current, Named
from app.api.uploads import read_body
from app.edge.content_encoding import CODINGS, compress, expand
from app.errors import LeukoError
from app.inference.fair_queue import Caller
from app.inference.service import Service
from app.inference.threads import SHORT
from app.observability.request_context import RequestContext
from app.units import MIB

router = APIRouter(prefix="/v2", include_in_schema=False)

HEADER_LENGTH = "Inference-Header-Content-Length"


@router.get("")
async def server() -> Any:
    return {"name": "leuko", "version": __version__, "extensions": oip.EXTENSIONS}


@router.get("/health/live")
async def live(lifecycle: Current) -> Any:
    return {"live": True, "ready": lifecycle.ready}


@router.get("/health/ready")
async def ready(lifecycle: Current) -> Response:
    return JSONResponse({"live": True, "ready": lifecycle.ready}, 200 if lifecycle.ready else 503)


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready")
async def model_ready(lifecycle: Current, name: str, version: str | None = None) -> Response:
    ready = lifecycle.ready
    if lifecycle.serving:
        ready = ready and lifecycle.models.served.find(name, version).obstacle is None
    return JSONResponse({"name": name, "ready": ready}, 200 if ready else 503)


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
async def metadata(lifecycle: Current, service: Named) -> Any:
    bundle, engine = service.classifier.bundle, service.classifier.engine
    versions = lifecycle.models.served.versions(bundle.name)
    return oip.describe(bundle.name, versions, f"leuko_{engine.name}", len(bundle.labels))


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/{version}/infer")
async def infer(request: Request, service: Named, context: Context) -> Response:
    inference = await _read(request, service, context)
    deadline = context.arrived + service.settings.deadline_s
    caller = Caller.of(context)
    answers = await service.classify(
        inference.images, caller=caller, deadline=deadline, stages=context.stages
    )
    bundle = service.classifier.bundle
    context.findings.update(await findings(inference.images, answers, bundle.sha256, context))
    for index, answer in enumerate(answers):
        if isinstance(answer, LeukoError):  # the protocol has no partial responses
            raise type(answer)(f"image {index}: {answer.detail}")
    predictions = [
        cell.prediction for answer in answers if not isinstance(answer, LeukoError) for cell in answer.cells
    ]
    encoded = oip.encode(
        inference, predictions, name=bundle.name, version=bundle.version, labels=bundle.labels
    )
    return _respond(encoded, request.headers.get("accept-encoding", ""))


async def _read(request: Request, service: Service, context: RequestContext) -> oip.InferRequest:
    with service.stage("receive", context.stages):
        body = await read_body(request, service.settings.max_body_mib * MIB)
    return await SHORT.run(lambda: _parse(request, service, body), context)


def _parse(request: Request, service: Service, body: bytes) -> oip.InferRequest:
    limit = image_limit(service)
    expanded = expand(body, ",".join(request.headers.getlist("content-encoding")))
    header = request.headers.get(HEADER_LENGTH)
    return oip.parse(expanded, header, most_images=limit.count, most_bytes=limit.size)


def _respond(encoded: oip.InferResponse, accept_encoding: str) -> Response:
    body, headers = encoded.body, {"Vary": "Accept-Encoding"}
    if (coding := choose_coding(accept_encoding, CODINGS)) is not None:
        body = compress(body, coding)
        headers["Content-Encoding"] = coding
    if encoded.header_bytes is None:
        return Response(body, headers=headers, media_type="application/json")
    headers[HEADER_LENGTH] = str(encoded.header_bytes)
    return Response(body, headers=headers, media_type="application/octet-stream")
