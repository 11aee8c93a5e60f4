"""Results → wire schemas: predictions and evaluations; `differential` has the counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from pydantic import BaseModel

from app.archives.image_files import LeftOut, left_out_line
from app.archives.images import StoredImage
from app.engine.bundle import Bundle
from app.inference.pipeline import Answer
from app.inference.scoring import Progress, Scored
from app.lazy_sequence import LazySequence
from app.wire.problems import image_problem
from app.wire.schemas import (
    Caution,
    Evaluation,
    ImageProblem,
    Mistake,
    ModelReference,
    Prediction,
)


def model_reference(bundle: Bundle) -> ModelReference:
    return ModelReference(name=bundle.name, version=bundle.version, sha256=bundle.sha256)


def prediction(index: int, filename: str | None, answer: Answer, labels: Sequence[str]) -> Prediction:
    predicted = answer.prediction
    number = {} if answer.cell is None else {"cell": answer.cell}
    return Prediction.model_validate(
        {
            "index": index,
            **number,
            "filename": filename,
            "image_sha256": answer.image_sha256,
            "label": predicted.label,
            "confidence": predicted.confidence,
            "probabilities": dict(zip(labels, predicted.probabilities, strict=True)),
            "ood_score": predicted.ood_score,
            "review": predicted.review,
            "review_reasons": predicted.review_reasons,
            "frame": asdict(answer.frame),
            "cam": None
            if predicted.cam is None
            else {"shape": predicted.cam.shape, "values": predicted.cam.tolist()},
        }
    )


def evaluation(
    request_id: str,
    bundle: Bundle,
    images: Sequence[StoredImage],
    scored: Scored,
    progress: Progress,
    *,
    left_out: LeftOut | None = None,
    lazy: bool = False,
    prefix: str = "",
) -> Evaluation:
    """Return the evaluation.

    left_out: files of the archive that are no images. lazy: the lists of images are made when
    `api.json_response` renders them. prefix: of the paths that the client sees.
    """
    failures, line = [*scored.failures], left_out_line(left_out or {})

    def mistake(number: int) -> Mistake:
        found = scored.mistakes[number]
        image = images[found.index]
        return Mistake(
            filename=image.name,
            label=bundle.labels[image.label],
            predicted=bundle.labels[found.predicted],
            confidence=found.confidence,
        )

    def failure(number: int) -> ImageProblem:
        index = failures[number]
        return image_problem(scored.failures[index], index, images[index].name, prefix)

    result = Evaluation(
        **asdict(scored.report),
        request_id=request_id,
        model=model_reference(bundle),
        verification=scored.verification,
        elapsed_seconds=progress.seconds,
        images_per_second=progress.images_per_second,
        misclassified=[],
        errors=[],
        warnings=[Caution(code="files_left_out", detail=f"{line}.")] if line else [],
    )
    lists: dict[str, Sequence[BaseModel]] = {
        "misclassified": LazySequence(len(scored.mistakes), mistake),
        "errors": LazySequence(len(failures), failure),
    }
    return result.model_copy(update=lists if lazy else {name: made[:] for name, made in lists.items()})
