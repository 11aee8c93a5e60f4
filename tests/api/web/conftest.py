"""A browser, and the page open in it on a service with the shipped network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from app.engine.bundle import CLASSES
from app.imaging import dicom_writer
from app.samples.smear import draw_smear
from tests.browsing import give, opened
from tests.fakes import zipped
from tests.fields import field_png
from tests.pictures import encode
from tests.running import PATIENCE_S, REAL, Running, running


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(REAL) as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is absent")
    expect.set_options(timeout=1000 * PATIENCE_S)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, service: Running) -> Iterator[Page]:
    with opened(browser, service.address) as page:
        expect(page.locator("#readiness")).to_have_text("ready")
        yield page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    for label in CLASSES:
        draw_smear(label, seed=1).save(folder / f"{label}.png")
    (folder / "cut.png").write_bytes((folder / "monocyte.png").read_bytes()[:5000])
    (folder / "text.png").write_text("not an image")
    (folder / "cell.dcm").write_bytes(dicom_writer.write(draw_smear("lymphocyte")))
    Image.new("RGB", (64, 48), (30, 200, 30)).save(folder / '=odd, "one".png')  # no cell: for review
    images = {
        f"set/{label}/{seed}.png": encode(draw_smear(label, seed=seed), "PNG")
        for label in CLASSES
        for seed in range(3)
    }
    images["set/monocyte/wrong.png"] = encode(draw_smear("lymphocyte", seed=9), "PNG")
    images["set/monocyte/cut.png"] = (folder / "cut.png").read_bytes()
    (folder / "labelled.zip").write_bytes(zipped(images))
    return folder


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    for seed in (1, 2):
        (folder / f"field-{seed}.png").write_bytes(field_png(seed=seed))
    return folder


@pytest.fixture
def eight(page: Page, fields: Path) -> Page:
    """The page with two fields of four cells each."""
    give(page, fields, "field-1.png", "field-2.png")
    expect(page.locator("#status")).to_have_text("2 images classified: 8 cells.")
    return page
