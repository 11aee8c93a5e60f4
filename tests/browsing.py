"""The page in Chromium, as a laboratory user sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page

from app.engine.bundle import CLASSES

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}
CELLS = [f"{label}.png" for label in CLASSES]


@contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """Open the page; script errors, policy violations and requests to other hosts fail the test."""
    faults: list[str] = []
    chosen: dict[str, Any] = {"viewport": DESK, "accept_downloads": True} | options
    with browser.new_context(**chosen) as context:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request", lambda request: faults.append(request.url) if foreign(request.url, address) else None
        )
        page.on(
            "console",
            lambda message: faults.append(message.text) if "Content Security" in message.text else None,
        )
        page.goto(address)
        yield page
    assert faults == []


def foreign(url: str, address: str) -> bool:
    return not url.startswith((address, f"blob:{address}"))


def give(page: Page, folder: Path, *names: str) -> None:
    page.set_input_files("#files", [folder / name for name in names])


def give_labelled(page: Page, folder: Path, name: str, purpose: str = "A labelled set") -> None:
    """Give a ZIP that has class folders, and answer what it is."""
    give(page, folder, name)
    page.get_by_role("button", name=purpose).click()


def one_cell_each(page: Page) -> None:
    """Have the page take pictures given from now on as one cell each."""
    page.get_by_label("one cell a picture").check()


def tiles(page: Page, place: str | None = None) -> Locator:
    """Return the cells, or those of one gallery, such as `neutrophil` or `to review`."""
    return page.locator(".tile" if place is None else f'.gallery[data-place="{place}"] .tile')


def names(page: Page) -> list[str]:
    """Return the names of the cells' pictures, sorted."""
    return sorted(re.sub(r" · \d+$", "", text) for text in page.locator(".tile .name").all_text_contents())


def text(page: Page, selector: str) -> str:
    return page.locator(selector).inner_text()


def saved(page: Page, button: str) -> bytes:
    with page.expect_download() as download:
        page.locator(button).click()
    return Path(download.value.path()).read_bytes()
