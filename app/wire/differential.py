"""Classified cells and a person's review of them → the differential count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from app.engine.bundle import Bundle
from app.errors import Unusable
from app.evaluation.cell_types import Role, lacking, role_of
from app.evaluation.differential_count import LEVEL, Count, count
from app.wire import review
from app.wire.responses import model_reference
from app.wire.review import Cell, Cells
from app.wire.schemas import Caution, EmptyImage, ImageProblem, ModelReference
from app.wire.specimen import (
    Bounds,
    Differential,
    Proportions,
    Ratios,
    SignOff,
    Specimen,
    VerifiedSite,
)

ENOUGH_CELLS = 100  # fewer leukocytes give a warning
NOT_VERIFIED = Caution(code="not_verified", detail="The model was not verified for this laboratory.")


def differential(
    request_id: str,
    bundle: Bundle,
    specimen: Specimen,
    cells: Cells,
    faults: Sequence[ImageProblem] = (),
    model: ModelReference | None = None,
    empty: Sequence[EmptyImage] = (),
    sign_off: SignOff = review.UNSIGNED,
) -> Differential:
    """Return the differential count of classified cells. Raise BadLabels for a label unknown to the bundle.

    cells: by position in the request; faults: the images that could not be classified; empty: those in which
    no leukocyte was found. model: that made the predictions; None: unknown, and the bundle is named. Only if
    it is the bundle, it is known whether the model was verified. Raise Unusable if there are no cells.
    """
    if not cells:
        raise Unusable("no leukocyte was found in the images, so there is nothing to count")
    review.check_labels(cells, bundle.labels)
    known = model is not None and model.sha256 == bundle.sha256
    site = bundle.site if known else None
    model = ModelReference(**dict(model or model_reference(bundle)))
    by_model = Counter(cell.label for cell in cells.values())
    labels, with_review = review.counted(cells), review.has_review(cells, sign_off)
    counts = count([*labels.values()], review.rows(bundle.labels, with_review=with_review))
    return Differential(
        request_id=request_id,
        model=model,
        site=VerifiedSite(name=site.name, verified_at=site.verified_at) if site else None,
        **{name: getattr(specimen, name) for name in Specimen.model_fields},
        **(figures := _figures(counts)),
        model_counts={label: by_model[label] for label in bundle.labels},
        **review.fields(cells, sign_off, model.sha256),
        warnings=[
            *_few_cells(bundle.labels, figures["leukocytes"]),
            Caution(code="classified_cells_only", detail=_limits(bundle.labels, with_review=with_review)),
            *_of_images(cells, labels, len(faults), len(empty)),
            *([NOT_VERIFIED] if known and site is None else []),
            *review.cautions(cells, sign_off),
        ],
        empty=list(empty),
        errors=list(faults),
    )


def _figures(counts: Mapping[str, Count]) -> dict[str, Any]:
    """Return the fields of a count that its classes give."""
    leukocytes, beside = (
        {label: count for label, count in counts.items() if role_of(label) is role}
        for role in (Role.LEUKOCYTE, Role.PER_100)
    )
    return {
        "n": sum(count.n for count in counts.values()),
        "leukocytes": sum(count.n for count in leukocytes.values()),
        "counts": {label: count.n for label, count in counts.items()},
        "percent": {label: count.value for label, count in leukocytes.items()},
        "per_100_leukocytes": {label: count.value for label, count in beside.items()},
        "intervals": Proportions(level=LEVEL, unit="percent", **_bounds(leukocytes)),
        "intervals_per_100_leukocytes": Ratios(level=LEVEL, unit="per 100 leukocytes", **_bounds(beside)),
    }


def _bounds(counts: Mapping[str, Count]) -> dict[str, dict[str, Bounds]]:
    return {
        "wilson": {label: count.wilson for label, count in counts.items()},
        "exact": {label: count.exact for label, count in counts.items()},
    }


def _few_cells(labels: Sequence[str], leukocytes: int) -> list[Caution]:
    if leukocytes >= ENOUGH_CELLS:
        return []
    counted = "Cells" if all(role_of(label) is Role.LEUKOCYTE for label in labels) else "Leukocytes"
    detail = f"{counted} classified: {leukocytes}. A differential count needs at least {ENOUGH_CELLS}."
    return [Caution(code="few_cells", detail=detail)]


def _of_images(cells: Cells, counted: Collection[int], left_out: int, empty: int) -> list[Caution]:
    """counted: positions of the cells that count. left_out, empty: images with an error, without a cell."""
    cautions = []
    given = sum(_images(cells.values()).values()) + left_out + empty
    if left_out:
        detail = f"{left_out} of {given} images could not be classified and are not counted."
        cautions.append(Caution(code="images_left_out", detail=detail))
    times = _images(cells[index] for index in counted)
    if repeated := sum(number - 1 for sha256, number in times.items() if sha256 is not None):
        detail = f"{repeated} of {given} images were sent more than once and are counted each time."
        cautions.append(Caution(code="duplicate_images", detail=detail))
    return cautions


def _images(cells: Iterable[Cell]) -> dict[str | None, int]:
    """Return how often the image with each SHA-256 was sent; None: how many images without a known one.

    That is how often the same cell of it was sent. Of an image without a known hash, all cells without a
    number are images of their own.
    """
    images: dict[str | None, int] = {}
    unnumbered = 0
    for (sha256, number), times in Counter((cell.image_sha256, cell.cell) for cell in cells).items():
        if sha256 is None and number is None:
            unnumbered = times
        else:
            images[sha256] = max(times, images.get(sha256, 0))
    return {**images, **({None: images.get(None, 0) + unnumbered} if unnumbered else {})}


def _limits(labels: Sequence[str], *, with_review: bool) -> str:
    """Return what a reader must know of the model's classes."""
    missing = lacking(labels)
    classes = f"the model knows {len(labels)} classes"
    if missing:
        classes += f", no {_enumerate(missing)}"
    others = [label for label in labels if role_of(label) is not Role.LEUKOCYTE]
    whole = f"leukocytes, without {_enumerate(others, 'and')}" if others else "cells"
    others_as = "as one of its classes" + (" or, if a person said so, as unidentified" if with_review else "")
    return f"Percentages are of classified {whole}: {classes}. Any other cell is counted {others_as}."


def _enumerate(names: Sequence[str], conjunction: str = "or") -> str:
    *first, last = names
    return f"{', '.join(first)} {conjunction} {last}" if first else last
