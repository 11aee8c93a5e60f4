"""Sessions that this browser keeps: nothing of them is lost without a word, and what is deleted stays so."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, Route, expect

from tests.api.web.test_leaving import download
from tests.api.web.test_review import place_of
from tests.browsing import give, tiles
from tests.running import Running


def keep(page: Page, cells: int) -> None:
    page.locator("#keep").check()
    expect(page.locator("#kept-text")).to_contain_text(f"A session of {cells} cells is kept")


def reopen(page: Page) -> None:
    page.reload()
    page.get_by_role("button", name="Open it").click()
    expect(page.locator("#status")).to_contain_text("opened")


def test_pictures_that_were_still_on_their_way_are_sent_after_a_reload(
    page: Page, folder: Path, tmp_path: Path
) -> None:
    given = [f"{number:02}.png" for number in range(24)]
    for name in given:
        shutil.copy(folder / "monocyte.png", tmp_path / name)
    answered = 0

    def stall(route: Route) -> None:
        nonlocal answered
        answered += 1
        if answered == 1:
            route.continue_()

    page.route("**/predict?*", stall)
    page.locator("#keep").check()
    give(page, tmp_path, *given)
    expect(page.locator("#kept-text")).to_contain_text("A session of 8 cells is kept")
    page.unroute("**/predict?*")
    reopen(page)
    expect(page.locator(".failed-picture")).to_have_count(16)
    expect(page.locator(".failed-picture").first).to_contain_text("The upload stopped before this image.")
    page.get_by_role("button", name="Send 16 images again").click()
    expect(tiles(page)).to_have_count(24)
    expect(page.locator(".failed-picture")).to_have_count(0)


def test_a_label_is_kept_though_the_page_is_left_at_once(eight: Page) -> None:
    page = eight
    keep(page, 8)
    for key, place in (("u", "unidentified"), ("x", "not_a_cell")):
        tiles(page).filter(has_text="field-1.png · 2").click()
        page.keyboard.press(key)
        reopen(page)
        assert place_of(page, "field-1.png · 2") == place


def test_a_session_that_is_deleted_is_not_kept_again_until_the_user_wants_it(eight: Page) -> None:
    page = eight
    keep(page, 8)
    expect(page.locator("#keeping")).to_contain_text("deletes it when it is next open")
    page.get_by_role("button", name="Delete it from this browser").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#kept")).to_be_hidden()
    expect(page.locator("#keep")).not_to_be_checked()
    assert page.evaluate("document.activeElement.id") == "keep"
    tiles(page).first.click()
    page.keyboard.press("u")
    page.reload()
    expect(page.locator("#readiness")).to_have_text("ready")
    expect(page.locator("#keep")).not_to_be_checked()
    expect(page.locator("#kept")).to_be_hidden()


def without(label: str, service: Running) -> Callable[[Route], None]:
    """Return what answers /model as if the model lacked a label."""
    with service.client() as client:
        model = client.get("/model").json()
    labels = [name for name in model["labels"] if name != label]
    return lambda route: route.fulfill(json=model | {"name": "other", "version": "9", "labels": labels})


def test_a_session_with_labels_that_the_model_lacks_is_refused_in_words(
    eight: Page, service: Running, tmp_path: Path
) -> None:
    page = eight
    path = download(page, "#save-session", tmp_path)
    cells = [
        cell
        for one in json.loads(zipfile.ZipFile(path).read("session.json"))["pictures"]
        for cell in one["cells"]
    ]
    label = cells[0]["prediction"]["label"]
    page.route("**/model", without(label, service))
    page.reload()
    expect(page.locator("#model-name")).to_have_text("other")
    give(page, tmp_path, path.name)
    problem = page.locator(".problem")
    expect(problem).to_contain_text("The session is of another model.")
    expect(problem).to_contain_text(f"The model that answers, other 9, does not know {label}.")
    expect(tiles(page)).to_have_count(0)
