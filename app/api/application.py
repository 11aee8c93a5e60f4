"""The application factory: settings, telemetry, admission, routes and exception handlers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from app import __version__
from app.api import openapi, problem_responses
from app.api.lifecycle import Lifecycle, OnFailure, end_process
from app.api.page_files import PageFiles
from app.api.routes import differential, docs, evaluate, healthz, metrics, model, page, predict, readyz, v2
from app.api.routes import problems as problem_types
from app.api.turns import Turns
from app.edge import body_cost
from app.edge.access import Access, access_rules
from app.edge.admission import Admission, AdmissionLimits, AdmissionRules
from app.edge.cors import allow, origins_of
from app.edge.methods import HeadAndOptions
from app.edge.paths import QUEUED
from app.edge.routing import Routes
from app.edge.tracing import open_tracer
from app.errors import LeukoError
from app.inference.runtime import Load, Runtime
from app.observability.metrics import Telemetry
from app.registry.fetch import load
from app.settings import Settings
from app.units import MIB

SUMMARY = "White blood cell classification: calibrated answers, honest scores."
CLOSED = "closed"
DESCRIPTION = "Every error is an RFC 9457 problem document. Research software: not for diagnosis."


def create_app(
    settings: Settings | None = None, load: Load = load, on_failure: OnFailure = end_process
) -> FastAPI:
    """Return the application. Raise StartupError.

    settings: by default from the environment. load: loads the classifier from a bundle.
    on_failure: called on the event loop with the error if loading fails; it must end the process with a
    status other than 0.

    The application starts at once and loads in the background, so that /healthz works meanwhile. A server
    calls `app.state.lifecycle.drain()` at SIGTERM.
    """
    settings = settings or Settings.from_environ(os.environ)
    tracer = open_tracer() if settings.traces == "otlp" else None
    lifecycle = Lifecycle(Runtime(settings, Telemetry(), load), on_failure, tracer)
    app = FastAPI(
        title="Leuko",
        version=__version__,
        summary=SUMMARY,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # `routes.docs` serves it
        redirect_slashes=False,  # a redirect would contain the Host header that the client sent
        lifespan=lambda app: _lifespan(lifecycle, app.state.routes),
    )
    app.state.lifecycle = lifecycle
    app.state.turns = Turns()
    app.state.routes = Routes(app)
    origins = origins_of(settings.cors_origins)
    access = access_rules(
        lifecycle.keys,
        metrics=settings.metrics,
        docs=settings.docs,
        any_host=settings.without_keys == "anywhere",
        origins=origins,
    )
    app.openapi = partial(openapi.describe, app, access)  # type: ignore[method-assign]
    _add_routes(app, settings)
    _add_error_handlers(app)
    _add_admission(app, lifecycle, access)
    if origins:
        app.add_middleware(allow, origins=origins)
    return app


@asynccontextmanager
async def _lifespan(lifecycle: Lifecycle, routes: Routes) -> AsyncIterator[None]:
    async with lifecycle:
        routes.prepare()  # now, while the model loads on a thread, not at the first request
        yield


def _add_routes(app: FastAPI, settings: Settings) -> None:
    versioned = APIRouter()
    for module in (predict, differential, evaluate, model):
        versioned.include_router(module.router)
    app.include_router(versioned)
    app.include_router(versioned, prefix="/v1", include_in_schema=False)
    for module in (healthz, readyz, problem_types, v2, page):
        app.include_router(module.router)
    app.mount("/page", PageFiles(directory=docs.WEB / "page"), name="page")
    if settings.metrics != CLOSED:
        app.include_router(metrics.router)
    if settings.docs != CLOSED:
        app.include_router(docs.router)
        app.mount("/swagger", PageFiles(directory=docs.WEB / "swagger"), name="swagger")


def _add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(LeukoError, problem_responses.handle_error)
    app.add_exception_handler(HTTPException, problem_responses.handle_http)
    app.add_exception_handler(RequestValidationError, problem_responses.handle_invalid)
    app.add_exception_handler(Exception, problem_responses.handle_unexpected)


def _add_admission(app: FastAPI, lifecycle: Lifecycle, access: Access) -> None:
    settings = lifecycle.settings
    routes: Routes = app.state.routes
    app.add_middleware(HeadAndOptions, methods=routes.methods)  # inside admission: for who may use the route
    app.add_middleware(
        Admission,
        limits=AdmissionLimits(
            max_body_bytes=settings.max_body_mib * MIB,
            max_reserved_bytes=settings.max_reserved_mib * MIB,
            max_requests=settings.max_requests,
            body_timeout_s=settings.body_timeout_s,
        ),
        rules=AdmissionRules(
            match=routes.match,
            ready=lambda: lifecycle.serving,
            authorize=access.authorize,
            queued=QUEUED,
            check_queue=lifecycle.check_room,
            cost=body_cost.cost,
            most=body_cost.most,
        ),
        problem=problem_responses.render,
        observe=lifecycle.request_log,
    )
