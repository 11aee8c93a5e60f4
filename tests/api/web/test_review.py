"""A person's review on the page: galleries, labels by key, drag and button, undo, blind mode, many cells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from app.engine.bundle import CLASSES
from tests.browsing import give, saved, text, tiles
from tests.fields import FOUR

HASH = "0" * 64
FRAME = {"left": 1, "top": 2, "width": 30, "height": 20, "nucleus": True}


def prediction(index: int, cell: int, probabilities: tuple[float, ...], **others: Any) -> dict[str, Any]:
    shares = dict(zip(CLASSES, probabilities, strict=True))
    label = max(shares, key=lambda name: shares[name])
    return {
        "index": index,
        "cell": cell,
        "filename": "x",
        "image_sha256": HASH,
        "label": label,
        "confidence": shares[label],
        "probabilities": shares,
        "ood_score": 1.0,
        "review": False,
        "review_reasons": [],
        "frame": FRAME,
    } | others


def answer(page: Page, predictions: list[dict[str, Any]]) -> None:
    """Have the service's answers to /predict replaced by these."""
    model = page.request.get(f"{page.url}model").json()
    reference = {name: model[name] for name in ("name", "version", "sha256")}

    def fulfil(route: Route) -> None:
        document = {"request_id": "x", "model": reference, "predictions": predictions}
        route.fulfill(json={**document, "empty": [], "errors": []})

    page.route("**/predict?*", fulfil)


def place_of(page: Page, name: str) -> str | None:
    section = tiles(page).filter(has_text=name).locator("xpath=ancestor::section[@data-place]")
    return section.get_attribute("data-place")


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.querySelector('.name')?.textContent ?? ''"))


def confident(page: Page, count: int = 6) -> list[str]:
    """Give a picture of cells of which the model is sure, all of them neutrophils; return their names."""
    answer(page, [prediction(0, number, (0.0, 0.0, 0.01, 0.99)) for number in range(count)])
    return [f"field-1.png · {number + 1}" for number in range(count)]


# --- every cell of a field --------------------------------------------------------------------------


def test_every_cell_of_a_field_is_a_cell_of_the_specimen(eight: Page) -> None:
    page = eight
    document = json.loads(saved(page, "#save-json"))
    assert [(one["index"], one["cell"]) for one in document["predictions"]] == [
        (index, cell) for index in (0, 1) for cell in range(4)
    ]
    assert document["differential"]["n"] == 8
    crops = tiles(page).evaluate_all("tiles => tiles.map((tile) => tile.querySelector('canvas').toDataURL())")
    assert len(set(crops)) == 8
    expect(page.locator("#counter-text")).to_have_text("8 of 100 leukocytes counted, 92 to go")
    page.get_by_label("Count to").fill("8")
    expect(page.locator("#counter-text")).to_have_text("8 of 8 leukocytes counted")


def test_the_frame_of_a_cell_is_drawn_on_its_field_which_can_be_enlarged(eight: Page) -> None:
    page = eight
    frame = json.loads(saved(page, "#save-json"))["predictions"][2]["frame"]
    tiles(page).filter(has_text="field-1.png · 3").click()
    page.keyboard.press("Enter")
    expect(page.locator("#viewer-title")).to_have_text("field-1.png, cell 3")
    expect(page.locator(".frame")).to_have_count(4)
    current = page.locator('.frame[aria-current="true"]')
    measured = current.evaluate(
        """frame => { const [own, plane] = [frame, frame.parentElement].map((x) => x.getBoundingClientRect());
        return [(own.left - plane.left) / plane.width, own.width / plane.width] }"""
    )
    assert measured == pytest.approx([frame["left"] / 640, frame["width"] / 640], abs=0.01)
    width = page.locator("#plane").evaluate("plane => plane.offsetWidth")
    page.keyboard.press("+")
    assert page.locator("#plane").evaluate("plane => plane.offsetWidth") == pytest.approx(1.5 * width, abs=2)
    page.keyboard.press("0")
    assert page.locator("#plane").evaluate("plane => plane.offsetWidth") == width
    page.locator(".frame").nth(0).click(position={"x": 5, "y": 5})
    expect(page.locator("#viewer-title")).to_have_text("field-1.png, cell 1")
    page.keyboard.press("2")
    expect(page.locator("#viewer-own")).to_have_text("lymphocyte")
    page.keyboard.press("Escape")
    assert place_of(page, "field-1.png · 1") == "lymphocyte"
    assert focused(page) == "field-1.png · 1"


