"""One specimen after the other on the page: what is kept, sent again, saved and cleared; nothing mixes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Dialog, Page, Route, expect

from tests.browsing import CELLS, give, give_labelled, names, saved, tiles

# Whether the page asks before it is left.
LEAVING = "!dispatchEvent(new Event('beforeunload', { cancelable: true }))"


def classified(page: Page, count: int) -> None:
    expect(page.locator("#status")).to_contain_text(f"{count} image{'s' * (count > 1)} classified")


def hold(page: Page, address: str) -> list[Route]:
    """Keep requests to an address until the test lets them through."""
    held: list[Route] = []
    page.route(address, lambda route: held.append(route))
    return held


def arrived(page: Page, held: list[Route], count: int) -> list[Route]:
    """Wait until so many requests are held."""
    while len(held) < count:
        page.wait_for_timeout(10)
    return held


def asked(page: Page) -> list[str]:
    """Refuse every dialog of the browser, and list them."""
    kinds: list[str] = []

    def refuse(dialog: Dialog) -> None:
        kinds.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", refuse)
    return kinds


def clear(page: Page) -> None:
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#clear").click()


# --- a service that fails ---------------------------------------------------------------------------


def test_what_was_not_answered_can_be_sent_again_and_what_was_is_kept(
    page: Page, folder: Path, tmp_path: Path
) -> None:
    given = [f"{number:02}.png" for number in range(40)]
    for name in given:
        shutil.copy(folder / "monocyte.png", tmp_path / name)
    answered = 0

    def die(route: Route) -> None:
        nonlocal answered
        answered += 1
        route.continue_() if answered <= 2 else route.abort()

    page.route("**/predict?*", die)
    page.route("**/differential", lambda route: route.abort())
    give(page, tmp_path, *given)
    again = page.get_by_role("button", name="again")
    expect(again).to_have_text("Send 24 images again", timeout=60_000)
    expect(page.locator(".failed-picture")).to_have_count(24)
    assert page.locator("#differential").is_hidden()
    expect(page.locator("#summary")).to_contain_text("classified, but not counted")

    page.unroute("**/predict?*")
    page.unroute("**/differential")
    again.click()
    expect(page.locator("#status")).to_have_text("24 images classified.", timeout=60_000)
    expect(again).to_be_hidden()
    assert names(page) == given
    expect(page.locator(".failed-picture")).to_have_count(0)
    assert json.loads(saved(page, "#save-json"))["differential"]["n"] == 40


def test_cells_that_could_only_not_be_counted_are_counted_later(page: Page, folder: Path) -> None:
    give(page, folder, "monocyte.png")
    classified(page, 1)
    page.route("**/differential", lambda route: route.abort())
    give(page, folder, "neutrophil.png")
    again = page.get_by_role("button", name="Count the cells again")
    expect(again).to_be_visible(timeout=60_000)
    assert page.locator("#differential").is_hidden()  # it lacks the second cell
    assert b"neutrophil.png" in saved(page, "#save-csv")
    page.unroute("**/differential")
    again.click()
    expect(page.locator("#differential caption")).to_contain_text("2 classified cells")
    expect(again).to_be_hidden()
    expect(page.locator("#problems")).to_be_empty()


def test_an_answer_that_breaks_off_is_asked_for_again(page: Page, folder: Path) -> None:
    page.route("**/predict?*", lambda route: route.fulfill(status=200, body='{"predictions": [{"ind'))
    give(page, folder, "monocyte.png")
    expect(page.locator(".problem")).to_contain_text("did not finish its answer")
    page.unroute("**/predict?*")
    page.get_by_role("button", name="Send 1 image again").click()
    classified(page, 1)


# --- one specimen after the other -------------------------------------------------------------------


def test_nothing_of_a_specimen_outlives_it(page: Page, folder: Path) -> None:
    give(page, folder, "monocyte.png")
    expect(page.locator("#status")).to_contain_text("classified")
    page.get_by_label("Specimen").fill("S-1")
    page.get_by_label("Accession").fill("A-1")
    page.get_by_label("Accession").blur()
    saved(page, "#save-fhir")
    page.locator("#clear").click()
    give(page, folder, "monocyte.png")
    expect(page.locator("#status")).to_contain_text("classified")
    assert page.get_by_label("Specimen").input_value() == page.get_by_label("Accession").input_value() == ""
    for name in (b"S-1", b"A-1"):
        assert name not in saved(page, "#save-fhir") + saved(page, "#save-hl7") + saved(page, "#save-json")


def test_work_for_a_cleared_specimen_does_not_reach_the_next(page: Page, folder: Path) -> None:
    give(page, folder, *CELLS[:2])
    classified(page, 2)
    held = hold(page, "**/predict?*")
    give(page, folder, "monocyte.png")
    arrived(page, held, 1)
    give(page, folder, "neutrophil.png")  # waits for the one before
    clear(page)
    expect(page.locator("#progress")).to_be_hidden()
    expect(tiles(page)).to_have_count(0)
    assert page.locator("#cells").is_hidden()
    page.unroute("**/predict?*")
    assert len(held) == 1

    give(page, folder, "eosinophil.png")
    classified(page, 1)
    assert names(page) == ["eosinophil.png"]
    assert json.loads(saved(page, "#save-json"))["differential"]["n"] == 1


def test_a_late_count_is_neither_that_of_the_next_specimen_nor_a_newer_one(page: Page, folder: Path) -> None:
    give(page, folder, *CELLS)
    classified(page, 4)
    held = hold(page, "**/differential")
    give(page, folder, "monocyte.png")
    arrived(page, held, 1)
    clear(page)
    held.pop().continue_()
    expect(page.locator("#progress")).to_be_hidden()
    assert page.locator("#summary").is_hidden()

    give(page, folder, "neutrophil.png")
    arrived(page, held, 1)
    expect(tiles(page)).to_have_count(1)
    assert page.locator("#differential").is_hidden()  # not the count of the one before
    page.get_by_label("Specimen").fill("S-2")
    page.get_by_label("Specimen").blur()
    first, second = arrived(page, held, 2)
    second.continue_()
    expect(page.locator("#differential caption")).to_contain_text("1 classified cell")
    first.fulfill(status=400, json={"title": "Late"})
    expect(page.locator("#progress")).to_be_hidden()
    assert page.locator("#differential").is_visible()
    expect(page.locator("#problems")).to_be_empty()


def test_a_specimen_of_which_nothing_was_classified_can_be_cleared(page: Page, folder: Path) -> None:
    give(page, folder, "cut.png", "text.png")
    expect(page.locator(".failed")).to_have_count(2)
    page.locator("#clear").click()
    expect(tiles(page)).to_have_count(0)
    give(page, folder, "monocyte.png")
    expect(page.locator(".tile:visible")).to_have_count(1)
    assert "could not be classified" not in saved(page, "#save-fhir").decode()


# --- what is saved ----------------------------------------------------------------------------------


def test_unsaved_results_are_not_lost_without_a_question(page: Page, folder: Path) -> None:
    questions = asked(page)
    give(page, folder, "monocyte.png")
    expect(page.locator("#status")).to_contain_text("classified")
    page.locator("#clear").click()
    expect(tiles(page)).to_have_count(1)
    page.close(run_before_unload=True)
    page.wait_for_timeout(500)
    assert questions == ["confirm", "beforeunload"]

    saved(page, "#save-csv")
    page.get_by_label("Specimen").fill("S-2")  # the file does not have it
    page.locator("#clear").click()
    saved(page, "#save-json")
    page.locator("#clear").click()
    expect(tiles(page)).to_have_count(0)
    assert questions == ["confirm", "beforeunload", "confirm"]


@pytest.mark.parametrize(
    ("button", "change"), [("#save-json", "cell"), ("#save-fhir", "identifier"), ("#save-hl7", "cell")]
)
def test_what_changes_while_a_file_is_made_is_not_saved(
    page: Page, folder: Path, button: str, change: str
) -> None:
    questions = asked(page)
    give(page, folder, "monocyte.png")
    classified(page, 1)
    held = hold(page, "**/differential")
    page.locator(button).click()
    arrived(page, held, 1)
    if change == "cell":
        give(page, folder, "neutrophil.png")
        expect(tiles(page)).to_have_count(2)
    else:
        page.get_by_label("Specimen").fill("S-2")
    with page.expect_download() as download:
        held[0].continue_()
    content = Path(download.value.path()).read_text()
    assert "S-2" not in content
    if button == "#save-json":
        document = json.loads(content)
        assert document["differential"]["n"] == len(document["predictions"]) == 1
    page.locator("#clear").click()
    assert questions == ["confirm"]

    for route in held[1:]:
        route.continue_()
    page.unroute("**/differential")
    expect(page.locator("#progress")).to_be_hidden()
    saved(page, button)
    page.locator("#clear").click()
    expect(tiles(page)).to_have_count(0)
    assert questions == ["confirm"]


def test_a_file_that_could_not_be_made_saves_nothing(page: Page, folder: Path) -> None:
    questions = asked(page)
    give(page, folder, "monocyte.png")
    classified(page, 1)
    page.route("**/differential", lambda route: route.fulfill(status=422, json={"title": "Refused"}))
    page.locator("#save-fhir").click()
    expect(page.locator(".problem")).to_contain_text("Refused")
    page.locator("#clear").click()
    assert questions == ["confirm"]


def test_an_evaluation_that_is_not_saved_is_not_left_without_a_question(page: Page, folder: Path) -> None:
    questions = asked(page)
    give_labelled(page, folder, "labelled.zip")
    expect(page.locator("#evaluation")).to_be_visible(timeout=60_000)
    page.close(run_before_unload=True)
    page.wait_for_timeout(500)
    assert questions == ["beforeunload"]
    saved(page, "#save-report-json")
    assert not page.evaluate(LEAVING)


# Each answer of `/predict` is of another model.
OTHER_MODELS = """() => {
    const real = window.fetch;
    let answers = 0;
    window.fetch = async (url, options) => {
        const response = await real(url, options);
        if (!String(url).includes("predict?")) return response;
        const document = await response.json();
        answers += 1;
        document.model = { name: "wbc", version: String(answers), sha256: String(answers).repeat(64) };
        return new Response(JSON.stringify(document), response);
    };
}"""


def test_a_report_names_the_model_that_made_its_predictions_and_never_two(page: Page, folder: Path) -> None:
    counted: list[str] = []

    def count(route: Route) -> None:
        counted.append(json.loads(route.request.post_data or "")["model"]["version"])
        route.continue_()

    page.evaluate(OTHER_MODELS)
    page.route("**/differential", count)
    give(page, folder, "monocyte.png")
    expect(page.locator("#counted")).to_be_visible()
    assert set(counted) == {"1"}
    give(page, folder, "neutrophil.png")
    expect(page.locator("#problems")).to_contain_text("different models")
    assert set(counted) == {"1"}
