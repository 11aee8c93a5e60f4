"""HL7 v2.5.1 reports, validated with hl7apy."""

from __future__ import annotations

from typing import Any

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Unusable
from app.reports import hl7
from app.wire.specimen import Differential
from tests.own_labels import FIVE, THIRTY_TWO
from tests.reports.examples import (
    AGAIN,
    AT,
    CORRECTED,
    FINAL,
    PRELIMINARY,
    THRICE,
    UNFINISHED,
    count,
    made,
    reviewed,
)

identifiers = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=128)


def written(differential: Differential | None = None, method: str = "none") -> str:
    return hl7.message(differential or made(), method=method, at=AT)


def parsed(text: str) -> Any:
    return parse_message(text, validation_level=VALIDATION_LEVEL.STRICT)


def segments(text: str, name: str) -> list[list[str]]:
    """Return the fields of each segment by number; MSH-1 is the separator itself."""
    return [line.split("|") for line in text.split("\r") if line.startswith(name)]


@pytest.mark.parametrize(
    "differential", [made(), made(None, None), made("S", None), made(None, "A"), made(labels="e" * 300)]
)
def test_hl7apy_accepts_the_message(differential: Differential) -> None:
    message = parsed(written(differential))
    assert message.validate()
    assert message.msh.msh_9.to_er7() == "ORU^R01^ORU_R01"
    order = message.oru_r01_patient_result.oru_r01_order_observation
    assert len(order.oru_r01_observation) == 4
    assert bool(order.oru_r01_specimen) == (differential.specimen is not None)


def test_results_are_preliminary_percentages_with_method_and_equipment() -> None:
    results = segments(written(), "OBX")
    assert results[0][3] == "26450-7^Eosinophils/100 leukocytes in Blood^LN"
    assert [(result[2], result[5], result[6], result[11]) for result in results] == [
        ("NM", value, "%^percent^UCUM", "P") for value in ("50.00", "25.00", "0.00", "25.00")
    ]
    assert all(
        result[17].endswith("neural network") and result[18] == f"fake 1.2^Leuko^{'f' * 64}^L"
        for result in results
    )
    ((order),) = segments(written(), "OBR")
    assert (order[3], order[4], order[7], order[22], order[25]) == (
        "A-1",
        "69738-3^Differential panel - Blood^LN",
        "20260301123005+0000",
        "20260301123005+0000",
        "P",
    )


def test_notes_have_the_ai_notice_and_the_intervals() -> None:
    notes = [note[3] for note in segments(written(), "NTE")]
    assert "artificial intelligence" in notes[0]
    assert any("2 of 4 classified cells; 95 % interval 15.0 to 85.0 (Wilson)" in note for note in notes)


@pytest.mark.parametrize("method", ["manual", "automated"])
def test_codes_are_those_of_the_method(method: str) -> None:
    codes = {"manual": "23761-0", "automated": "770-8"}
    assert segments(written(method=method), "OBX")[3][3].startswith(codes[method] + "^")


def test_delimiters_in_identifiers_are_escaped() -> None:
    differential = made("S|1^2&3~4\\5", "A|1")
    text = written(differential)
    assert segments(text, "SPM")[0][2] == r"S\F\1\S\2\T\3\R\4\E\5"
    assert segments(text, "OBR")[0][3] == r"A\F\1"
    assert parsed(text).validate()


def test_line_ends_are_escaped_too() -> None:
    assert hl7.escape("a\r\nb") == r"a\X0D\\X0A\b"


@given(identifiers, identifiers)
def test_any_identifier_comes_back_whole(specimen: str, accession: str) -> None:
    text = written(made(specimen, accession))
    assert len(text.split("\r")) == len(written().split("\r"))
    assert unescaped(segments(text, "SPM")[0][2]) == specimen
    assert unescaped(segments(text, "OBR")[0][3]) == accession