def test_two_classes_that_are_close_are_flagged_though_the_model_is_sure_enough(
    page: Page, fields: Path
) -> None:
    answer(page, [prediction(0, 0, (0.44, 0.03, 0.51, 0.02)), prediction(0, 1, (0.30, 0.03, 0.65, 0.02))])
    give(page, fields, "field-1.png")
    expect(tiles(page, "to review")).to_have_count(1)
    expect(tiles(page, "to review")).to_have_attribute(
        "aria-label",
        "field-1.png, cell 1: monocyte 51 %; to review: two classes are close: monocyte 51 %, "
        "eosinophil 44 %",
    )
    expect(tiles(page, "monocyte")).to_have_count(1)


# --- labels -----------------------------------------------------------------------------------------


def test_a_key_gives_a_label_and_leads_to_the_next_cell(page: Page, fields: Path) -> None:
    names = confident(page)
    give(page, fields, "field-1.png")
    expect(tiles(page, "neutrophil")).to_have_count(6)
    tiles(page).first.click()
    for key, place in (("1", "eosinophil"), ("u", "unidentified"), ("x", "not_a_cell")):
        name = focused(page)
        page.keyboard.press(key)
        assert place_of(page, name) == place
    assert focused(page) == names[3]
    expect(page.locator("#done")).to_contain_text(
        "field-1.png, cell 3: not a cell (neutrophil by the model)."
    )
    expect(page.locator("#differential caption")).to_have_text("5 classified cells")
    rows = dict(
        zip(
            page.locator("#differential tbody th").all_inner_texts(),
            page.locator("#differential tbody td:nth-of-type(1)").all_inner_texts(),
            strict=True,
        )
    )
    assert rows == {
        "eosinophil": "1",
        "lymphocyte": "0",
        "monocyte": "0",
        "neutrophil": "3",
        "unidentified": "1",
    }
    expect(page.locator("#agreement")).to_contain_text("0 of 3 cells that you judged (0.0 %)")
    page.keyboard.press("c")
    expect(page.locator("#agreement")).to_contain_text("1 of 4 cells that you judged (25.0 %)")
    assert focused(page) == names[4]


def test_labels_are_undone_and_done_again(page: Page, fields: Path) -> None:
    confident(page)
    give(page, fields, "field-1.png")
    tiles(page).first.click()
    page.keyboard.press("1")
    page.keyboard.press("2")
    expect(tiles(page, "neutrophil")).to_have_count(4)
    page.keyboard.press("Control+z")
    expect(tiles(page, "lymphocyte")).to_have_count(0)
    expect(page.locator("#done")).to_have_text("Undone: field-1.png, cell 2. It is neutrophil.")
    page.locator("#undo").click()
    expect(tiles(page, "neutrophil")).to_have_count(6)
    assert page.locator("#undo").is_disabled()
    page.keyboard.press("Control+Shift+Z")
    expect(tiles(page, "eosinophil")).to_have_count(1)


def test_several_cells_are_selected_by_click_and_key_and_labelled_at_once(page: Page, fields: Path) -> None:
    names = confident(page)
    give(page, fields, "field-1.png")
    expect(tiles(page, "neutrophil")).to_have_count(6)
    tile = {name: tiles(page).filter(has_text=name) for name in names}
    tile[names[0]].click()
    tile[names[2]].click(modifiers=["Shift"])
    tile[names[4]].click(modifiers=["Control"])
    expect(page.locator("#chosen")).to_have_text("4 cells selected")
    page.keyboard.press("3")
    expect(tiles(page, "monocyte")).to_have_count(4)
    expect(page.locator("#done")).to_contain_text("4 cells: monocyte.")
    page.keyboard.press("Control+z")
    expect(tiles(page, "neutrophil")).to_have_count(6)

    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowRight")
    page.get_by_role("toolbar").get_by_role("button", name="eosinophil").click()
    expect(tiles(page, "eosinophil")).to_have_count(2)
    tiles(page, "neutrophil").first.focus()
    page.keyboard.press("Control+a")
    page.keyboard.press("2")
    expect(tiles(page, "lymphocyte")).to_have_count(4)


def test_cells_are_dragged_to_a_gallery_and_to_a_button(page: Page, fields: Path) -> None:
    names = confident(page)
    give(page, fields, "field-1.png")
    tiles(page).filter(has_text=names[0]).drag_to(page.locator('.gallery[data-place="monocyte"]'))
    expect(tiles(page, "monocyte")).to_have_count(1)
    tiles(page).filter(has_text=names[1]).drag_to(page.locator('#labels [value="not_a_cell"]'))
    expect(tiles(page, "not_a_cell")).to_have_count(1)
    expect(page.locator("#problems")).to_be_empty()


