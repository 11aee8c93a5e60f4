"""From what was found to what goes over the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from app.archives.images import StoredImage
from app.engine.bundle import Bundle
from app.errors import BadLabels
from app.evaluation.differential_count import LEVEL, count, fingerprint
from app.inference.pipeline import Answer
from app.inference.scoring import Progress, Scored
from app.wire.problems import image_problem
from app.wire.schemas import Evaluation, ImageProblem, Mistake, ModelReference, Prediction
from app.wire.specimen import Caution, ClassifiedCell, Differential, Proportions, ReviewedCell, Specimen

ENOUGH_CELLS = 100


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


def differential(
    request_id: str,
    bundle: Bundle,
    specimen: Specimen,
    cells: Sequence[ClassifiedCell],
    faults: Sequence[ImageProblem] = (),
    places: Sequence[int] | None = None,
) -> Differential:
    """places: of the cells in the request, where images without an answer lie between. Raises BadLabels."""
    labels = [cell.label for cell in cells]
    for index, label in enumerate(labels):
        if label not in bundle.labels:
            raise BadLabels(f"the label of prediction {index} is none of {', '.join(bundle.labels)}")
    found = count(labels, bundle.labels)
    hashes = [cell.image_sha256 for cell in cells if cell.image_sha256 is not None]
    return Differential(
        request_id=request_id,
        model=model_reference(bundle),
        specimen=specimen.specimen,
        accession=specimen.accession,
        fingerprint=fingerprint(bundle.sha256, hashes) if len(hashes) == len(cells) else None,
        n=len(cells),
        counts={name: one.n for name, one in found.items()},
        percent={name: one.percent for name, one in found.items()},
        intervals=Proportions(
            level=LEVEL,
            unit="percent",
            wilson={name: one.wilson for name, one in found.items()},
            exact={name: one.exact for name, one in found.items()},
        ),
        review=[
            ReviewedCell(
                index=place,
                filename=cell.filename,
                image_sha256=cell.image_sha256,
                label=cell.label,
                confidence=cell.confidence,
                reasons=cell.review_reasons,
            )
            for place, cell in zip(places or range(len(cells)), cells, strict=True)
            if cell.review_reasons
        ],
        warnings=_cautions(len(cells), len(faults), len(hashes) - len(set(hashes))),
        errors=list(faults),
    )


def _cautions(n: int, left_out: int, repeated: int) -> list[Caution]:
    found = [
        Caution(
            code="classified_cells_only",
            detail="Percentages are of classified cells: the model knows four classes, no basophils, bands,"
            " blasts or other cells.",
        )
    ]
    if n < ENOUGH_CELLS:
        detail = (
            f"{n} classified cells are fewer than the {ENOUGH_CELLS} that a differential counts at least."
        )
        found.insert(0, Caution(code="few_cells", detail=detail))
    if left_out:
        detail = f"{left_out} of {n + left_out} images could not be classified and are not counted."
        found.append(Caution(code="images_left_out", detail=detail))
    if repeated:
        detail = f"{repeated} of {n} images were sent more than once, and are counted each time."
        found.append(Caution(code="duplicate_images", detail=detail))
    return found


def evaluation(
    request_id: str, bundle: Bundle, sources: Sequence[StoredImage], scored: Scored, progress: Progress
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
