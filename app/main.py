"""The application: settings, telemetry, admission, routes, and the one place where errors become HTTP."""

from __future__ import annotations

import os
from functools import partial

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from app import __version__, openapi, problems
from app.admission import Admission
from app.errors import LeukoError
from app.lifecycle import Lifecycle, Load, OnFailure, end_process, load
from app.routes import docs, evaluate, healthz, metrics, model, predict, readyz
from app.routes import problems as problem_types
from app.service import MIB
from app.settings import Settings
from app.telemetry import Telemetry

SUMMARY = "White blood cell classification: calibrated answers, honest scores."
DESCRIPTION = "Every error is an RFC 9457 problem document. Research software: not for diagnosis."


def create_app(
    settings: Settings | None = None, load: Load = load, on_failure: OnFailure = end_process
) -> FastAPI:
    """settings: by default from the environment.

    The application starts at once and loads behind its back, so that /healthz answers meanwhile.
    When loading fails, `on_failure` is called with the error, on the event loop, and must end the
    process with a status that is not 0. A server calls `app.state.lifecycle.drain()` at SIGTERM.
    """
    settings = settings or Settings.from_environ(os.environ)
    telemetry = Telemetry()
    lifecycle = Lifecycle(settings, telemetry, load, on_failure)
    app = FastAPI(
        title="Leuko",
        version=__version__,
        summary=SUMMARY,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lambda _: lifecycle,
    )
    app.state.lifecycle = lifecycle
    app.openapi = partial(openapi.describe, app)  # type: ignore[method-assign]
    _add_routes(app)
    _add_error_handlers(app)
    _add_admission(app, lifecycle)
    return app


def _add_routes(app: FastAPI) -> None:
    versioned = APIRouter()
    for module in (predict, evaluate, model):
        versioned.include_router(module.router)
    app.include_router(versioned)
    app.include_router(versioned, prefix="/v1", include_in_schema=False)
    for module in (healthz, readyz, metrics, problem_types, docs):
        app.include_router(module.router)
    app.mount("/swagger", StaticFiles(directory=docs.WEB / "swagger"), name="swagger")


def _add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(LeukoError, problems.answer_error)
    app.add_exception_handler(HTTPException, problems.answer_http)
    app.add_exception_handler(RequestValidationError, problems.answer_invalid)
    app.add_exception_handler(Exception, problems.answer_unexpected)


def _add_admission(app: FastAPI, lifecycle: Lifecycle) -> None:
    settings, telemetry = lifecycle.settings, lifecycle.telemetry

    def observe(route: str | None, method: str, status: int, seconds: float) -> None:
        telemetry.observe_request(route, method, status, seconds)
        if reason := problems.REASONS.get(status):
            telemetry.count_rejected(reason)

    app.add_middleware(
        Admission,
        problem=problems.answer,
        ready=lambda: lifecycle.serving,
        observe=observe,
        max_body_bytes=settings.max_body_mib * MIB,
        max_reserved_bytes=settings.max_reserved_mib * MIB,
        max_requests=settings.max_requests,
        body_timeout_s=settings.body_timeout_s,
        queued=frozenset({"/predict", "/v1/predict"}),
        check_queue=lambda: lifecycle.service.batcher.check_room(),
    )
