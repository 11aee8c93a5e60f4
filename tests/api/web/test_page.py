"""The page at /, used in Chromium as a laboratory user would."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_core_python.sync_playwright import Axe
from fhir.resources.R4B.bundle import Bundle
from PIL import Image
from playwright.sync_api import Browser, Dialog, Page, Route, expect, sync_playwright

from app.edge.keys import add_key
from app.engine.bundle import CLASSES
from app.imaging import dicom_writer
from app.samples.smear import draw_smear
from tests.fakes import zipped
from tests.pictures import encode
from tests.running import PATIENCE_S, REAL, Running, running

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}


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


def give(page: Page, folder: Path, *names: str) -> None:
    page.set_input_files("#files", [folder / name for name in names])


def text(page: Page, selector: str) -> str:
    return page.locator(selector).inner_text()


def saved(page: Page, button: str) -> bytes:
    with page.expect_download() as download:
        page.locator(button).click()
    return Path(download.value.path()).read_bytes()


CELLS = [f"{label}.png" for label in CLASSES]
ACTIVE = "(({ id, className, textContent }) => id || className || textContent)(document.activeElement)"


# --- images -----------------------------------------------------------------------------------------


def test_the_model_and_readiness_are_visible(page: Page, service: Running) -> None:
    model = httpx.get(f"{service.address}/model").json()
    assert text(page, "#model-name") == model["name"]
    assert text(page, "#model-version") == model["version"]
    assert model["sha256"].startswith(text(page, "#model-sha256"))
    expect(page.locator("#notice")).to_contain_text("Not for diagnosis")


def test_each_cell_gets_a_card_with_its_class_and_probabilities(
    page: Page, folder: Path, service: Running
) -> None:
    give(page, folder, *CELLS)
    expect(page.locator(".card")).to_have_count(4)
    files = [("files", (name, (folder / name).read_bytes())) for name in CELLS]
    for index, one in enumerate(httpx.post(f"{service.address}/predict", files=files).json()["predictions"]):
        card = page.locator(".card").nth(index)
        expect(card.locator("h3")).to_contain_text(one["label"])
        expect(card.locator(".name")).to_have_text(one["filename"])
        shown = card.locator(".bars span:last-child").all_inner_texts()
        assert shown == [f"{100 * one['probabilities'][label]:.1f} %" for label in CLASSES]
        assert card.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 320


def test_the_differential_is_that_of_the_service(page: Page, folder: Path, service: Running) -> None:
    give(page, folder, *CELLS)
    expect(page.locator("#differential tbody tr")).to_have_count(4)
    files = [("files", (folder / name).read_bytes()) for name in CELLS]
    differential = httpx.post(f"{service.address}/differential", files=files).json()
    for row, label in zip(page.locator("#differential tbody tr").all(), CLASSES, strict=True):
        low, high = differential["intervals"]["wilson"][label]
        count, share, wilson, *_ = row.locator("td").all_inner_texts()
        assert (int(count), share) == (
            differential["counts"][label],
            f"{differential['percent'][label]:.1f} %",
        )
        assert wilson == f"{low:.1f} – {high:.1f}"
    expect(page.locator("#warnings")).to_contain_text("needs at least 100")


def test_the_end_is_announced_after_the_differential_is_shown(page: Page, folder: Path) -> None:
    held: list[Route] = []
    page.route("**/differential", lambda route: held.append(route))
    with page.expect_request("**/differential"):
        give(page, folder, "monocyte.png")
    expect(page.locator(".card")).to_have_count(1)
    assert text(page, "#status") == ""
    held[0].continue_()
    expect(page.locator("#status")).to_have_text("1 image classified.")
    assert page.locator("#specimen").is_visible()


def test_an_activation_map_is_laid_over_the_image_and_fades(page: Page, folder: Path) -> None:
    give(page, folder, "monocyte.png")
    button = page.locator(".map button")
    button.click()
    canvas = page.locator(".fit canvas")
    expect(canvas).to_be_visible()
    assert button.get_attribute("aria-pressed") == "true"
    colours = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, 224, 224).data).size"
    assert canvas.evaluate(colours) > 50
    page.locator(".map input").fill("20")
    assert canvas.evaluate("canvas => canvas.style.opacity") == "0.2"
    button.click()
    expect(canvas).to_have_count(0)


def test_a_cell_for_review_gives_the_reason_and_can_be_filtered(page: Page, folder: Path) -> None:
    odd = '=odd, "one".png'
    give(page, folder, *CELLS, odd, "cut.png")
    card = page.locator(".card", has_text=odd)
    expect(card.locator(".review")).to_contain_text("unlike those that the model was trained on")
    page.get_by_label("to review").check()
    expect(card).to_be_visible()
    assert page.locator(".card:visible .review:visible").count() == page.locator(".card:visible").count()
    page.get_by_label("failed").check()
    expect(page.locator(".card:visible")).to_have_count(1)


def test_errors_are_shown_in_plain_words(page: Page, folder: Path) -> None:
    give(page, folder, "cut.png", "text.png", "monocyte.png")
    expect(page.locator(".card", has_text="cut.png")).to_contain_text("the PNG data is truncated")
    expect(page.locator(".card", has_text="text.png")).to_contain_text(
        "the image format is not supported; use JPEG, PNG"
    )
    expect(page.locator("#status")).to_have_text("1 image classified, 2 failed.")


def test_if_every_image_fails_each_card_gives_the_reason(page: Page, folder: Path) -> None:
    give(page, folder, "cut.png", "text.png")
    expect(page.locator(".failed")).to_have_count(2)
    expect(page.locator("#specimen")).to_be_hidden()


def test_dicom_has_an_answer_and_no_preview(page: Page, folder: Path) -> None:
    give(page, folder, "cell.dcm")
    expect(page.locator(".card h3")).to_contain_text("%")
    expect(page.locator(".preview")).to_have_attribute(
        "data-reason", "No preview: this browser cannot show this format."
    )


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
        expect(page.locator(".card")).to_have_count(count)
        expect(page.locator(".name").nth(count - 1)).to_have_text(f"{kind}.png")
        expect(page.locator("#progress")).to_be_hidden()


def test_two_hundred_images_are_sent_in_few_requests_and_keep_their_order(page: Page, tmp_path: Path) -> None:
    names = [f"{number:03}.png" for number in range(200)]
    for number, name in enumerate(names):
        draw_smear(CLASSES[number % 4], seed=number % 8, width=96, height=72).save(tmp_path / name)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "/predict" in request.url else None)
    give(page, tmp_path, *names)
    expect(page.locator("#status")).to_have_text("200 images classified.", timeout=60_000)
    assert page.locator(".card .name").all_text_contents() == names
    assert len(sent) == 25
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#clear").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#cells")).to_be_hidden()


def test_what_was_not_answered_can_be_sent_again_and_what_was_is_kept(
    page: Page, folder: Path, tmp_path: Path
) -> None:
    names = [f"{number:02}.png" for number in range(40)]
    for name in names:
        shutil.copy(folder / "monocyte.png", tmp_path / name)
    answered = 0

    def die(route: Route) -> None:
        nonlocal answered
        answered += 1
        route.continue_() if answered <= 2 else route.abort()

    page.route("**/predict", die)
    page.route("**/differential", lambda route: route.abort())
    give(page, tmp_path, *names)
    again = page.get_by_role("button", name="again")
    expect(again).to_have_text("Send 24 images again", timeout=60_000)
    expect(page.locator(".failed-card")).to_have_count(24)
    assert page.locator("#specimen").is_hidden()

    page.unroute("**/predict")
    page.unroute("**/differential")
    again.click()
    expect(page.locator("#status")).to_have_text("24 images classified.", timeout=60_000)
    expect(again).to_be_hidden()
    assert page.locator(".card .name").all_text_contents() == names
    expect(page.locator(".failed-card")).to_have_count(0)
    assert json.loads(saved(page, "#save-json"))["differential"]["n"] == 40


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


def test_unsaved_results_are_not_lost_without_a_question(page: Page, folder: Path) -> None:
    asked: list[str] = []

    def refuse(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", refuse)
    give(page, folder, "monocyte.png")
    expect(page.locator("#status")).to_contain_text("classified")
    page.locator("#clear").click()
    expect(page.locator(".card")).to_have_count(1)
    page.close(run_before_unload=True)
    page.wait_for_timeout(500)
    assert asked == ["confirm", "beforeunload"]

    saved(page, "#save-csv")
    page.get_by_label("Specimen").fill("S-2")  # the file does not have it
    page.locator("#clear").click()
    saved(page, "#save-json")
    page.locator("#clear").click()
    expect(page.locator(".card")).to_have_count(0)
    assert asked == ["confirm", "beforeunload", "confirm"]


# --- saving results ---------------------------------------------------------------------------------


def test_results_can_be_saved_in_every_format(page: Page, folder: Path) -> None:
    odd = '=odd, "one".png'
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
    give(page, folder, "monocyte.png", '=odd, "one".png')
    expect(page.locator("#status")).to_contain_text("2 images classified")
    page.get_by_label("Specimen").fill("S'1")
    page.locator("#copy-curl").click()
    expect(page.locator("#status")).to_have_text("Copied.")
    command = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=True, timeout=60)
    answer = json.loads(done.stdout)
    assert (answer["n"], answer["specimen"]) == (2, "S'1")


# --- evaluation -------------------------------------------------------------------------------------


def test_a_labelled_archive_is_evaluated(page: Page, folder: Path, service: Running) -> None:
    give(page, folder, "labelled.zip")
    expect(page.locator("#evaluation")).to_be_visible(timeout=60_000)
    files = {"archive": (folder / "labelled.zip").read_bytes()}
    report = httpx.post(f"{service.address}/evaluate", files=files, timeout=60).json()
    expect(page.locator("#scores")).to_contain_text(f"{100 * report['accuracy']:.2f} %")
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#confusion tbody tr").all()]
    assert [[int(cell) for cell in row[:4]] for row in rows] == report["confusion_matrix"]
    assert page.locator("#by-class tbody tr").count() == 6
    wrong = page.locator("#mistakes .card", has_text="set/monocyte/wrong.png")
    expect(wrong).to_contain_text("Labelled monocyte.")
    assert wrong.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 320
    expect(page.locator("#problems")).to_contain_text("set/monocyte/cut.png")
    assert json.loads(saved(page, "#save-report-json"))["n"] == report["n"]
    assert b"set/monocyte/wrong.png" in saved(page, "#save-report-csv")


def test_an_unusable_archive_is_refused_with_the_reason(page: Page, tmp_path: Path) -> None:
    (tmp_path / "wrong.zip").write_bytes(zipped({"basophil/a.png": b"x"}))
    give(page, tmp_path, "wrong.zip")
    expect(page.locator(".problem")).to_contain_text("Invalid archive")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator(".problem")).to_have_count(0)


def test_progress_is_shown_while_an_archive_is_evaluated_and_it_can_be_cancelled(
    page: Page, tmp_path: Path
) -> None:
    image = encode(draw_smear("monocyte"), "PNG")
    (tmp_path / "large.zip").write_bytes(zipped({f"monocyte/{number}.png": image for number in range(3000)}))
    give(page, tmp_path, "large.zip")
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
        expect(page.locator(".card")).to_have_count(6)
        expect(page.locator("#progress")).to_be_hidden()
        page.locator(".map button").first.click()
        expect(page.locator("canvas")).to_be_visible()
        assert serious(page) == []
        give(page, folder, "labelled.zip")
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
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(ACTIVE))
    assert {"specimen-id", "accession-id", "save-fhir", "copy-curl", "clear", "Activation map"} <= reached


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
        expect(page.locator(".card")).to_have_count(1)
        give(page, folder, "labelled.zip")
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
        for name in ("page.css", "page.js", "icon.svg"):
            first = client.get(f"/page/{name}")
            assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
            assert (
                client.get(f"/page/{name}", headers={"if-none-match": first.headers["etag"]}).status_code
                == 304
            )
