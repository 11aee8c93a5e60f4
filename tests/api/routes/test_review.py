"""`POST /differential` with a person's review of the predictions."""

from __future__ import annotations

from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from app.wire.specimen import MOST_FORMER
from tests.fake_classifier import png
from tests.fakes import GREYS

HASHES = [f"{number:064x}" for number in range(8)]
MARKED: dict[str, Any] = {"review_reasons": ["low_confidence"]}


def cell(number: int, label: str, reviewed: str | None = None, **others: Any) -> dict[str, Any]:
    said = {} if reviewed is None else {"reviewed": reviewed}
    return {"label": label, "image_sha256": HASHES[number], **said, **others}


CELLS = [
    cell(0, "neutrophil"),
    cell(1, "neutrophil", "neutrophil"),
    cell(2, "neutrophil", "eosinophil", **MARKED),
    cell(3, "monocyte", "unidentified", **MARKED),
    cell(4, "lymphocyte", "not_a_cell", filename="4.png", cell=7, **MARKED),
]


def post(client: TestClient, cells: list[dict[str, Any]], **others: Any) -> Response:
    answer: Response = client.post("/differential", json={"predictions": cells, **others})
    return answer


def count(client: TestClient, cells: list[dict[str, Any]], **others: Any) -> dict[str, Any]:
    answer = post(client, cells, **others)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def warnings(document: dict[str, Any]) -> dict[str, str]:
    return {warning["code"]: warning["detail"] for warning in document["warnings"]}


def test_counts_percentages_and_intervals_follow_the_reviewed_labels(client: TestClient) -> None:
    made = count(client, CELLS)
    assert made["counts"] == {
        "eosinophil": 1,
        "lymphocyte": 0,
        "monocyte": 0,
        "neutrophil": 2,
        "unidentified": 1,
    }
    assert made["model_counts"] == {"eosinophil": 0, "lymphocyte": 1, "monocyte": 1, "neutrophil": 3}
    assert (made["n"], made["leukocytes"], made["not_a_cell"]) == (4, 4, 1)
    assert made["percent"] == {
        "eosinophil": 25,
        "lymphocyte": 0,
        "monocyte": 0,
        "neutrophil": 50,
        "unidentified": 25,
    }
    assert made["intervals"]["wilson"]["neutrophil"] == pytest.approx([15.0, 85.0], abs=0.05)
    assert made["intervals"]["exact"]["unidentified"] == pytest.approx([0.63, 80.59], abs=0.05)
    assert "1 of 4 cells could not be identified" in warnings(made)["cells_unidentified"]
    assert warnings(made)["classified_cells_only"].endswith("or, if a person said so, as unidentified.")
    assert warnings(made)["few_cells"].startswith("Cells classified: 4.")


def test_agreement_and_changes_compare_the_person_with_the_model(client: TestClient) -> None:
    made = count(client, CELLS)
    assert made["agreement"] == {"reviewed": 4, "kept": 1}
    assert [(one["index"], one["label"], one["reviewed"]) for one in made["changes"]] == [
        (2, "neutrophil", "eosinophil"),
        (3, "monocyte", "unidentified"),
        (4, "lymphocyte", "not_a_cell"),
    ]
    assert made["changes"][2] == {
        "index": 4,
        "cell": 7,
        "filename": "4.png",
        "image_sha256": HASHES[4],
        "label": "lymphocyte",
        "reviewed": "not_a_cell",
    }


def test_without_a_review_nothing_changes(client: TestClient) -> None:
    plain = [{name: one[name] for name in ("label", "image_sha256")} for one in CELLS]
    made = count(client, plain)
    assert "unidentified" not in made["counts"]
    assert made["counts"] == made["model_counts"]
    assert (made["status"], made["reviewer"], made["replaces"]) == ("preliminary", None, None)
    assert (made["agreement"], made["changes"]) == ({"reviewed": 0, "kept": 0}, [])
    assert made["fingerprint"] == made["unreviewed_fingerprint"]
    same = count(client, [one | {"reviewed": None} for one in plain], reviewer=None, replaces=None)
    assert same | {"request_id": made["request_id"]} == made


