"""The page at /, used in Chromium as a laboratory user would."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_core_python.sync_playwright import Axe
from fhir.resources.R4B.bundle import Bundle
from playwright.sync_api import Browser, Page, Route, expect

from app.api.routes import docs
from app.edge.keys import add_key
from app.engine.bundle import CLASSES
from app.samples.smear import draw_smear
from tests.browsing import (
    CELLS,
    DESK,
    PHONE,
    give,
    give_labelled,
    names,
    one_cell_each,
    opened,
    saved,
    text,
    tiles,
)
from tests.fakes import zipped
from tests.pictures import encode
from tests.running import REAL, Running, running

COLOURS = (
    """canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"""
)
ACTIVE = "(({ id, className, textContent }) => id || className || textContent)(document.activeElement)"


# --- images -----------------------------------------------------------------------------------------


def test_the_model_and_readiness_are_visible(page: Page, service: Running) -> None:
    model = httpx.get(f"{service.address}/model").json()
    assert text(page, "#model-name") == model["name"]
    assert text(page, "#model-version") == model["version"]
    assert model["sha256"].startswith(text(page, "#model-sha256"))
    expect(page.locator("#notice")).to_contain_text("Not for diagnosis")
    expect(page.locator("#model-site")).to_have_text("not verified for this laboratory")
    page.emulate_media(media="print")
    expect(page.locator("#model-site")).to_be_visible()


def test_a_verified_model_names_its_laboratory_and_the_date(page: Page, service: Running) -> None:
    site = {"name": "General Hospital <3>", "verified_at": "2026-11-30T09:00:00+00:00"}
    model = httpx.get(f"{service.address}/model").json() | {"site": site}
    page.route("**/model", lambda route: route.fulfill(json=model))
    page.reload()
    expect(page.locator("#model-site")).to_have_text("verified for General Hospital <3> on 2026-11-30")


def test_each_cell_is_in_the_gallery_of_its_class_with_its_probabilities(
    page: Page, folder: Path, service: Running
) -> None:
    give(page, folder, *CELLS)
    expect(tiles(page)).to_have_count(4)
    files = [("files", (name, (folder / name).read_bytes())) for name in CELLS]
    answer = httpx.post(f"{service.address}/predict?cells=all", files=files).json()
    for one in answer["predictions"]:
        tile = tiles(page).filter(has_text=f"{one['filename']} · 1")
        place = tile.locator("xpath=ancestor::section[@data-place]").get_attribute("data-place")
        assert place == ("to review" if one["review"] else one["label"])
        assert tile.locator("canvas").evaluate(COLOURS) > 50
        tile.dblclick()
        expect(page.locator("#viewer-title")).to_have_text(f"{one['filename']}, cell 1")
        shown = page.locator("#viewer-bars span:last-child").all_inner_texts()
        assert shown == [f"{100 * one['probabilities'][label]:.1f} %" for label in CLASSES]
        page.keyboard.press("Escape")


def test_the_differential_is_that_of_the_service(page: Page, folder: Path, service: Running) -> None:
    give(page, folder, *CELLS)
    expect(page.locator("#differential tbody tr")).to_have_count(4)
    files = [("files", (folder / name).read_bytes()) for name in CELLS]
    differential = httpx.post(f"{service.address}/differential?cells=all", files=files).json()
    for method in ("exact", "wilson"):
        for row, label in zip(page.locator("#differential tbody tr").all(), CLASSES, strict=True):
            low, high = differential["intervals"][method][label]
            assert row.locator("td").all_inner_texts() == [
                str(differential["counts"][label]),
                f"{differential['percent'][label]:.1f} %",
                f"{low:.1f} – {high:.1f}",
            ]
        page.locator("#other-interval").click()
    expect(page.locator("#warnings")).to_contain_text("needs at least 100")


def test_the_end_is_announced_after_the_differential_is_shown(page: Page, folder: Path) -> None:
    held: list[Route] = []
    page.route("**/differential", lambda route: held.append(route))
    with page.expect_request("**/differential"):
        give(page, folder, "monocyte.png")
    expect(tiles(page)).to_have_count(1)
    assert text(page, "#status") == ""
    held[0].continue_()
    expect(page.locator("#status")).to_have_text("1 image classified.")
    assert page.locator("#counted").is_visible()


def test_an_activation_map_is_laid_over_the_cell_on_its_field_and_fades(page: Page, folder: Path) -> None:
    give(page, folder, "monocyte.png")
    tiles(page).dblclick()
    button = page.locator("#viewer-map")
    button.click()
    canvas = page.locator("#plane canvas")
    expect(canvas).to_be_visible()
    assert button.get_attribute("aria-pressed") == "true"
    assert canvas.evaluate(COLOURS) > 50
    page.locator("#viewer-opacity").fill("20")
    assert canvas.evaluate("canvas => canvas.style.opacity") == "0.2"
    button.click()
    expect(canvas).to_have_count(0)


def test_a_cell_for_review_gives_the_reason_and_can_be_filtered(page: Page, folder: Path) -> None:
    odd = '=odd, "one".png'
    one_cell_each(page)
    give(page, folder, *CELLS, odd, "cut.png")
    tile = tiles(page, "to review").filter(has_text=odd)
    reasons = "unlike those that the model was trained on"
    expect(tile).to_have_attribute("aria-label", re.compile(f"to review: .*{reasons}"))
    page.get_by_role("radio", name="to review").check()
    expect(tile).to_be_visible()
    assert page.locator(".tile:visible").count() == tiles(page, "to review").count()
    page.locator("#filter-picture").select_option(label="monocyte.png (1)")
    page.get_by_role("radio", name="not judged").check()
    assert page.locator(".tile:visible .name").all_text_contents() == ["monocyte.png"]


def test_a_picture_without_a_cell_is_named_and_can_be_taken_as_one(page: Page, folder: Path) -> None:
    odd = '=odd, "one".png'
    give(page, folder, odd, "monocyte.png")
    expect(page.locator("#status")).to_have_text("2 images classified: 1 cell.")
    row = page.locator(".empty-picture")
    expect(row).to_contain_text(odd)
    expect(row).to_contain_text("No cell was found in the picture")
    expect(row).to_contain_text("Move to a place with white blood cells")
    page.get_by_role("button", name=f"Take {odd} as one cell").click()
    expect(tiles(page, "to review").filter(has_text=odd)).to_have_count(1)
    expect(row).to_have_count(0)


def test_errors_are_shown_in_plain_words(page: Page, folder: Path) -> None:
    give(page, folder, "cut.png", "text.png", "monocyte.png")
    expect(page.locator(".failed-picture", has_text="cut.png")).to_contain_text("the PNG data is truncated")
    expect(page.locator(".failed-picture", has_text="text.png")).to_contain_text(
        "the image format is not supported; use JPEG, PNG"
    )
    expect(page.locator("#status")).to_have_text("1 image classified, 2 failed.")


def test_if_every_image_fails_each_has_its_reason(page: Page, folder: Path) -> None:
    give(page, folder, "cut.png", "text.png")
    expect(page.locator(".failed")).to_have_count(2)
    expect(page.locator("#summary")).to_be_hidden()


def test_dicom_has_an_answer_and_no_preview(page: Page, folder: Path) -> None:
    give(page, folder, "cell.dcm")
    expect(tiles(page)).to_contain_text("%")
    expect(page.locator(".crop")).to_have_class(re.compile("unavailable"))


def test_an_image_can_be_pasted_and_dropped(page: Page) -> None:
    give_ = """async (kind) => {
        const canvas = new OffscreenCanvas(64, 48);
        canvas.getContext('2d').fillRect(0, 0, 64, 48);
        const file = new File([await canvas.convertToBlob()], `${kind}.png`, { type: 'image/png' });
        const data = new DataTransfer();
        data.items.add(file);
        const event = kind === 'paste' ? new ClipboardEvent(kind, { clipboardData: data, bubbles: true })
          : new DragEvent(kind, { dataTransfer: data, bubbles: true });
        document.querySelector('main').dispatchEvent(event);
    }"""
    for count, kind in enumerate(("paste", "drop"), 1):
        page.evaluate(give_, kind)
        expect(page.locator(".empty-picture")).to_have_count(count)
        expect(page.locator(".empty-picture strong").nth(count - 1)).to_have_text(f"{kind}.png")
        expect(page.locator("#progress")).to_be_hidden()


@pytest.mark.ops
def test_two_hundred_images_are_sent_in_few_requests_and_keep_their_order(page: Page, tmp_path: Path) -> None:
    given = [f"{number:03}.png" for number in range(200)]
    for number, name in enumerate(given):
        draw_smear(CLASSES[number % 4], seed=number % 8, width=96, height=72).save(tmp_path / name)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "/predict" in request.url else None)
    one_cell_each(page)
    give(page, tmp_path, *given)
    expect(page.locator("#status")).to_have_text("200 images classified.", timeout=60_000)
    assert names(page) == given
    assert len(sent) == 25
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#clear").click()
    expect(tiles(page)).to_have_count(0)
    expect(page.locator("#cells")).to_be_hidden()


# --- saving results ---------------------------------------------------------------------------------


def test_results_can_be_saved_in_every_format(page: Page, folder: Path) -> None:
    odd = '=odd, "one".png'
    one_cell_each(page)
    give(page, folder, "monocyte.png", odd, "cut.png")
    expect(page.locator("#status")).to_contain_text("classified")
    page.get_by_label("Specimen").fill("S-1")
    page.get_by_label("Accession").fill("A-1")
    page.get_by_label("Accession").blur()

    document = json.loads(saved(page, "#save-json"))
    assert [one["filename"] for one in document["predictions"]] == ["monocyte.png", odd]
    assert [one["filename"] for one in document["errors"]] == ["cut.png"]
    rows = list(csv.DictReader(io.StringIO(saved(page, "#save-csv").decode("utf-8-sig"))))
    assert [row["filename"] for row in rows] == ["monocyte.png", "'" + odd, "cut.png"]
    assert float(rows[0]["confidence"]) == document["predictions"][0]["confidence"]
    assert "truncated" in rows[2]["error"]
    report = saved(page, "#save-fhir").decode()
    entries = Bundle.model_validate_json(report).entry or []
    assert len(entries) == 7
    message = saved(page, "#save-hl7").decode()
    for lacking in (report, message, json.dumps(document["differential"])):
        assert "1 of 3 images could not be classified" in lacking
    assert "|A-1|" in message
    assert "SPM|1|S-1|" in message


def test_the_curl_command_gives_the_result_of_the_page(page: Page, folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is absent")
    one_cell_each(page)
    give(page, folder, "monocyte.png", '=odd, "one".png')
    expect(page.locator("#status")).to_contain_text("2 images classified")
    page.get_by_label("Specimen").fill("S'1")
    page.locator("#summary summary").click()
    page.locator("#copy-curl").click()
    expect(page.locator("#status")).to_have_text("Copied.")
    command = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=True, timeout=60)
    answer = json.loads(done.stdout)
    assert (answer["n"], answer["specimen"]) == (2, "S'1")


# --- evaluation -------------------------------------------------------------------------------------


def test_a_labelled_archive_is_evaluated(page: Page, folder: Path, service: Running) -> None:
    give_labelled(page, folder, "labelled.zip")
    expect(page.locator("#evaluation")).to_be_visible(timeout=60_000)
    files = {"archive": (folder / "labelled.zip").read_bytes()}
    report = httpx.post(f"{service.address}/evaluate", files=files, timeout=60).json()
    expect(page.locator("#scores")).to_contain_text(f"{100 * report['accuracy']:.2f} %")
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#confusion tbody tr").all()]
    assert [[int(cell) for cell in row[:4]] for row in rows] == report["confusion_matrix"]
    assert page.locator("#by-class tbody tr").count() == 6
    current = report["verification"]["current"]
    expect(page.locator("#scores")).to_contain_text(f"{100 * current['review_share']:.1f} %")
    expect(page.locator("#thresholds tbody tr").first).to_contain_text(
        f"{current['thresholds']['confidence']:.3f}"
    )
    assert page.locator("#curve polyline").get_attribute("points")
    expect(page.locator("#cautions")).to_contain_text("cells say little")
    wrong = page.locator("#mistakes .card", has_text="set/monocyte/wrong.png")
    expect(wrong).to_contain_text("Labelled monocyte.")
    assert wrong.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 320
    expect(page.locator("#problems")).to_contain_text("set/monocyte/cut.png")
    assert json.loads(saved(page, "#save-report-json"))["n"] == report["n"]
    assert b"set/monocyte/wrong.png" in saved(page, "#save-report-csv")


def test_an_unusable_archive_is_refused_with_the_reason(page: Page, tmp_path: Path) -> None:
    (tmp_path / "wrong.zip").write_bytes(b"not a ZIP")
    give(page, tmp_path, "wrong.zip")
    expect(page.locator(".problem")).to_contain_text("Invalid archive")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator(".problem")).to_have_count(0)


def test_progress_is_shown_while_an_archive_is_evaluated_and_it_can_be_cancelled(
    page: Page, tmp_path: Path
) -> None:
    image = encode(draw_smear("monocyte"), "PNG")
    (tmp_path / "large.zip").write_bytes(zipped({f"monocyte/{number}.png": image for number in range(3000)}))
    give_labelled(page, tmp_path, "large.zip")
    expect(page.locator("#progress-label")).to_contain_text("of 3000 images")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.locator("#progress")).to_be_hidden()


# --- accessibility ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": PHONE}],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_nothing_serious_in_any_state(
    browser: Browser, service: Running, folder: Path, options: dict[str, Any]
) -> None:
    with opened(browser, service.address, **options, bypass_csp=True) as page:
        expect(page.locator("#readiness")).to_have_text("ready")
        assert serious(page) == []
        give(page, folder, *CELLS, '=odd, "one".png', "cut.png")
        expect(tiles(page)).to_have_count(4)
        expect(page.locator("#progress")).to_be_hidden()
        assert serious(page) == []
        tiles(page).first.dblclick()
        page.locator("#viewer-map").click()
        expect(page.locator("#plane canvas")).to_be_visible()
        assert serious(page) == []
        page.locator("#viewer-close").click()
        page.locator("#show-help").click()
        assert serious(page) == []
        page.keyboard.press("Escape")
        give_labelled(page, folder, "labelled.zip")
        expect(page.locator("#evaluation")).to_be_visible(timeout=60_000)
        expect(page.locator("#progress")).to_be_hidden()
        assert serious(page) == []
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= options.get("viewport", DESK)["width"]


def serious(page: Page) -> list[str]:
    violations = Axe().run(page)["violations"]
    return [
        f"{violation['id']}: {[node['html'] for node in violation['nodes']][:3]}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
    ]


def test_the_keyboard_is_enough(page: Page, folder: Path) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    give(page, folder, "monocyte.png")
    expect(page.locator("#status")).to_contain_text("1 image classified")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(ACTIVE))
    assert {"specimen-id", "accession-id", "save-fhir", "clear", "tile", "sign", "goal"} <= reached


def test_the_page_asks_for_a_key_if_the_service_requires_one(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    secret = add_key(tmp_path / "keys", "lab", ["predict"])
    with (
        running(REAL, "--keys", str(tmp_path / "keys")) as service,
        opened(browser, service.address) as page,
    ):
        expect(page.get_by_role("dialog")).to_contain_text("requires an API key")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator(".problem")).to_contain_text("Valid key required")
        give(page, folder, "monocyte.png")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.get_by_label("Key", exact=True).fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("dialog")).to_contain_text("key is not valid")
        page.get_by_label("Key", exact=True).fill(secret)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#model-name")).to_have_text("wbc-resnet18")
        expect(tiles(page)).to_have_count(1)
        give_labelled(page, folder, "labelled.zip")
        expect(page.locator(".problem")).to_contain_text("The key lacks the scope evaluate.")


def test_a_stopped_service_is_reported(browser: Browser, folder: Path) -> None:
    with running(REAL) as service, opened(browser, service.address) as page:
        expect(page.locator("#readiness")).to_have_text("ready")
        service.end()
        give(page, folder, "monocyte.png")
        expect(page.locator(".problem")).to_contain_text("The service does not answer.", timeout=30_000)
        expect(page.locator(".failed")).to_contain_text("The upload stopped before this image.")


def test_the_api_s_documentation_needs_no_network(browser: Browser, service: Running) -> None:
    with opened(browser, f"{service.address}") as page:
        page.get_by_role("link", name="API documentation").click()
        expect(page.get_by_text("/differential", exact=True)).to_be_visible(timeout=30_000)


def test_browsers_revalidate_the_files_of_the_page(service: Running) -> None:
    with service.client() as client:
        answer = client.get("/")
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        for name in sorted(path.name for path in (docs.WEB / "page").glob("*.*")):
            first = client.get(f"/page/{name}")
            assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
            assert (
                client.get(f"/page/{name}", headers={"if-none-match": first.headers["etag"]}).status_code
                == 304
            )
