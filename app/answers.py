"""From what was found to what goes over the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from app.pipeline import Answer
from app.problems import image_problem
from app.schemas import Evaluation, Mistake, ModelReference, Prediction
from app.scoring import Progress, Scored
from app.sources import Source
from app.vision.bundle import Bundle


def model_reference(bundle: Bundle) -> ModelReference:
    return ModelReference(name=bundle.name, version=bundle.version, sha256=bundle.sha256)


def prediction(index: int, filename: str | None, answer: Answer, labels: Sequence[str]) -> Prediction:
    found = answer.prediction
    return Prediction.model_validate(
        {
            "index": index,
            "filename": filename,
            "image_sha256": answer.image_sha256,
            "label": found.label,
            "confidence": found.confidence,
            "probabilities": dict(zip(labels, found.probabilities, strict=True)),
            "ood_score": found.ood_score,
            "review": found.review,
            "review_reasons": found.review_reasons,
            "frame": asdict(answer.frame),
            "cam": None if found.cam is None else {"shape": found.cam.shape, "values": found.cam.tolist()},
        }
    )


def evaluation(
    request_id: str, bundle: Bundle, sources: Sequence[Source], scored: Scored, progress: Progress
) -> Evaluation:
    mistakes = [
        Mistake(
            filename=sources[one.index].name,
            label=bundle.labels[sources[one.index].label],
            predicted=bundle.labels[one.predicted],
            confidence=one.confidence,
        )
        for one in scored.mistakes
    ]
    failures = [image_problem(error, i, sources[i].name) for i, error in scored.failures.items()]
    return Evaluation(
        **asdict(scored.report),
        request_id=request_id,
        model=model_reference(bundle),
        elapsed_seconds=progress.seconds,
        images_per_second=progress.images_per_second,
        misclassified=mistakes,
        errors=failures,
    )