def test_a_report_of_images_is_preliminary(client: TestClient) -> None:
    made = client.post("/differential", files=[("files", ("a.png", png(GREYS[1])))]).json()
    assert (made["status"], made["agreement"]) == ("preliminary", {"reviewed": 0, "kept": 0})
    signed = client.post(
        "/differential", files=[("files", ("a.png", png(GREYS[1])))], data={"reviewer": "A. Smith"}
    )
    assert (signed.status_code, signed.json()["code"]) == (422, "unusable")


OPEN = [cell(0, "neutrophil"), cell(1, "monocyte", **MARKED)]
DONE = [OPEN[0], OPEN[1] | {"reviewed": "monocyte"}]
EARLIER = "e" * 64


@pytest.mark.parametrize(
    ("cells", "signature", "status"),
    [
        (OPEN, {}, "preliminary"),
        (DONE, {}, "preliminary"),
        (OPEN, {"reviewer": "A. Smith"}, "preliminary"),
        (OPEN, {"reviewer": "A. Smith", "replaces": EARLIER}, "preliminary"),
        (OPEN[:1], {"reviewer": "A. Smith"}, "final"),
        (DONE, {"reviewer": "Ä. Ølsen-Łoś 王"}, "final"),
        (DONE, {"reviewer": "A. Smith", "replaces": EARLIER}, "corrected"),
    ],
)
def test_the_status_follows_signature_open_cells_and_replaced_report(
    client: TestClient, cells: list[dict[str, Any]], signature: dict[str, str], status: str
) -> None:
    made = count(client, cells, **signature)
    assert made["status"] == status
    assert made["reviewer"] == signature.get("reviewer")
    assert made["replaces"] == signature.get("replaces")
    incomplete = status == "preliminary" and "reviewer" in signature
    assert ("review_incomplete" in warnings(made)) is incomplete
    assert ("former_values_missing" in warnings(made)) is ("replaces" in signature)


@pytest.mark.parametrize("said", ["monocyte", "lymphocyte", "unidentified", "not_a_cell"])
def test_a_marked_cell_that_was_reviewed_is_not_left_for_review(client: TestClient, said: str) -> None:
    assert [one["index"] for one in count(client, OPEN)["review"]] == [1]
    assert count(client, [OPEN[0], OPEN[1] | {"reviewed": said}])["review"] == []


def test_a_specimen_may_turn_out_to_have_no_cell(client: TestClient) -> None:
    made = count(client, [cell(0, "monocyte", "not_a_cell")], reviewer="A. Smith")
    assert (made["status"], made["n"], made["percent"]["monocyte"]) == ("final", 0, None)


def test_images_sent_twice_are_warned_of_unless_one_was_taken_out(client: TestClient) -> None:
    twice = [cell(0, "monocyte"), cell(0, "monocyte"), cell(1, "monocyte")]
    assert "1 of 3 images" in warnings(count(client, twice))["duplicate_images"]
    twice[1] = cell(0, "monocyte", "not_a_cell")
    assert "duplicate_images" not in warnings(count(client, twice))


def test_warnings_count_images_and_not_their_cells(client: TestClient) -> None:
    field = [cell(0, "monocyte", cell=number) for number in range(3)]
    other = [cell(1, "monocyte", cell=number) for number in range(2)]
    fault = {"type": "/problems/x", "title": "x", "status": 422, "detail": "x", "code": "x", "filename": "x"}
    faults = [fault | {"index": index} for index in (2, 3)]
    found = warnings(count(client, [*field, *other], errors=faults, empty=[{"index": 4, "filename": "e"}]))
    assert found["images_left_out"].startswith("2 of 5 images could not be classified")
    assert "duplicate_images" not in found
    found = warnings(count(client, [*field, *other] * 2, errors=faults))
    assert found["images_left_out"].startswith("2 of 6 images")
    assert found["duplicate_images"].startswith("2 of 6 images were sent more than once")
    unknown = [{"label": "monocyte", "cell": number} for number in (0, 1, 0)] + [{"label": "monocyte"}]
    found = warnings(count(client, unknown, errors=faults))
    assert found["images_left_out"].startswith("2 of 5 images")
    assert "duplicate_images" not in found


# Fingerprints


