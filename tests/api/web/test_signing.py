"""What stands against a signature, what is said before it, and what corrections say of earlier reports."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, Request, expect

from app.imaging import dicom_writer
from app.samples.smear import draw_smear
from tests.api.web.test_leaving import confirm_all, sign
from tests.api.web.test_review import answer, confident, prediction
from tests.api.web.test_specimens import arrived, hold
from tests.browsing import give, one_cell_each, saved, tiles

UNSURE = (0.1, 0.1, 0.3, 0.5)
REVIEW = {"review": True, "review_reasons": ["low_confidence"]}


@pytest.mark.parametrize("button", ["sign", "save-fhir", "save-hl7", "save-json", "save-counts", "save-csv"])
def test_nothing_is_signed_or_leaves_while_pictures_are_being_sent(
    eight: Page, fields: Path, button: str
) -> None:
    page = eight
    confirm_all(page)
    held = hold(page, "**/predict?*")
    give(page, fields, "field-1.png")
    arrived(page, held, 1)
    page.locator(f"#{button}").click()
    expect(page.locator(".problem")).to_contain_text("Pictures are still being sent.")
    expect(page.get_by_role("dialog")).to_have_count(0)
    held[0].continue_()
    expect(tiles(page)).to_have_count(12)
    expect(page.locator(".problem")).to_have_count(0)  # it is no longer true


def test_cells_that_arrive_while_a_name_is_asked_for_are_not_signed(eight: Page, fields: Path) -> None:
    page = eight
    confirm_all(page)
    page.locator("#sign").click()
    page.get_by_label("Your name").fill("A. Smith")
    confident(page, 3)
    give(page, fields, "field-1.png")
    expect(tiles(page)).to_have_count(11)
    expect(page.locator("#progress")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.locator(".problem")).to_contain_text("Nothing was signed")
    expect(page.locator("#report-status")).to_have_text("Preliminary: not signed")


def test_who_signs_is_told_which_pictures_are_not_in_the_count(
    page: Page, fields: Path, folder: Path
) -> None:
    confident(page)
    give(page, fields, "field-1.png")
    expect(tiles(page)).to_have_count(6)
    page.unroute("**/predict?*")
    give(page, folder, "cut.png")
    expect(page.locator(".failed-picture")).to_have_count(1)
    page.route("**/predict?*", lambda route: route.abort())
    give(page, fields, "field-2.png", "field-1.png")
    expect(page.get_by_role("button", name="Send 2 images again")).to_be_visible(timeout=60_000)
    page.locator("#sign").click()
    facts = page.locator("#sign-facts")
    expect(facts).to_contain_text("2 pictures got no answer and are not in the count")
    expect(facts).to_contain_text("1 picture could not be classified and is not in the count")


def test_who_signs_is_told_how_many_cells_cannot_be_shown_and_the_zip_what_it_lacks(
    page: Page, folder: Path, fields: Path, tmp_path: Path
) -> None:
    (tmp_path / "field.dcm").write_bytes(dicom_writer.write(draw_smear("lymphocyte")))
    Image.open(fields / "field-1.png").save(tmp_path / "field.tif")
    give(page, tmp_path, "field.dcm", "field.tif")
    expect(tiles(page)).to_have_count(5)
    confirm_all(page)
    page.locator("#sign").click()
    expect(page.locator("#sign-facts")).to_contain_text("5 cells cannot be shown")
    page.keyboard.press("Escape")
    page.locator("#save-labelled").click()
    expect(page.locator(".problem")).to_contain_text("5 labelled cells left out")
    expect(page.locator(".problem")).to_contain_text("field.dcm, field.tif")

    one_cell_each(page)
    give(page, folder, "monocyte.png")
    expect(tiles(page)).to_have_count(6)
    confirm_all(page)
    saved(page, "#save-labelled")
    expect(page.locator(".note")).to_contain_text("5 labelled cells left out")
    expect(page.locator("#status")).to_have_text("1 labelled cell saved, 5 left out.")


def sent_counts(page: Page) -> list[dict[str, Any]]:
    """List the bodies that are sent to /differential from now on."""
    bodies: list[dict[str, Any]] = []

    def note(request: Request) -> None:
        if request.url.endswith("/differential"):
            bodies.append(json.loads(request.post_data or ""))

    page.on("request", note)
    return bodies


def corrected_twice(page: Page) -> list[dict[str, Any]]:
    """Sign, and sign two corrections; return the signed reports."""
    reports: list[dict[str, Any]] = []
    for reviewer in ("A. Smith", "B. Jones", "C. Miller"):
        if reports:
            tiles(page, "neutrophil").first.click()
            page.keyboard.press("u")
        sign(page, reviewer)
        reports.append(json.loads(saved(page, "#save-json"))["differential"])
    return reports


def test_a_correction_holds_the_whole_chain_of_earlier_reports(page: Page, fields: Path) -> None:
    confident(page)
    give(page, fields, "field-1.png")
    expect(tiles(page)).to_have_count(6)
    expect(page.locator("#progress")).to_be_hidden()
    first, second, third = corrected_twice(page)
    bodies = sent_counts(page)
    rows = list(csv.DictReader(io.StringIO(saved(page, "#save-counts").decode("utf-8-sig"))))
    body = bodies[0]
    assert body["replaces"] == body["former"]["fingerprint"] == second["fingerprint"]
    assert body["former"]["replaces"] == body["former"]["former"]["fingerprint"] == first["fingerprint"]
    assert "former" not in body["former"]["former"]

    by_class = {row["class"]: row for row in rows}
    one = by_class["neutrophil"]
    assert (one["status"], one["reviewer"]) == ("corrected", "C. Miller")
    assert (one["fingerprint"], one["replaces"]) == (third["fingerprint"], second["fingerprint"])
    assert [one[f"former_{rank}_reviewer"] for rank in (1, 2)] == ["B. Jones", "A. Smith"]
    assert [one[f"former_{rank}_fingerprint"] for rank in (1, 2)] == [
        second["fingerprint"],
        first["fingerprint"],
    ]
    assert [one["count"], one["former_1_count"], one["former_2_count"]] == ["4", "5", "6"]
    assert by_class["unidentified"]["former_1_count"] == "1"
    assert one["former_2_signed_at"].startswith("20")

    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    sheet = page.locator("#sheet").evaluate("sheet => sheet.textContent")
    for report, reviewer in ((first, "A. Smith"), (second, "B. Jones")):
        assert report["fingerprint"] in sheet
        assert f"signed by {reviewer}, " in sheet
    assert third["fingerprint"] in sheet
    assert "neutrophil 6" in sheet
    assert "neutrophil 5, unidentified 1" in sheet


def test_a_chain_of_many_corrections_is_sent_as_far_as_the_service_reads_it(page: Page, fields: Path) -> None:
    confident(page, 12)
    give(page, fields, "field-1.png")
    expect(tiles(page)).to_have_count(12)
    expect(page.locator("#progress")).to_be_hidden()
    bodies = sent_counts(page)
    for count in range(11):
        if count:
            tiles(page, "neutrophil").first.click()
            page.keyboard.press("u")
        sign(page, f"Reviewer {count}")
    saved(page, "#save-fhir")
    former, depth = bodies[-1].get("former"), 0
    while former:
        former, depth = former.get("former"), depth + 1
    assert depth == 8


def test_the_print_names_a_few_of_many_cells_that_are_not_reviewed(page: Page, fields: Path) -> None:
    answer(page, [prediction(0, number, UNSURE, **REVIEW) for number in range(42)])
    give(page, fields, "field-1.png")
    expect(page.locator("#counted")).to_be_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    sheet = page.locator("#sheet").evaluate("sheet => sheet.textContent")
    assert "Not reviewed: 42 cells. field-1.png, cell 1; " in sheet
    assert "cell 10; and 32 others." in sheet
    assert "cell 11" not in sheet


def test_a_message_goes_when_it_is_no_longer_true(page: Page, fields: Path) -> None:
    answer(page, [prediction(0, number, UNSURE, **REVIEW) for number in range(2)])
    give(page, fields, "field-1.png")
    expect(page.locator("#counted")).to_be_visible()
    page.locator("#sign").click()
    expect(page.locator(".problem")).to_contain_text("2 cells wait for review.")
    page.keyboard.press("c")
    expect(page.locator(".problem")).to_have_count(1)
    page.keyboard.press("c")
    expect(page.locator(".problem")).to_have_count(0)
