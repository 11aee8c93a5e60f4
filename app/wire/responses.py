"""Results → wire schemas: predictions, differential counts, evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pydantic import BaseModel

from app.archives.image_files import LeftOut, left_out_line
from app.archives.images import StoredImage
from app.engine.bundle import Bundle
from app.errors import BadLabels, Unusable
from app.evaluation.cell_types import Role, lacking, role_of
from app.evaluation.differential_count import LEVEL, Count, fingerprint
from app.evaluation.differential_count import count as count_labels
from app.inference.pipeline import Answer
from app.inference.scoring import Progress, Scored
from app.lazy_sequence import LazySequence
from app.wire.problems import image_problem
from app.wire.schemas import (
    Caution,
    EmptyImage,
    Evaluation,
    ImageProblem,
    Mistake,
    ModelReference,
    Prediction,
)
from app.wire.specimen import (
    Bounds,
    ClassifiedCell,
    Differential,
    Proportions,
    Ratios,
    ReviewedCell,
    Specimen,
    VerifiedSite,
)

ENOUGH_CELLS = 100  # fewer leukocytes give a warning
NOT_VERIFIED = Caution(code="not_verified", detail="The model was not verified for this laboratory.")
_RATIOS = (Role.LEUKOCYTE, Role.PER_100)  # those of which a differential count has a ratio


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


def differential(
    request_id: str,
    bundle: Bundle,
    specimen: Specimen,
    cells: Mapping[int, Prediction | ClassifiedCell],
    faults: Sequence[ImageProblem] = (),
    model: ModelReference | None = None,
    empty: Sequence[EmptyImage] = (),
) -> Differential:
    """Return the differential count of classified cells. Raise BadLabels for a label unknown to the bundle.

    cells: by position in the request; faults: the images that could not be classified; empty: those in which
    no leukocyte was found. model: that made the predictions; None: unknown, and the bundle is named. Only if
    it is the bundle, it is known whether the model was verified. Raise Unusable if there are no cells.
    """
    if not cells:
        raise Unusable("no leukocyte was found in the images, so there is nothing to count")
    known = model is not None and model.sha256 == bundle.sha256
    site = bundle.site if known else None
    model = model or model_reference(bundle)
    for index, cell in cells.items():
        if cell.label not in bundle.labels:
            raise BadLabels(f"the label of prediction {index} is none of {', '.join(bundle.labels)}")
    counts = count_labels([cell.label for cell in cells.values()], bundle.labels)
    among, beside = ({one: counts[one] for one in bundle.labels if role_of(one) is role} for role in _RATIOS)
    leukocytes = sum(count.n for count in among.values())
    hashes = [
        _identity(cell.image_sha256, cell.cell) for cell in cells.values() if cell.image_sha256 is not None
    ]
    return Differential(
        request_id=request_id,
        model=ModelReference(**dict(model)),
        site=VerifiedSite(name=site.name, verified_at=site.verified_at) if site else None,
        specimen=specimen.specimen,
        accession=specimen.accession,
        subject=specimen.subject,
        effectiveDateTime=specimen.effectiveDateTime,
        performer=specimen.performer,
        fingerprint=fingerprint(model.sha256, hashes) if len(hashes) == len(cells) else None,
        n=len(cells),
        leukocytes=leukocytes,
        counts={label: count.n for label, count in counts.items()},
        percent={label: count.value for label, count in among.items()},
        per_100_leukocytes={label: count.value for label, count in beside.items()},
        intervals=Proportions(level=LEVEL, unit="percent", **_bounds(among)),
        intervals_per_100_leukocytes=Ratios(level=LEVEL, unit="per 100 leukocytes", **_bounds(beside)),
        review=[
            ReviewedCell(
                index=cell.index if isinstance(cell, Prediction) else index,
                cell=cell.cell,
                filename=cell.filename,
                image_sha256=cell.image_sha256,
                label=cell.label,
                confidence=cell.confidence,
                reasons=cell.review_reasons,
            )
            for index, cell in cells.items()
            if cell.review_reasons
        ],
        warnings=[
            *_cautions(bundle.labels, leukocytes, len(cells), len(faults), len(hashes) - len(set(hashes))),
            *([NOT_VERIFIED] if known and site is None else []),
        ],
        empty=list(empty),
        errors=list(faults),
    )


def _identity(image_sha256: str, cell: int | None) -> str:
    """Return what tells a cell from others: several may be of one image."""
    return image_sha256 if cell is None else f"{image_sha256}#{cell}"


def _bounds(counts: Mapping[str, Count]) -> dict[str, dict[str, Bounds]]:
    return {
        "wilson": {label: count.wilson for label, count in counts.items()},
        "exact": {label: count.exact for label, count in counts.items()},
    }


def _cautions(labels: Sequence[str], leukocytes: int, n: int, left_out: int, repeated: int) -> list[Caution]:
    cautions = [Caution(code="classified_cells_only", detail=_limits(labels))]
    if leukocytes < ENOUGH_CELLS:
        counted = "Cells" if all(role_of(label) is Role.LEUKOCYTE for label in labels) else "Leukocytes"
        detail = f"{counted} classified: {leukocytes}. A differential count needs at least {ENOUGH_CELLS}."
        cautions.insert(0, Caution(code="few_cells", detail=detail))
    if left_out:
        detail = f"{left_out} of {n + left_out} images could not be classified and are not counted."
        cautions.append(Caution(code="images_left_out", detail=detail))
    if repeated:
        detail = f"{repeated} of {n} images were sent more than once and are counted each time."
        cautions.append(Caution(code="duplicate_images", detail=detail))
    return cautions


def _limits(labels: Sequence[str]) -> str:
    """Return what a reader must know of the model's classes."""
    missing = lacking(labels)
    classes = f"the model knows {len(labels)} classes"
    if missing:
        classes += f", no {_enumerate(missing)}"
    others = [label for label in labels if role_of(label) is not Role.LEUKOCYTE]
    whole = f"leukocytes, without {_enumerate(others, 'and')}" if others else "cells"
    return (
        f"Percentages are of classified {whole}: {classes}. Any other cell is counted as one of its classes."
    )


def _enumerate(names: Sequence[str], conjunction: str = "or") -> str:
    *first, last = names
    return f"{', '.join(first)} {conjunction} {last}" if first else last


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
