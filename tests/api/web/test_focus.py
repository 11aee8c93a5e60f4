"""What has the focus on the page is in sight, and never falls to the start of the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.api.web.test_leaving import confirm_all, sign
from tests.api.web.test_review import answer, confident, focused, prediction
from tests.browsing import DESK, PHONE, give, opened, tiles
from tests.running import Running

SURE, UNSURE = (0.0, 0.0, 0.01, 0.99), (0.1, 0.1, 0.3, 0.5)
LAPTOP = {"width": 1366, "height": 768}

# Whether what has the focus can be seen, up to its corners.
IN_SIGHT = """() => {
  const node = document.activeElement,
    { left, top, right, bottom } = node.getBoundingClientRect();
  return [[left, top], [right, top], [left, bottom], [right, bottom]].every(([x, y]) => {
    const [across, down] = [x === left ? x + 6 : x - 6, y === top ? y + 6 : y - 6];
    return node.contains(document.elementFromPoint(across, down));
  });
}"""


def many(page: Page, folder: Path) -> None:
    """Give a picture of 240 cells, of which every third waits for review."""
    review = {"review": True, "review_reasons": ["low_confidence"]}
    answer(
        page,
        [
            prediction(0, number, SURE) if number % 3 else prediction(0, number, UNSURE, **review)
            for number in range(240)
        ],
    )
    give(page, folder, "field-1.png")
    expect(tiles(page)).to_have_count(240)
    expect(page.locator("#progress")).to_be_hidden()


@pytest.mark.parametrize("viewport", [DESK, LAPTOP, PHONE], ids=["desktop", "laptop", "phone"])
def test_no_bar_covers_the_cell_that_has_the_focus(
    browser: Browser, service: Running, fields: Path, viewport: dict[str, int]
) -> None:
    with opened(browser, service.address, viewport=viewport) as page:
        expect(page.locator("#readiness")).to_have_text("ready")
        many(page, fields)
        seen = set()
        for key, times in {"n": 30, "ArrowDown": 12, "Tab": 1, "ArrowUp": 12}.items():
            for _ in range(times):
                page.keyboard.press(key)
                if not page.evaluate("document.activeElement.matches('.tile')"):
                    page.keyboard.press("n")
                assert page.evaluate(IN_SIGHT), (key, focused(page))
                seen.add(focused(page))
        assert len(seen) > 35


def test_what_gets_the_focus_in_a_bar_does_not_scroll_the_page(page: Page, fields: Path) -> None:
    many(page, fields)
    page.keyboard.press("n")
    page.locator("#undo").evaluate("button => button.previousElementSibling.focus()")
    before = page.evaluate("scrollY")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.closest('#bench') !== null")
    assert page.evaluate("scrollY") == before


def test_a_cell_that_a_filter_hides_is_not_selected(page: Page, fields: Path) -> None:
    names = confident(page)
    give(page, fields, "field-1.png")
    expect(tiles(page, "neutrophil")).to_have_count(6)
    tiles(page).first.click()
    page.keyboard.press("Control+a")
    expect(page.locator("#chosen")).to_have_text("6 cells selected")
    page.get_by_role("radio", name="changed").check()
    expect(page.locator("#chosen")).to_be_empty()
    page.get_by_role("toolbar").get_by_role("button", name="eosinophil").click()
    expect(page.locator("#done")).to_have_text("Select a cell first.")
    page.get_by_role("radio", name="all").check()
    expect(tiles(page, "neutrophil")).to_have_count(6)

    tiles(page).filter(has_text=names[0]).click()
    tiles(page).filter(has_text=names[1]).click(modifiers=["Control"])
    page.keyboard.press("1")
    page.get_by_role("radio", name="changed").check()
    page.keyboard.press("Control+z")  # what it changes is shown again
    for name in names[:2]:
        expect(tiles(page).filter(has_text=name)).to_be_visible()
    expect(page.locator("#chosen")).to_have_text("2 cells selected")


def test_confirming_a_gallery_by_key_leads_to_the_next_cell_then_to_the_signature(
    page: Page, fields: Path
) -> None:
    shares = [(0.0, 0.99, 0.01, 0.0), SURE, SURE]
    answer(page, [prediction(0, number, share) for number, share in enumerate(shares)])
    give(page, fields, "field-1.png")
    expect(tiles(page)).to_have_count(3)
    for place, name in (("lymphocyte", "field-1.png · 2"), ("neutrophil", "")):
        page.locator(f'.gallery[data-place="{place}"] button').focus()
        page.keyboard.press("Enter")
        assert focused(page) == name
    assert page.evaluate("document.activeElement.id") == "report-status"


def test_the_focus_stays_with_the_signature_once_it_is_given(eight: Page) -> None:
    page = eight
    confirm_all(page)
    page.locator("#sign").focus()
    sign(page)
    assert page.evaluate("document.activeElement.id") == "report-status"


def test_the_field_is_one_click_or_one_key_away(page: Page, fields: Path) -> None:
    confident(page)
    give(page, fields, "field-1.png")
    tile = tiles(page).nth(2)
    tile.locator(".look").click()
    expect(page.locator("#viewer-title")).to_have_text("field-1.png, cell 3")
    expect(page.locator('.frame[aria-current="true"]')).to_have_count(1)
    page.keyboard.press("Escape")
    assert focused(page) == "field-1.png · 3"
    page.keyboard.press("Enter")
    expect(page.locator("#viewer-title")).to_have_text("field-1.png, cell 3")


def test_the_palette_of_a_phone_shows_every_button(browser: Browser, service: Running, fields: Path) -> None:
    with opened(browser, service.address, viewport=PHONE, has_touch=True) as page:
        expect(page.locator("#readiness")).to_have_text("ready")
        many(page, fields)
        buttons = page.locator("#palette button")
        assert buttons.count() == 12
        for button in buttons.all():
            box = button.bounding_box()
            assert box is not None
            assert 0 <= box["x"] <= box["x"] + box["width"] <= PHONE["width"]
            assert box["height"] >= 24  # WCAG 2.2, 2.5.8
        palette = page.locator("#bench").bounding_box()
        assert palette is not None
        assert palette["height"] < PHONE["height"] / 3