def unescaped(text: str) -> str:
    """Return the text without escape sequences (HL7 v2.5.1, section 2.7)."""
    plain, parts = [], text.split("\\")
    for index, part in enumerate(parts):
        plain.append({"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\"}[part] if index % 2 else part)
    return "".join(plain)


def test_the_same_cells_reported_again_are_the_same_message() -> None:
    assert written(made()) == written(made(request_id="another"))
    assert segments(written(made("S-2")), "MSH")[0][9] != segments(written(), "MSH")[0][9]
    assert len(segments(written(), "MSH")[0][9]) == 20


@pytest.mark.parametrize("name", ["subject", "effectiveDateTime", "performer"])
def test_what_only_fhir_can_hold_is_refused(name: str) -> None:
    value = {"subject": "Patient/1", "effectiveDateTime": "2026", "performer": "Organization/1"}[name]
    with pytest.raises(Unusable, match="for FHIR"):
        written(made(**{name: value}))


@pytest.mark.parametrize("labels", [FIVE, THIRTY_TWO], ids=["5 labels", "32 labels"])
@pytest.mark.parametrize("method", ["none", "manual", "automated"])
def test_every_label_of_any_bundle_is_a_result(labels: tuple[str, ...], method: str) -> None:
    text = written(count(labels, [*labels, labels[0]]), method)
    assert parsed(text).validate()
    results = segments(text, "OBX")
    assert len({result[3] for result in results}) == len(results) == len(labels)
    assert {result[3].split("^")[2] for result in results} == {"LN", hl7.LOCAL}
    assert {result[6] for result in results} == {
        "%^percent^UCUM",
        "/100{WBCs}^per 100 leukocytes^UCUM",
        "{cells}^cells^UCUM",
    }


def test_a_label_without_a_code_is_text_in_a_local_system() -> None:
    results = segments(written(count(FIVE, ["platelet", "basophil", "platelet"])), "OBX")
    assert results[1][3] == "30180-4^Basophils/100 leukocytes in Blood^LN"
    assert results[4][3] == "platelet^Platelets among the classified cells^99LEU"
    assert (results[1][5], results[4][5]) == ("100.00", "2")


def test_a_result_that_cannot_be_obtained_is_marked_and_empty() -> None:
    text = written(count(FIVE, ["platelet", "erythroblast"]))
    assert parsed(text).validate()
    assert [(result[5], result[11]) for result in segments(text, "OBX")] == [("", "X")] * 4 + [("1", "P")]


def test_the_bundles_codes_come_first() -> None:
    own = {"platelet": {"none": "30376-8"}}
    text = hl7.message(count(FIVE, ["platelet"]), method="manual", at=AT, own=own)
    assert segments(text, "OBX")[4][3].startswith("30376-8^Platelets")


# Reviews


@pytest.mark.parametrize(
    ("differential", "status"),
    [(PRELIMINARY, "P"), (UNFINISHED, "P"), (FINAL, "F"), (CORRECTED, "C")],
    ids=["preliminary", "unfinished", "final", "corrected"],
)
def test_a_report_of_each_status_is_valid_and_names_model_and_reviewer(
    differential: Differential, status: str
) -> None:
    text = written(differential)
    message = parsed(text)
    assert message.validate()
    person = differential.reviewer
    ((order),) = segments(text, "OBR")
    assert order[25] == status
    assert order[32:] == ([f"&{person}"] if person else [])
    results = segments(text, "OBX")
    assert len(results) == len(differential.counts)
    for result in results:
        assert result[11] == status
        assert result[16] == (f"^{person}" if person else "")
        assert result[18].startswith("fake 1.2^Leuko^")
        assert result[17].endswith("reviewed by a person") is (person is not None)
    if person:
        obr = message.oru_r01_patient_result.oru_r01_order_observation.obr
        assert obr.obr_32.obr_32_1.cnn_2.to_er7() == person
    assert "Doe" not in text


def results_with_notes(text: str) -> dict[str, list[str]]:
    """Return the value and the notes of each result, by the name of its class."""
    found: dict[str, list[str]] = {}
    for line in text.split("\r"):
        fields = line.split("|")
        if fields[0] == "OBX":
            name = fields[3].split("^")[1].split("/")[0]
            found[name] = [fields[5]]
        elif fields[0] == "NTE" and found:
            found[name].append(fields[3])
    return found


def test_values_are_those_of_the_reviewed_labels_with_earlier_ones_in_notes() -> None:
    final, corrected = results_with_notes(written(FINAL)), results_with_notes(written(CORRECTED))
    assert final["Monocytes"][0] == "33.33"
    assert "By the model alone: 1 of 6 cells." in final["Monocytes"]
    assert final["Unidentified cells"][0] == "33.33"
    assert corrected["Unidentified cells"][0] == "0.00"
    assert "In the replaced report: 33.33 %, 1 of 3." in corrected["Unidentified cells"]
    assert "By the model alone: 1 of 6 cells." in corrected["Monocytes"]


def test_notes_of_the_order_have_the_changed_cells_and_the_replaced_report() -> None:
    text = written(CORRECTED)
    notes = [line.split("|")[3] for line in text[: text.index("\rOBX")].split("\r") if line.startswith("NTE")]
    assert f"This report replaces the one with the fingerprint {FINAL.fingerprint}." in notes
    assert f"Fingerprint of this report: {CORRECTED.fingerprint}." in notes
    assert any(note.startswith("The replaced report was final, signed by A. Smith: ") for note in notes)
    image = f"SHA-256 of the image {1:064x}"
    assert f"In the replaced report, position 1, {image}: monocyte; by the model lymphocyte." in notes
    assert f"position 2, SHA-256 of the image {2:064x}: neutrophil; by the model monocyte." in notes


def test_a_report_corrected_three_times_holds_all_earlier_values() -> None:
    text = written(THRICE)
    assert parsed(text).validate()
    assert results_with_notes(text)["Monocytes"][-3:] == [
        "In the replaced report: 50.00 %, 2 of 4.",
        "In the second report before this one: 25.00 %, 1 of 4.",
        "In the third report before this one: 33.33 %, 1 of 3.",
    ]
    notes = text[: text.index("\rOBX")]
    for report in (FINAL, CORRECTED, AGAIN):
        assert f"the fingerprint {report.fingerprint}." in notes
        assert f", signed by {report.reviewer}: " in notes
    image = f"SHA-256 of the image {1:064x}"
    assert f"In the third report before this one, position 1, {image}: monocyte; by the model" in notes


def test_each_status_is_another_message_of_the_same_order() -> None:
    texts = [*map(written, (PRELIMINARY, FINAL, CORRECTED))]
    assert len({segments(text, "MSH")[0][9] for text in texts}) == 3
    assert {segments(text, "OBR")[0][3] for text in texts} == {"A-1"}


def test_delimiters_in_the_reviewer_s_name_are_escaped() -> None:
    text = written(reviewed(*["monocyte"] * 3, reviewer="A|B^C&D~E\\ Müller"))
    assert parsed(text).validate()
    escaped = "A\\F\\B\\S\\C\\T\\D\\R\\E\\E\\ Müller"
    assert segments(text, "OBR")[0][32] == f"&{escaped}"
    assert segments(text, "OBX")[0][16] == f"^{escaped}"