def test_each_review_has_a_fingerprint_of_its_own(client: TestClient) -> None:
    first = OPEN[0]
    reports = [
        count(client, cells, **signature)
        for cells, signature in (
            (OPEN, {}),
            (DONE, {}),
            ([first, OPEN[1] | {"reviewed": "lymphocyte"}], {}),
            ([first | {"reviewed": "neutrophil"}, DONE[1]], {}),
            (OPEN, {"reviewer": "A. Smith"}),
            (DONE, {"reviewer": "A. Smith"}),
            (DONE, {"reviewer": "B. Jones"}),
            ([DONE[0], DONE[1] | {"review_reasons": []}], {"reviewer": "A. Smith", "replaces": EARLIER}),
            (DONE, {"reviewer": "A. Smith", "replaces": "d" * 64}),
        )
    ]
    fingerprints = [made["fingerprint"] for made in reports]
    assert len({*fingerprints}) == len(fingerprints)
    assert {made["unreviewed_fingerprint"] for made in reports} == {fingerprints[0]}


def test_a_fingerprint_does_not_depend_on_the_order_of_the_cells(client: TestClient) -> None:
    signature = {"reviewer": "A. Smith"}
    assert (
        count(client, DONE, **signature)["fingerprint"]
        == count(client, DONE[::-1], **signature)["fingerprint"]
    )


def test_cells_of_one_image_are_told_apart(client: TestClient) -> None:
    first, second = cell(0, "monocyte", cell=0), cell(0, "monocyte", cell=1)
    said = {"reviewed": "lymphocyte"}
    one, other = count(client, [first | said, second]), count(client, [first, second | said])
    assert one["counts"] == other["counts"]
    assert one["fingerprint"] != other["fingerprint"]
    assert one["unreviewed_fingerprint"] == other["unreviewed_fingerprint"]
    assert ([made["cell"] for made in one["changes"]], [made["cell"] for made in other["changes"]]) == (
        [0],
        [1],
    )
    assert "duplicate_images" not in warnings(one)


def test_without_hashes_there_is_no_fingerprint(client: TestClient) -> None:
    made = count(client, [DONE[0], {"label": "monocyte", "reviewed": "monocyte"}], reviewer="A. Smith")
    assert (made["fingerprint"], made["unreviewed_fingerprint"]) == (None, None)


# Corrections


def test_a_correction_holds_the_report_that_it_replaces(client: TestClient) -> None:
    final = count(client, DONE, reviewer="A. Smith")
    again = [OPEN[0], OPEN[1] | {"reviewed": "unidentified"}]
    corrected = count(client, again, reviewer="B. Jones", replaces=final["fingerprint"], former=final)
    assert corrected["status"] == "corrected"
    assert corrected["replaces"] == final["fingerprint"] != corrected["fingerprint"]
    kept = ("fingerprint", "status", "reviewer", "counts", "changes")
    nothing = {"replaces": None, "former": None}
    assert corrected["former"] == {name: final[name] for name in kept} | nothing
    assert "former_values_missing" not in warnings(corrected)
    # And once more: each names and holds the one before.
    third = count(client, DONE, reviewer="B. Jones", replaces=corrected["fingerprint"], former=corrected)
    assert third["former"]["status"] == "corrected"
    assert third["former"]["changes"] == corrected["changes"] != []
    assert third["fingerprint"] not in (final["fingerprint"], corrected["fingerprint"])
    assert third["former"]["replaces"] == final["fingerprint"]
    assert third["former"]["former"] == corrected["former"]
    assert "former_values_missing" not in warnings(third)


def test_a_correction_of_a_correction_whose_own_former_was_not_sent_says_so(client: TestClient) -> None:
    signature = {"reviewer": "C. Brown", "replaces": EARLIER}
    for lost in ({"status": "corrected"}, {"status": "corrected", "replaces": "d" * 64}):
        made = count(client, DONE, former=former(**lost), **signature)
        assert "The earliest report" in warnings(made)["former_values_missing"]
    assert "former_values_missing" not in warnings(count(client, DONE, former=former(), **signature))


def test_so_many_corrections_of_one_report_are_held_and_no_more(client: TestClient) -> None:
    made = count(client, DONE, reviewer="Reviewer 0")
    for number in range(1, MOST_FORMER + 1):
        signature = {"reviewer": f"Reviewer {number}", "replaces": made["fingerprint"], "former": made}
        made = count(client, DONE, **signature)
    text = str(made)
    assert all(f"Reviewer {number}" in text for number in range(MOST_FORMER + 1))
    signature = {"reviewer": "Z", "replaces": made["fingerprint"], "former": made}
    refused = post(client, DONE, **signature)
    assert refused.status_code == 422
    [error] = refused.json()["errors"]
    assert error["field"] == "body.former"
    assert error["detail"].startswith("holds more than 8 reports, one in the other: leave out `former`")
    inner = made
    while inner["former"]["former"]:
        inner = inner["former"]
    del inner["former"]
    assert "former_values_missing" in warnings(count(client, DONE, **signature))


