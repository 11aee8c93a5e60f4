"""Swagger UI in Chromium: each route works as it opens, also below a path prefix."""

from __future__ import annotations

from playwright.sync_api import Browser, FilePayload, Locator, Page, Route

from tests.fake_classifier import png
from tests.fakes import GREYS, zipped
from tests.running import Running

IMAGE: FilePayload = {"name": "cell.png", "mimeType": "image/png", "buffer": png(GREYS[0])}
CELLS = zipped({"eosinophil/a.png": IMAGE["buffer"]})
ARCHIVE: FilePayload = {"name": "a.zip", "mimeType": "application/zip", "buffer": CELLS}


def opened(page: Page, address: str) -> list[Locator]:
    page.goto(f"{address}/docs")
    page.locator(".opblock").first.wait_for()
    return page.locator(".opblock").all()


def unfold(operation: Locator) -> None:
    """Open an operation and wait for its fields: its button is there before them."""
    operation.locator(".opblock-summary-control").click()
    operation.locator(".responses-inner").wait_for()


def tried(page: Page, operation: Locator, address: str) -> tuple[str, int]:
    """Execute an operation as it opens, with a file where one is required; return its path and status."""
    path = operation.locator(".opblock-summary-path").inner_text().replace("\u200b", "")
    unfold(operation)
    files = operation.locator("input[type=file]")
    if files.count():
        files.first.set_input_files([ARCHIVE if path == "/evaluate" else IMAGE])
    with page.expect_response(lambda response: response.url.startswith(address)) as answered:
        operation.locator("button.execute").click()
    operation.locator(".opblock-summary-control").click()
    return path, answered.value.status


def test_every_route_works_as_it_opens(browser: Browser, service: Running) -> None:
    with browser.new_page() as page:
        statuses = dict(tried(page, each, service.address) for each in opened(page, service.address))
    assert statuses == dict.fromkeys(statuses, 200)
    assert len(statuses) == 9


def test_choices_are_lists_and_optional_texts_are_empty(browser: Browser, service: Running) -> None:
    with browser.new_page() as page:
        for operation in opened(page, service.address)[:3]:
            unfold(operation)
        assert {field.input_value() for field in page.locator("input[type=text]").all()} == {""}
        for name, choices in {"explain": ["", "cam"], "bundle": ["", "collection", "transaction"]}.items():
            options = page.locator(f"tr[data-param-name={name}] option").all()
            assert [option.get_attribute("value") for option in options] == choices


def test_requests_go_below_the_prefix_of_a_proxy(browser: Browser, service: Running) -> None:
    def strip(route: Route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/leuko/", "/", 1)))

    with browser.new_page() as page:
        page.route("**/leuko/**", strip)
        operations = opened(page, f"{service.address}/leuko")
        assert tried(page, operations[4], f"{service.address}/leuko/model") == ("/model", 200)
        page.unroute_all(behavior="ignoreErrors")  # of requests that the page still makes
