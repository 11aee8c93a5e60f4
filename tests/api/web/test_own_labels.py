"""The page with bundles of five and of thirty-two labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.api.web.test_page import serious
from tests.browsing import PHONE, give, give_labelled, one_cell_each, opened, saved, tiles
from tests.fakes import zipped
from tests.own_bundles import cell, write_bundle
from tests.own_labels import FIVE, THIRTY_TWO
from tests.running import REAL, Running, running

BARS = 6  # of a cell

# Return the contrast of each bar's colour with the ground beside it (WCAG 2.2, relative luminance).
CONTRASTS = """
selector => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data]
      .map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll(selector)].map((row) => {
    const probe = document.createElement("i");
    probe.style.color = "var(--class)";
    row.append(probe);
    const [colour, ground] = [getComputedStyle(probe).color, "--sunk"].map((value) =>
      value === "--sunk" ? getComputedStyle(document.documentElement).getPropertyValue(value) : value);
    probe.remove();
    const [light, dark] = [luminance(colour), luminance(ground)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  });
}
"""


@pytest.fixture(scope="module", params=[FIVE, THIRTY_TWO], ids=["5 labels", "32 labels"])
def labels(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


@pytest.fixture(scope="module")
def folder(labels: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for label in labels:
        (folder / f"{label}.png").write_bytes(cell(label, labels))
    images = {f"set/{label.upper()}S/1.png": cell(label, labels) for label in labels}
    (folder / "labelled.zip").write_bytes(zipped(images))
    write_bundle(folder / "bundle", labels)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Running]:
    with running(REAL, "--bundle", str(folder / "bundle")) as service:
        yield service


def classified(page: Page, folder: Path, labels: tuple[str, ...]) -> None:
    one_cell_each(page)
    give(page, folder, *(f"{label}.png" for label in labels))
    expect(tiles(page)).to_have_count(len(labels))
    expect(page.locator("#progress")).to_be_hidden()


def test_cells_and_table_name_every_label(page: Page, folder: Path, labels: tuple[str, ...]) -> None:
    classified(page, folder, labels)
    for label in labels:
        tiles(page).filter(has=page.get_by_text(f"{label}.png", exact=True)).dblclick()
        bars = page.locator("#viewer-bars li span:first-child").all_text_contents()
        if labels == FIVE:
            assert bars == list(labels)
        else:
            assert (len(bars), bars[0], bars[-1]) == (BARS, label, "27 others")
        page.keyboard.press("Escape")
    assert page.locator("#differential tbody th").all_inner_texts() == list(labels)
    shares = dict(
        zip(labels, page.locator("#differential tbody tr td:nth-of-type(2)").all_inner_texts(), strict=True)
    )
    assert shares["basophil"].endswith(" %")
    assert shares["platelet"] == "–"
    ratio = shares["erythroblast" if labels == FIVE else "nrbc"]
    assert ratio.endswith(" per 100 WBC")
    expect(page.locator("#differential caption")).to_contain_text(f"{len(labels)} classified cells (")
    expect(page.locator("#warnings")).to_contain_text(f"knows {len(labels)} classes")


def test_files_have_every_label(page: Page, folder: Path, labels: tuple[str, ...]) -> None:
    classified(page, folder, labels)
    rows = list(csv.DictReader(io.StringIO(saved(page, "#save-csv").decode("utf-8-sig"))))
    assert [row["label"] for row in rows] == list(labels)
    assert all(float(row[row["label"]]) > 0.9 for row in rows)
    document = json.loads(saved(page, "#save-fhir"))
    observations = [one for one in document["entry"] if one["resource"]["resourceType"] == "Observation"]
    assert len(observations) == len(labels)
    assert saved(page, "#save-hl7").count(b"\rOBX|") == len(labels)


def test_folders_of_a_zip_are_its_labels(page: Page, folder: Path, labels: tuple[str, ...]) -> None:
    give_labelled(page, folder, "labelled.zip")
    expect(page.locator("#status")).to_contain_text("accuracy 100.00 %")
    assert page.locator("#confusion tbody th").all_inner_texts() == list(labels)
    assert page.locator("#by-class tbody th").all_inner_texts()[:-2] == list(labels)


@pytest.mark.parametrize(
    "options", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["light", "dark"]
)
def test_each_label_has_a_mark_of_its_own_that_can_be_seen(
    browser: Browser, service: Running, folder: Path, labels: tuple[str, ...], options: dict[str, Any]
) -> None:
    with opened(browser, service.address, **options) as page:
        expect(page.locator("#readiness")).to_have_text("ready")
        classified(page, folder, labels)
        rows = page.locator("#differential tbody tr")
        marks = rows.evaluate_all("rows => rows.map((row) => JSON.stringify(row.dataset))")
        assert len(set(marks)) == len(labels)
        contrasts = page.evaluate(CONTRASTS, "#differential tbody tr")
        assert len(contrasts) == len(labels)
        assert min(contrasts) >= 3


def test_axe_finds_nothing_serious(
    browser: Browser, service: Running, folder: Path, labels: tuple[str, ...]
) -> None:
    with opened(browser, service.address, bypass_csp=True) as page:
        expect(page.locator("#readiness")).to_have_text("ready")
        classified(page, folder, labels[:2])
        assert serious(page) == []


def test_nothing_is_wider_than_a_phone(
    browser: Browser, service: Running, folder: Path, labels: tuple[str, ...]
) -> None:
    with opened(browser, service.address, viewport=PHONE) as page:
        expect(page.locator("#readiness")).to_have_text("ready")
        classified(page, folder, labels)
        give_labelled(page, folder, "labelled.zip")
        expect(page.locator("#evaluation")).to_be_visible()
        expect(page.locator("#progress")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
