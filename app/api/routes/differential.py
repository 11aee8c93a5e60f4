"""`POST /differential`: the cells of one specimen → a differential count with intervals."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from app import errors
from app.api.json_bodies import finish
from app.api.json_tasks import JSON, CountCells, Finished, render_count
from app.api.negotiation import choose
from app.api.openapi import Document, answer, body, ref, refusals, text_field
from app.api.routes.examples import CELLS, DIFFERENTIAL
from app.api.routes.images import IMAGE_ERRORS, classify, image_limit, images_body
from app.api.routes.parameters import Cells, Context, Loaded
from app.api.uploads import media_type, parse_texts, read_images
from app.inference.threads import SHORT
from app.reports import fhir, hl7
from app.units import MIB
from app.wire.differential import differential as count_cells
from app.wire.responses import model_reference
from app.wire.specimen import Differential, Specimen

router = APIRouter(tags=["classify"])

MAX_CELLS_BYTES = 16 * MIB  # 10,000 predictions of /predict with activation maps
TEXTS = dict.fromkeys(Specimen.model_fields, 4096)  # bytes

BODY = images_body(
    "DifferentialForm",
    {"files": ["1.jpg", "2.jpg"], "specimen": "S-1", "accession": "A-1"},
    **{name: text_field(str(field.description)) for name, field in Specimen.model_fields.items()},
) | {JSON: {"schema": ref("ClassifiedCells"), "examples": CELLS}}
REPORT_FORMATS: Document = {
    fhir.MEDIA_TYPE: {"schema": {"type": "object"}, "example": {"resourceType": "Bundle", "…": "…"}},
    hl7.MEDIA_TYPE: {"schema": {"type": "string"}, "example": "MSH|^~\\&|LEUKO|…"},
}

DESCRIPTION = """
Send the images of one specimen as multipart form data, as for `/predict`, or the `predictions` and
`errors` of earlier `/predict` responses as JSON. Percentages are of the leukocytes among the classified
cells; each has a Wilson and an exact (Clopper–Pearson) 95 % interval. If the model knows erythroblasts or
smudge cells, they are counted per 100 leukocytes; platelets and artefacts are only counted. `review` lists
the cells that a person must look at; `warnings` lists limits of the count that its reader must know.
`specimen` and `accession` are returned unchanged and never stored or logged.
`Accept: application/fhir+json` selects a FHIR R4 Bundle with a DiagnosticReport,
`Accept: application/hl7-v2` an HL7 v2.5.1 ORU^R01 message.
`bundle=transaction` returns a Bundle that a FHIR server stores as a transaction; `subject`,
`effectiveDateTime` and `performer` are put into FHIR reports. Send `model` with earlier predictions, so that
the report names the model that made them.

In JSON a person's review may follow: `reviewed` in a prediction is then counted instead of `label`, and
`reviewer` signs. `status` is `preliminary` until that is done, then `final`; with `replaces`, the
`fingerprint` of a signed report, it is `corrected`. Send the replaced response as `former`, so that its
values, and those of the reports before it, stand in the corrected report. `agreement` and `changes` compare
the person with the model. A report of images is always preliminary.

With `cells=all` every leukocyte of each image is counted;
images without any are listed in `empty`. Not for diagnosis.

    curl -F files=@1.jpg -F files=@2.jpg -F specimen=S-1 http://127.0.0.1:8000/differential
"""


@router.post(
    "/differential",
    operation_id="differential",
    summary="Count the cells of a specimen by class",
    description=DESCRIPTION,
    response_model=Differential,
    responses=answer(DIFFERENTIAL, **REPORT_FORMATS)
    | refusals(*IMAGE_ERRORS, errors.NotAcceptable, errors.BadLabels),
    openapi_extra=body(BODY),
)
async def differential(
    request: Request,
    service: Loaded,
    context: Context,
    cells: Cells = "one",
    bundle_type: Annotated[
        Literal["collection", "transaction"] | None,
        Query(
            alias="bundle",
            description="type of FHIR's Bundle, which is then the response",
            json_schema_extra={"type": "string", "enum": [fhir.COLLECTION, fhir.TRANSACTION]},
        ),
    ] = None,
) -> Response:
    offered = (JSON, *REPORT_FORMATS) if bundle_type is None else (fhir.MEDIA_TYPE,)
    kind, bundle_type = choose(request.headers.get("accept", ""), offered), bundle_type or "collection"
    bundle, settings = service.classifier.bundle, service.settings
    if media_type(request) == JSON:
        task = CountCells(context.request_id, bundle, kind, settings.loinc_method, bundle_type)
        deadline = context.arrived + settings.deadline_s
        finished = await finish(request, task, MAX_CELLS_BYTES, context, deadline)
    else:
        with service.stage("receive", context.stages):
            upload = await read_images(request, image_limit(service), TEXTS)
        specimen = parse_texts(Specimen, upload.texts)
        classified = await classify(service, upload.images, context, all_cells=cells == "all")
        if isinstance(classified, Response):
            return classified
        found, faults, empty = classified.predictions, classified.faults, classified.empty

        def count() -> Finished:
            model = model_reference(bundle)
            cells = dict(enumerate(found))
            counted = count_cells(context.request_id, bundle, specimen, cells, faults, model, empty)
            return render_count(counted, kind, settings.loinc_method, bundle_type, bundle.codes)

        finished = await SHORT.run(count, context)
    context.findings.update(finished.findings)
    return Response(finished.body, media_type=finished.media_type)