def test_what_is_wrong_is_said_without_what_pydantic_puts_before_it(client: TestClient) -> None:
    for body, expected in (
        ({"reviewer": "A", "former": former()}, "replaces is missing: it must be the fingerprint"),
        ({"replaces": EARLIER}, "needs a reviewer"),
        ({"reviewer": "\n"}, "must consist of printable characters"),
    ):
        answer = post(client, DONE, **body).json()
        assert answer["errors"][0]["detail"].startswith(expected)
        assert "Value error" not in str(answer)


def former(**others: Any) -> dict[str, Any]:
    fields = {"fingerprint": EARLIER, "status": "final", "reviewer": "A. Smith"}
    return {**fields, "counts": {"monocyte": 1}, "changes": [], **others}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"reviewer": ""}, "reviewer"),
        ({"reviewer": " "}, "reviewer"),
        ({"reviewer": "a" * 129}, "reviewer"),
        ({"reviewer": "Doe\nJane"}, "reviewer"),
        ({"reviewer": 7}, "reviewer"),
        ({"reviewer": "A. Smith", "replaces": "E" * 64}, "replaces"),
        ({"reviewer": "A. Smith", "replaces": "e" * 63}, "replaces"),
        ({"reviewer": "A. Smith", "replaces": ""}, "replaces"),
        ({"replaces": EARLIER}, "replaces"),
        ({"reviewer": "A. Smith", "former": former()}, "former"),
        ({"reviewer": "A. Smith", "replaces": "d" * 64, "former": former()}, "former"),
        *(
            ({"reviewer": "A. Smith", "replaces": EARLIER, "former": former(**wrong)}, f"former{place}")
            for wrong, place in (
                ({"status": "preliminary"}, ""),
                ({"reviewer": None}, ""),
                ({"status": "Doe"}, ".status"),
                ({"fingerprint": None}, ".fingerprint"),
                ({"counts": {"monocyte": -1}}, ".counts.monocyte"),
                ({"counts": {"Doe^Jane": 1}}, ".counts.Doe^Jane.[key]"),
                ({"changes": [{"index": 0, "label": "monocyte"}]}, ".changes.0.reviewed"),
                ({"replaces": "e"}, ".replaces"),
                ({"former": former()}, ".former"),
                ({"former": former(), "replaces": "d" * 64}, ".former"),
                ({"former": former(status="preliminary"), "replaces": EARLIER}, ".former"),
            )
        ),
    ],
)
def test_a_wrong_review_is_refused_and_its_field_named(
    client: TestClient, body: dict[str, Any], field: str
) -> None:
    answer = post(client, DONE, **body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["field"] for error in answer.json()["errors"]] == [f"body.{field}"]


@pytest.mark.parametrize("wrong", ["basophil", "Monocyte", "", "DOE^JANE"])
def test_a_reviewed_label_that_the_model_does_not_have_is_refused(client: TestClient, wrong: str) -> None:
    answer = post(client, [DONE[0], cell(1, "monocyte", wrong)])
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_labels")
    known = "eosinophil, lymphocyte, monocyte, neutrophil, unidentified, not_a_cell"
    assert answer.json()["detail"] == f"reviewed of prediction 1 is none of {known}"
    assert post(client, [DONE[0] | {"reviewed": 3}]).status_code == 422


def test_a_label_is_never_what_only_a_review_may_say(client: TestClient) -> None:
    for label in ("unidentified", "not_a_cell"):
        assert post(client, [cell(0, label)]).json()["code"] == "bad_labels"


def test_as_many_cells_as_a_request_may_have_can_be_reviewed(client: TestClient) -> None:
    cells = [{**cell(0, "monocyte", "lymphocyte"), "image_sha256": f"{i:064x}"} for i in range(10_000)]
    final = count(client, cells, reviewer="A. Smith")
    assert final["counts"]["lymphocyte"] == len(final["changes"]) == 10_000
    signature = {"reviewer": "B. Jones", "replaces": final["fingerprint"], "former": final}
    assert count(client, cells, **signature)["status"] == "corrected"
