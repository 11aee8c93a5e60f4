"""`GET /model`: the loaded model, its origin, its scores and the limits of the service."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from app import __version__, errors
from app.api.openapi import answer, not_found, refusals
from app.api.routes.examples import MODEL_CARD
from app.api.routes.parameters import Loaded
from app.inference.service import Service, image_limits
from app.reports import loinc
from app.wire.schemas import FamiliarThresholds, Limits, Model, QualityThresholds, ReviewThresholds, Site

router = APIRouter(tags=["operate"])


@router.get(
    "/model",
    operation_id="model",
    summary="Describe the loaded model",
    responses=answer(MODEL_CARD)
    | not_found("unknown_model", "There is no model of this name.")
    | refusals(errors.NotReady),
)
async def model(service: Loaded) -> Model:
    bundle, engine = service.classifier.bundle, service.classifier.engine
    return Model(
        name=bundle.name,
        version=bundle.version,
        sha256=bundle.sha256,
        labels=list(bundle.labels),
        codes=loinc.codes(bundle.labels, service.settings.loinc_method, bundle.codes),
        preprocessing=asdict(bundle.preprocessing),
        temperature=bundle.temperature,
        review=ReviewThresholds(
            confidence=bundle.review_confidence,
            ood_score=bundle.review_ood_score,
            quality=QualityThresholds(**asdict(bundle.quality_limits)) if bundle.quality_limits else None,
            familiar=FamiliarThresholds(**asdict(bundle.familiar)) if bundle.familiar else None,
        ),
        training=dict(bundle.training),
        scores=dict(bundle.scores),
        site=Site(**asdict(bundle.site)) if bundle.site else None,
        engine=engine.name,
        device=engine.device,
        service_version=__version__,
        limits=_limits(service),
    )


def _limits(service: Service) -> Limits:
    settings, images = service.settings, image_limits(service.settings)
    return Limits(
        max_body_mib=settings.max_body_mib,
        max_image_mib=settings.max_image_mib,
        max_pixels=images.max_pixels,
        max_side=images.max_side,
        max_files=settings.images_per_request,
        max_cells=settings.max_cells,
        max_archive_entries=settings.max_archive_entries,
        deadline_s=settings.deadline_s,
        evaluate_deadline_s=settings.evaluate_deadline_s,
    )