def test_a_finger_selects_several_cells(page: Page, fields: Path) -> None:
    names = confident(page)
    give(page, fields, "field-1.png")
    page.get_by_role("button", name="Select several").click()
    for name in names[:3]:
        tiles(page).filter(has_text=name).click()
    expect(page.locator("#chosen")).to_have_text("3 cells selected")


def test_a_gallery_is_one_tab_stop_and_says_what_it_is(eight: Page) -> None:
    page = eight
    stops = page.locator('.tile[tabindex="0"]').count()
    assert stops == page.locator(".tiles:visible").count()
    for box in page.get_by_role("listbox").all():
        assert box.evaluate(
            "list => document.getElementById(list.getAttribute('aria-labelledby')).textContent"
        )
    tiles(page).first.click()
    assert page.locator('.tile[aria-selected="true"]').count() == 1


def test_n_leads_through_the_cells_that_wait_for_a_person(page: Page, fields: Path) -> None:
    sure, unsure = (0.0, 0.0, 0.01, 0.99), (0.1, 0.1, 0.3, 0.5)
    reasons = {"review": True, "review_reasons": ["low_confidence"]}
    answer(
        page,
        [prediction(0, 0, sure), *(prediction(0, number, unsure, **reasons) for number in (1, 2))],
    )
    give(page, fields, "field-1.png")
    expect(page.locator("#waiting-text")).to_have_text("2 cells to review")
    colour = page.locator("#waiting-text").evaluate("node => getComputedStyle(node).color")
    for name in ("field-1.png · 2", "field-1.png · 3"):
        page.keyboard.press("n")
        assert focused(page) == name
    page.keyboard.press("4")
    page.keyboard.press("c")
    expect(page.locator("#waiting-text")).to_have_text("No cell waits for review")
    assert page.locator("#waiting-text").evaluate("node => getComputedStyle(node).color") != colour
    expect(page.locator("#done")).to_contain_text("None waits for review.")


def test_keys_are_listed_and_can_be_switched_off(page: Page, fields: Path) -> None:
    confident(page)
    give(page, fields, "field-1.png")
    tiles(page).first.click()
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("unidentified: counted in a row of its own")
    page.get_by_label("Single keys do this").uncheck()
    page.keyboard.press("Escape")
    tiles(page).first.click()
    page.keyboard.press("1")
    expect(tiles(page, "neutrophil")).to_have_count(6)


# --- blind mode -------------------------------------------------------------------------------------


def test_in_blind_mode_the_model_s_label_is_hidden_until_one_s_own_is_given(page: Page, fields: Path) -> None:
    confident(page)
    page.evaluate("document.getElementById('blind').click()")
    give(page, fields, "field-1.png")
    expect(tiles(page, "to label")).to_have_count(6)
    assert "neutrophil" not in text(page, "#galleries")
    assert not any("neutrophil" in (tile.get_attribute("aria-label") or "") for tile in tiles(page).all())
    expect(page.locator("#unlabelled")).to_be_visible()
    tiles(page).first.click()
    page.keyboard.press("c")
    expect(page.locator("#done")).to_have_text("In blind mode, give a label of your own.")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer-model")).to_have_text("hidden")
    page.keyboard.press("3")
    expect(page.locator("#viewer-model")).to_contain_text("neutrophil 99.0 %")
    page.keyboard.press("Escape")
    expect(page.locator("#differential caption")).to_have_text("1 classified cell")
    page.locator("#save-fhir").click()
    expect(page.locator(".problem")).to_contain_text("Not all cells are labelled.")


def test_blind_mode_forgets_the_count_of_the_cells_that_it_hides(page: Page, fields: Path) -> None:
    confident(page, 103)
    give(page, fields, "field-1.png")
    expect(page.locator("#counter-text")).to_have_text("103 of 100 leukocytes counted")
    page.locator("#blind").check()
    assert text(page, "#counter-text") == "0 of 100 leukocytes counted, 100 to go"
    assert text(page, "#waiting-text") == "103 cells to label"
    expect(page.locator("#unlabelled")).to_be_visible()
    assert text(page, "#counter-text") == "0 of 100 leukocytes counted, 100 to go"
    assert page.locator("#counter").evaluate("counter => counter.value") == 0
    tiles(page).first.click()
    page.keyboard.press("1")
    expect(page.locator("#counter-text")).to_have_text("1 of 100 leukocytes counted, 99 to go")
    page.locator("#blind").uncheck()
    expect(page.locator("#counter-text")).to_have_text("103 of 100 leukocytes counted")


