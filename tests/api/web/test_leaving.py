"""What leaves the page: signatures and corrections, files, a print, sessions, labelled cells."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fhir.resources.R4B.bundle import Bundle as FhirBundle
from playwright.sync_api import Page, expect

from app.archives.images import open_labelled
from app.archives.labelled_archive import ArchiveLimits
from app.engine.bundle import CLASSES, Bundle, load_bundle
from tests.api.web.test_review import answer, prediction
from tests.browsing import give, saved, tiles
from tests.pictures import real
from tests.running import ROOT


@pytest.fixture
def eight(eight: Page) -> Page:
    """The page with two fields of four cells each, all confirmed, as specimen S/1 and accession A-1."""
    page = eight
    page.get_by_label("Specimen ID").fill("S/1")
    page.get_by_label("Accession").fill("A-1")
    page.get_by_label("Accession").blur()
    confirm_all(page)
    return page


def confirm_all(page: Page) -> None:
    while tiles(page, "to review").count():
        tiles(page, "to review").first.click()
        page.keyboard.press("c")
    buttons = page.get_by_role("button", name="Confirm all")
    while buttons.count():  # one that is hidden has no role
        buttons.first.click()
    expect(page.locator("#waiting-text")).to_have_text("No cell waits for review")


def sign(page: Page, reviewer: str = "A. Smith") -> None:
    page.locator("#sign").click()
    page.get_by_label("Your name").fill(reviewer)
    page.keyboard.press("Enter")
    expect(page.locator("#report-status")).to_contain_text(f"signed by {reviewer}")


def report_of(page: Page) -> tuple[str, str]:
    """Return the status of the FHIR report and its text."""
    content = saved(page, "#save-fhir").decode()
    FhirBundle.model_validate_json(content)
    resources = [entry["resource"] for entry in json.loads(content)["entry"]]
    [status] = [one["status"] for one in resources if one["resourceType"] == "DiagnosticReport"]
    return status, content


def download(page: Page, button: str, folder: Path) -> Path:
    with page.expect_download() as started:
        page.locator(button).click()
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


# --- signatures -------------------------------------------------------------------------------------


def test_cells_that_wait_for_review_prevent_a_signature(page: Page, fields: Path) -> None:
    unsure = prediction(0, 1, (0.1, 0.1, 0.3, 0.5), review=True, review_reasons=["low_confidence"])
    answer(page, [prediction(0, 0, (0.0, 0.0, 0.01, 0.99)), unsure])
    give(page, fields, "field-1.png")
    expect(page.locator("#counted")).to_be_visible()
    page.locator("#sign").click()
    expect(page.locator(".problem")).to_contain_text("1 cell waits for review. Give each a label, then sign.")
    assert page.evaluate("document.activeElement.closest('.gallery').dataset.place") == "to review"


def test_a_signed_report_is_final_and_a_change_makes_a_correction_of_it(eight: Page) -> None:
    page = eight
    assert report_of(page)[0] == "preliminary"
    sign(page)
    status, content = report_of(page)
    assert (status, "A. Smith" in content) == ("final", True)
    assert "|F|" in saved(page, "#save-hl7").decode()
    final = json.loads(saved(page, "#save-json"))["differential"]
    assert (final["status"], final["reviewer"]) == ("final", "A. Smith")
    assert page.locator("#sign").is_disabled()

    tiles(page).first.click()
    page.keyboard.press("u")
    expect(page.locator("#report-status")).to_contain_text("Changed after A. Smith signed it")
    page.locator("#save-fhir").click()
    expect(page.locator(".problem")).to_contain_text("Sign the correction first")
    sign(page, "B. Jones")
    assert report_of(page)[0] == "corrected"
    corrected = json.loads(saved(page, "#save-json"))["differential"]
    assert corrected["replaces"] == final["fingerprint"] != corrected["fingerprint"]
    assert corrected["former"]["counts"] == final["counts"] != corrected["counts"]
    assert corrected["counts"]["unidentified"] == 1

    page.keyboard.press("Escape")
    page.locator("#undo").click()
    expect(page.locator("#report-status")).to_contain_text("Changed after B. Jones signed it")


# --- files ------------------------------------------------------------------------------------------


def test_file_names_and_tables_say_what_they_are_of(eight: Page, tmp_path: Path) -> None:
    page = eight
    tiles(page).first.click()
    page.keyboard.press("x")
    sign(page)
    path = download(page, "#save-counts", tmp_path)
    assert path.name == "leuko-S_1-A-1-counts.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"))))
    assert {(row["specimen"], row["accession"], row["status"], row["reviewer"]) for row in rows} == {
        ("S/1", "A-1", "final", "A. Smith")
    }
    assert {row["model"] for row in rows} == {"wbc-resnet18"}
    assert sum(int(row["count"]) for row in rows) == 7 == int(rows[0]["cells"])
    assert [row["class"] for row in rows][:4] == list(CLASSES)
    cells = download(page, "#save-csv", tmp_path)
    assert cells.name == "leuko-S_1-A-1-cells.csv"
    reviewed = [row["reviewed"] for row in csv.DictReader(io.StringIO(cells.read_text("utf-8-sig")))]
    assert len(reviewed) == 8
    assert reviewed.count("not_a_cell") == 1
    for button, name in {
        "#save-fhir": "leuko-S_1-A-1-report.fhir.json",
        "#save-hl7": "leuko-S_1-A-1-report.hl7",
        "#save-json": "leuko-S_1-A-1-report.json",
        "#save-session": "leuko-S_1-A-1-session.zip",
        "#save-labelled": "leuko-S_1-A-1-labelled.zip",
    }.items():
        assert download(page, button, tmp_path).name == name


def test_the_labelled_cells_are_what_verify_and_adapt_read(eight: Page, tmp_path: Path) -> None:
    page = eight
    tiles(page).first.click()
    page.keyboard.press("x")
    page.keyboard.press("u")
    path = download(page, "#save-labelled", tmp_path)
    bundle = load_bundle(ROOT / "models/wbc-resnet18")
    with open_labelled(path, bundle.labels, ArchiveLimits()) as images:
        assert len(images.found) == 6
        assert all(
            re.fullmatch(r"[a-z]+/S_1/00[12]-field-[12]-cell-[1-4]\.png", image.name)
            for image in images.found
        )
    table = zipfile.ZipFile(path).read("cells.csv").decode()
    assert table.count("\r\n") == 7


def test_without_labels_of_one_s_own_there_is_no_labelled_set(page: Page, fields: Path) -> None:
    give(page, fields, "field-1.png")
    expect(tiles(page)).to_have_count(4)
    page.locator("#save-labelled").click()
    expect(page.locator(".problem")).to_contain_text("No cell has a label of yours.")


def test_the_report_is_printed_on_few_pages_without_a_bar_over_it(page: Page) -> None:
    page.get_by_role("button", name="Show drawn examples").click()
    expect(page.locator("#status")).to_contain_text("13 images classified", timeout=60_000)
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) <= 3
    page.emulate_media(media="print")
    assert page.locator("header").evaluate("header => getComputedStyle(header).position") == "static"
    expect(page.locator("#sheet table")).to_be_visible()
    assert page.locator("#sheet .small-cell").count() == tiles(page).count()
    for hidden in ("#upload", "#bench", "#cells", "#sign"):
        expect(page.locator(hidden)).to_be_hidden()


# --- sessions ---------------------------------------------------------------------------------------


def test_a_session_is_saved_to_a_file_and_opened_again(eight: Page, tmp_path: Path) -> None:
    page = eight
    tiles(page).first.click()
    page.keyboard.press("u")
    sign(page)
    before = json.loads(saved(page, "#save-json"))
    path = download(page, "#save-session", tmp_path)
    page.reload()
    give(page, tmp_path, path.name)
    expect(page.locator("#status")).to_contain_text("opened: 8 cells.")
    expect(page.locator("#report-status")).to_contain_text("Final: signed by A. Smith")
    assert page.get_by_label("Specimen ID").input_value() == "S/1"
    expect(tiles(page, "unidentified")).to_have_count(1)
    after = json.loads(saved(page, "#save-json"))
    assert after["predictions"] == before["predictions"]
    assert after["differential"]["fingerprint"] == before["differential"]["fingerprint"]
    tiles(page).last.click()
    page.keyboard.press("x")
    sign(page, "B. Jones")
    assert report_of(page)[0] == "corrected"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace('"version":1', '"version":2'), "no session of this page"),
        (lambda text: text[:-5], "is damaged"),
        (lambda text: text.replace('"reviewed":"', '"reviewed":"<b>'), "is damaged"),
        (lambda text: text.replace("pictures/0-", "pictures/9-"), "is missing"),
    ],
    ids=["version", "cut", "label", "picture"],
)
def test_a_session_that_is_not_whole_is_refused(
    eight: Page, tmp_path: Path, change: Callable[[str], str], reason: str
) -> None:
    page = eight
    path = download(page, "#save-session", tmp_path)
    whole = zipfile.ZipFile(path)
    with zipfile.ZipFile(tmp_path / "changed.zip", "w") as changed:
        for name in whole.namelist():
            data = whole.read(name)
            changed.writestr(name, change(data.decode()) if name == "session.json" else data)
    give(page, tmp_path, "changed.zip")
    expect(page.locator(".problem")).to_contain_text(reason)
    expect(tiles(page)).to_have_count(8)


def test_a_session_survives_a_reload_only_where_the_user_wants_it(eight: Page) -> None:
    page = eight
    page.reload()
    expect(page.locator("#keep")).not_to_be_checked()
    expect(page.locator("#kept")).to_be_hidden()


def test_a_kept_session_has_an_age_and_is_deleted_by_a_button_or_with_the_specimen(eight: Page) -> None:
    page = eight
    page.locator("#keep").check()
    expect(page.locator("#kept-text")).to_contain_text("A session of 8 cells is kept in this browser")
    page.reload()
    expect(page.locator("#kept-text")).to_contain_text(
        "saved less than a minute ago; once it is 24 hours old, this page deletes it when it is next open"
    )
    page.get_by_role("button", name="Open it").click()
    expect(tiles(page)).to_have_count(8)
    assert page.get_by_label("Specimen ID").input_value() == "S/1"
    page.get_by_role("button", name="Delete it from this browser").click()
    expect(page.locator("#kept")).to_be_hidden()
    page.locator("#keep").check()
    expect(page.locator("#kept")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#clear").click()
    expect(page.locator("#kept")).to_be_hidden()


def test_a_kept_session_is_not_lost_to_the_next_specimen(eight: Page, fields: Path) -> None:
    page = eight
    page.locator("#keep").check()
    expect(page.locator("#kept-text")).to_contain_text("A session of 8 cells is kept")
    page.reload()
    expect(page.locator("#kept-text")).to_contain_text("A session of 8 cells is kept")
    give(page, fields, "field-1.png")
    expect(page.locator("#kept-text")).to_contain_text("What is on the page is not kept")
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#clear").click()
    page.get_by_role("button", name="Open it").click()
    expect(tiles(page)).to_have_count(8)


def test_a_kept_session_that_is_too_old_is_deleted(eight: Page) -> None:
    page = eight
    page.locator("#keep").check()
    expect(page.locator("#kept")).to_be_visible()
    page.clock.install()
    page.clock.set_fixed_time(page.evaluate("Date.now() + 25 * 3600 * 1000"))
    page.reload()
    expect(page.locator("#readiness")).to_have_text("ready")
    expect(page.locator("#kept")).to_be_hidden()


# --- all of it, by key alone ------------------------------------------------------------------------


def tab_to(page: Page, holds: str) -> None:
    """Press Tab until a condition on `node`, which has the focus, holds."""
    for _ in range(120):
        if page.evaluate(f"(node => {holds})(document.activeElement)"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(holds)


def review_by_key(page: Page, specimen: str) -> None:
    """Judge every cell, and sign, with nothing but keys."""
    tab_to(page, "node.id === 'specimen-id'")
    page.keyboard.type(specimen)
    tab_to(page, "node.closest('.tile')")
    while "No cell" not in page.locator("#waiting-text").inner_text():
        page.keyboard.press("n")
        page.keyboard.press("c")
    galleries = page.locator(".gallery:visible .tiles:visible").count()
    for _ in range(galleries):
        tab_to(page, "node.closest('.tile')")
        page.keyboard.press("Control+a")
        page.keyboard.press("c")
        page.keyboard.press("Tab")
    tab_to(page, "node.id === 'sign'")
    page.keyboard.press("Enter")
    page.keyboard.type("A. Smith")
    page.keyboard.press("Enter")
    expect(page.locator("#report-status")).to_contain_text("Final: signed by A. Smith")


def reopened_corrected_and_exported(page: Page, folder: Path) -> Path:
    """Save the session, open it, correct a cell, sign again; return the labelled set."""
    session = download(page, "#save-session", folder)
    page.reload()
    give(page, folder, session.name)
    expect(page.locator("#status")).to_contain_text("opened")
    page.locator("#status").evaluate("() => document.activeElement.blur()")
    tab_to(page, "node.closest('.tile')")
    page.keyboard.press("u")
    tab_to(page, "node.id === 'sign'")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # the name is that of the first signature
    expect(page.locator("#report-status")).to_contain_text("Corrected: signed by A. Smith")
    assert report_of(page)[0] == "corrected"
    return download(page, "#save-labelled", folder)


def read_by_adapt(path: Path, least: int) -> None:
    """Read a labelled set as `leuko-train adapt` does."""
    own_cells = pytest.importorskip("training.own_cells")
    bundle = load_bundle(ROOT / "models/wbc-resnet18")
    cells, left_out = own_cells.read_labelled(path, bundle, r"([^/]+)/[^/]+$")
    assert len(cells.framed) >= least
    assert left_out == ""  # the table of the page is not counted


def adapt(labelled: Path, out: Path) -> Bundle:
    pytest.importorskip("training.cli")
    program, bundle = Path(sys.executable).with_name("leuko-train"), ROOT / "models/wbc-resnet18"
    subprocess.run(
        [program, "adapt", labelled, "--site", "Ward 3", "--force", "--bundle", bundle, "--out", out],
        check=True,
    )
    return load_bundle(out)


def test_a_hundred_drawn_cells_are_reviewed_by_key_alone(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Show drawn examples").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("13 images classified", timeout=60_000)
    count = tiles(page).count()
    assert count >= 100
    review_by_key(page, "S-100")
    tab_to(page, "node.id === 'save-fhir'")
    with page.expect_download() as started:
        page.keyboard.press("Enter")
    report = Path(started.value.path()).read_text()
    assert started.value.suggested_filename == "leuko-S-100-report.fhir.json"
    assert "A. Smith" in report
    expect(page.locator("#agreement")).to_contain_text(f"{count} of {count} cells that you judged")
    labelled = reopened_corrected_and_exported(page, tmp_path)
    read_by_adapt(labelled, count - 1)
    adapted = adapt(labelled, tmp_path / "mine")
    assert sum(adapted.training["adapted"]["cells"].values()) == count - 1


def real_fields(folder: Path, archive: str, count: int) -> list[str]:
    """Write fields of a data set into a folder; return their names."""
    with zipfile.ZipFile(real(archive)) as fields:
        names = sorted(name for name in fields.namelist() if name.endswith(".jpg"))[:count]
        for name in names:
            (folder / Path(name).name).write_bytes(fields.read(name))
    return [Path(name).name for name in names]


def reviewed(page: Page, folder: Path, fields: list[str]) -> int:
    """Review and sign all cells of the fields by key alone; return how many there are."""
    give(page, folder, *fields)
    expect(page.locator("#status")).to_contain_text(f"{len(fields)} images classified", timeout=300_000)
    count = tiles(page).count()
    assert count >= 100
    review_by_key(page, "S-100")
    assert report_of(page)[0] == "final"
    return count


def test_a_hundred_cells_of_real_fields_are_reviewed_by_key_alone(page: Page, tmp_path: Path) -> None:
    count = reviewed(page, tmp_path, real_fields(tmp_path, "draaslan-fields.zip", 100))
    read_by_adapt(reopened_corrected_and_exported(page, tmp_path), count - 1)


@pytest.mark.ops
def test_a_hundred_reviewed_cells_of_real_fields_adapt_a_bundle(page: Page, tmp_path: Path) -> None:
    # The fields of draaslan have too few eosinophils.
    count = reviewed(page, tmp_path, real_fields(tmp_path, "bccd-originals.zip", 120))
    adapted = adapt(reopened_corrected_and_exported(page, tmp_path), tmp_path / "mine")
    assert sum(adapted.training["adapted"]["cells"].values()) == count - 1
