"""From what was found to what goes over the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    cells: Mapping[int, Prediction | ClassifiedCell],
    faults: Sequence[ImageProblem] = (),
) -> Differential:
    """Count classified cells. Raise BadLabels for a label that is not the bundle's.

    cells: by position in the request; faults: the images that could not be classified.
    """
    for index, cell in cells.items():
        if cell.label not in bundle.labels:
            raise BadLabels(f"the label of prediction {index} is none of {', '.join(bundle.labels)}")
    counts = count([cell.label for cell in cells.values()], bundle.labels)
    hashes = [cell.image_sha256 for cell in cells.values() if cell.image_sha256 is not None]
    return Differential(
        request_id=request_id,
        model=model_reference(bundle),
        specimen=specimen.specimen,
        accession=specimen.accession,
        fingerprint=fingerprint(bundle.sha256, hashes) if len(hashes) == len(cells) else None,
        n=len(cells),
        counts={label: one.n for label, one in counts.items()},
        percent={label: one.percent for label, one in counts.items()},
        intervals=Proportions(
            level=LEVEL,
            unit="percent",
            wilson={label: one.wilson for label, one in counts.items()},
            exact={label: one.exact for label, one in counts.items()},
        ),
        review=[
            ReviewedCell(
                index=index,
                filename=cell.filename,
                image_sha256=cell.image_sha256,
                label=cell.label,
                confidence=cell.confidence,
                reasons=cell.review_reasons,
            )
            for index, cell in cells.items()
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
    request_id: str, bundle: Bundle, images: Sequence[StoredImage], scored: Scored, progress: Progress
) -> Evaluation:
    mistakes = [
        Mistake(
            filename=images[one.index].name,
            label=bundle.labels[images[one.index].label],
            predicted=bundle.labels[one.predicted],
            confidence=one.confidence,
        )
        for one in scored.mistakes
    ]
    failures = [image_problem(error, i, images[i].name) for i, error in scored.failures.items()]
    return Evaluation(
        **asdict(scored.report),
        request_id=request_id,
        model=model_reference(bundle),
        elapsed_seconds=progress.seconds,
        images_per_second=progress.images_per_second,
        misclassified=mistakes,
        errors=failures,
    )