def test_blind_mode_tells_flaws_of_the_picture_and_not_what_the_model_thinks(
    page: Page, fields: Path
) -> None:
    reasons = ["cut_off", "low_confidence", "out_of_distribution"]
    answer(page, [prediction(0, 0, (0.1, 0.1, 0.3, 0.5), review=True, review_reasons=reasons)])
    give(page, fields, "field-1.png")
    page.locator("#blind").check()
    tiles(page).first.locator(".look").click()
    shown = page.locator("#viewer-reasons li")
    assert shown.all_inner_texts() == ["⚑ the cell is cut off by the edge of the picture"]
    page.keyboard.press("4")
    expect(shown).to_have_count(3)


def test_the_advice_names_the_choice_as_the_page_does(page: Page) -> None:
    advice = page.evaluate("import('/page/words.js').then(({ advice }) => advice(['several_cells'])[0])")
    [name] = re.findall("“(.*)”", advice)
    expect(page.get_by_label(name)).to_be_checked()


def test_two_finds_that_may_be_one_cell_are_told_from_a_picture_of_several(page: Page) -> None:
    words = "import('/page/words.js').then(({{ inWords }}) => inWords('several_cells', '{}'))"
    assert page.evaluate(words.format("all")) == "another cell is so near that both may be one"
    assert page.evaluate(words.format("one")) == "there are several leukocytes in the picture"


# --- many cells -------------------------------------------------------------------------------------

CHANGED = """() => {
    window.changed = new Set();
    const note = ({ target, addedNodes }) =>
        [target, ...addedNodes].forEach((node) => window.changed.add(node));
    const all = { subtree: true, childList: true, characterData: true };
    new MutationObserver((records) => records.forEach(note)).observe(document.body, all);
}"""
TAB_STOPS = """() => [...document.querySelectorAll('a, button, input, select, summary, [tabindex]')]
    .filter((node) => node.tabIndex >= 0 && !node.disabled && node.checkVisibility()).length"""


def test_one_label_among_five_hundred_cells_changes_little_of_the_page(page: Page, fields: Path) -> None:
    shares = [tuple(float(number % 4 == place) for place in range(4)) for number in range(500)]
    answer(page, [prediction(0, number, share) for number, share in enumerate(shares)])
    give(page, fields, "field-1.png")
    expect(tiles(page)).to_have_count(500)
    expect(page.locator("#counted")).to_be_visible()
    assert page.locator('.tile[tabindex="0"]').count() == 4
    assert page.evaluate(TAB_STOPS) < 50
    style = tiles(page).first.evaluate("tile => getComputedStyle(tile).contentVisibility")
    assert style == "auto"
    page.evaluate(CHANGED)
    tiles(page, "monocyte").first.click()
    page.keyboard.press("1")
    expect(tiles(page, "eosinophil")).to_have_count(126)
    assert page.evaluate("window.changed.size") < 60
    expect(page.locator("#differential tbody td").first).to_have_text("126")


# --- examples ---------------------------------------------------------------------------------------


def test_a_newcomer_sees_all_of_it_in_one_click(page: Page) -> None:
    page.get_by_role("button", name="Show drawn examples").click()
    expect(page.locator("#status")).to_contain_text("13 images classified: ", timeout=60_000)
    assert tiles(page).count() >= 100
    for label in FOUR:
        assert tiles(page, label).count() > 0
    expect(page.locator(".empty-picture", has_text="dark.webp")).to_contain_text("too dark, too bright")
    expect(page.locator(".empty-picture", has_text="no-cell.webp")).to_contain_text("No cell was found")
    expect(page.locator(".flawed-picture", has_text="blurred.webp")).to_contain_text(
        "Focus and take it again"
    )
    expect(page.locator("#examples")).to_be_hidden()


# --- several models ---------------------------------------------------------------------------------


def test_the_address_of_the_page_chooses_one_of_several_models(page: Page, fields: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{page.url}?model=wbc-resnet18")
    give(page, fields, "field-1.png")
    expect(page.locator("#answered-by")).to_contain_text("Classified by wbc-resnet18 ")
    for route in ("model", "predict", "differential"):
        assert any(f"/{route}?" in url and "model=wbc-resnet18" in url for url in asked)
