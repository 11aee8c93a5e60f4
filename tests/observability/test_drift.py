from __future__ import annotations

import gzip
import io
import json
import math
import os
import stat
import tracemalloc
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import chi2

from app.cli.commands import drift
from app.cli.main import main
from app.engine.bundle import CLASSES, load_bundle
from app.errors import BundleError, Unusable
from app.evaluation.answer_profile import AnswerProfile, Seen, dump, summarise
from app.observability.drift import CHANCE, Window, chance, compare, read_reference, stability_index, worst
from app.settings import Settings
from app.units import MIB
from tests.disk import full_beyond
from tests.fake_classifier import png
from tests.fakes import serving
from tests.running import ROOT

SHIPPED = load_bundle(ROOT / "models/wbc-resnet18")
NOON = "2026-11-27T12:00:00.000+00:00"


def drawn(n: int, shares: tuple[float, ...], seed: int = 0, *, strange: float = 1.2) -> list[Seen]:
    """Draw answers with these shares of the classes; strange: the mean ood_score."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, n, p=shares)
    confidences = rng.beta(9, 1, n) * 0.7 + 0.3
    distances = rng.normal(strange, 0.3, n)
    return [
        Seen(str(label), float(confidence), float(distance), bool(confidence < 0.6))
        for label, confidence, distance in zip(labels, confidences, distances, strict=True)
    ]


def of(answers: list[Seen]) -> AnswerProfile:
    return summarise(answers, CLASSES, "drawn")


EVEN = (0.25, 0.25, 0.25, 0.25)


def test_the_index_follows_the_formula() -> None:
    expected, observed = np.array([10, 30, 60]), np.array([20, 30, 50])
    p, q = (expected + 0.5) / 101.5, (observed + 0.5) / 101.5
    assert stability_index([10, 30, 60], [20, 30, 50]) == pytest.approx(
        float(((q - p) * np.log(q / p)).sum())
    )
    assert stability_index([1, 2, 3], [10, 20, 30]) == pytest.approx(0, abs=0.03)


def test_where_nothing_changed_the_index_stays_below_chance_nearly_always() -> None:
    rng = np.random.default_rng(1)
    over = [
        stability_index(rng.multinomial(400, EVEN).tolist(), rng.multinomial(200, EVEN).tolist())
        > chance(4, 400, 200)
        for _ in range(3000)
    ]
    assert chance(4, 400, 200) == pytest.approx(chi2.isf(CHANCE, 3) * (1 / 400 + 1 / 200))
    assert sum(over) < 15  # 3 are expected


def test_the_same_distribution_is_stable_and_shifted_measures_are_reported() -> None:
    reference = of(drawn(2000, EVEN))
    assert worst(compare(reference, of(drawn(500, EVEN, 1)))) == "stable"
    other = {
        shift.measure: shift.verdict
        for shift in compare(reference, of(drawn(500, (0.02, 0.3, 0.08, 0.6), 2)))
    }
    assert (other["all classes"], other["share of neutrophil"]) == ("drifted", "drifted")
    assert (other["confidence"], other["ood_score"]) == ("stable", "stable")
    strange = {
        shift.measure: shift.verdict for shift in compare(reference, of(drawn(500, EVEN, 3, strange=2)))
    }
    assert (strange["ood_score"], strange["all classes"]) == ("drifted", "stable")


def test_a_few_cells_are_no_drift() -> None:
    few = of([Seen("eosinophil", 0.9, 1.2, review=False)] * 2)
    assert worst(compare(of(drawn(2000, EVEN)), few)) == "stable"


def line(
    time: str = NOON, sha256: str = SHIPPED.sha256, *, request_id: str | None = None, **image: Any
) -> str:
    answer = {
        "sha256": "0",
        "label": "monocyte",
        "confidence": 0.9,
        "ood_score": 1.2,
        "review": False,
    } | image
    entry = {"time": time, "request_id": request_id or uuid4().hex, "status": 200}
    return json.dumps(entry | {"model_sha256": sha256, "images": [answer]})


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_window_takes_the_answers_of_its_period_and_model(tmp_path: Path) -> None:
    log = write(
        tmp_path / "audit.jsonl",
        line("2026-11-27T07:59:59+00:00"),
        line("2026-11-27T09:00:00+01:00"),
        line("2026-11-27T08:30:00+00:00", sha256="of another"),
        line("2026-11-27T09:00:00+00:00"),
        '{"time": "2026-11-27T08:10:00+00:00", "request_id": "1", "route": "/model", "status": 200}',
        line()[:30],  # a full disk
        "",
        '["no", "entry"]',
        json.dumps(
            {"time": NOON, "request_id": "2", "images": [{"sha256": "0", "error": "undecodable_image"}]}
        ),
    )
    packed = tmp_path / "audit.jsonl.1.gz"
    packed.write_bytes(gzip.compress(line("2026-11-27T08:59:59+00:00", label="neutrophil").encode()))
    window = Window(
        datetime(2026, 11, 27, 8, tzinfo=UTC), datetime(2026, 11, 27, 9, tzinfo=UTC), SHIPPED.sha256
    )
    assert [answer.label for answer in window.read([log, packed])] == ["monocyte", "neutrophil"]
    assert (window.other_models, window.broken) == (1, 2)


def test_answers_of_another_model_with_its_own_labels_are_not_broken(tmp_path: Path) -> None:
    log = write(tmp_path / "audit.jsonl", line(), line(sha256="of another", label="basophil"))
    window = Window(model_sha256=SHIPPED.sha256, labels=CLASSES)
    assert [answer.label for answer in window.read([log])] == ["monocyte"]
    assert (window.other_models, window.broken) == (1, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        line("2026-11-27T12:00:00"),
        line(label="thrombocyte"),
        line(label=["monocyte"]),
        line(confidence=math.nan),
        line(confidence=1e308),
        line(confidence=1.5),
        line(confidence=-0.1),
        line(confidence="0.9"),
        line(ood_score=1e308),
        line(ood_score=-math.inf),
        line(review="no"),
        line(ood_score=10**400),
        line().replace('"request_id"', '"id"'),
        "[" * 100_000,
    ],
)
def test_a_line_that_cannot_be_an_answer_is_counted_as_broken(tmp_path: Path, wrong: str) -> None:
    window = Window(since=datetime(2026, 11, 27, tzinfo=UTC), labels=CLASSES)
    log = write(tmp_path / "audit.jsonl", line(), wrong)
    assert of(list(window.read([log]))).n == 1
    assert window.broken == 1


def test_a_line_of_gigabytes_and_blank_lines_take_no_memory(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl.gz"
    with gzip.open(log, "wb", compresslevel=1) as file:
        file.write(line().encode() + b"\n")
        for byte in b"\na":
            for _ in range(64):
                file.write(bytes([byte]) * MIB)
        file.write(b"\n" + line().encode())
    tracemalloc.start()
    window = Window()
    assert len(list(window.read([log]))) == 2
    assert window.broken == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * MIB


def test_a_request_that_two_replicas_took_counts_once(tmp_path: Path) -> None:
    within = datetime(2026, 11, 27, tzinfo=UTC)
    failed = json.dumps({"time": NOON, "request_id": "a", "images": [{"sha256": "0", "error": "not_ready"}]})
    one = write(tmp_path / "1.jsonl", failed, line(request_id="b"), line("2026-11-26T12:00Z", request_id="c"))
    other = write(tmp_path / "2.jsonl", *[line(request_id=name) for name in "abc"], line(sha256="another"))
    window = Window(since=within, model_sha256=SHIPPED.sha256)
    assert len(list(window.read([one, other]))) == 3
    assert (window.repeated, window.other_models) == (1, 1)


def test_requests_of_one_id_are_told_apart_by_their_images_and_times(tmp_path: Path) -> None:
    """A client, or a proxy, that sends the same X-Request-ID with everything."""
    same = {"request_id": "constant", "sha256": SHIPPED.sha256}
    others = [json.loads(line(**same)) for _ in range(50)]
    for number, other in enumerate(others):
        other["images"][0]["sha256"] = str(number)
    log = write(
        tmp_path / "audit.jsonl",
        *map(json.dumps, others),
        json.dumps(others[0] | {"images": others[0]["images"] * 2}),
        line("2026-11-27T12:00:00+00:00", **same, label="neutrophil"),
        line("2026-11-27T12:03:00+00:00", **same, label="neutrophil"),  # sent again
        line("2026-11-27T11:57:00+00:00", **same, label="neutrophil"),  # likewise, from another log
        line("2026-11-27T12:03:00.001+00:00", **same, label="eosinophil"),
        line("2026-11-27T12:06:01+00:00", **same, label="eosinophil"),
    )
    window = Window()
    labels = [answer.label for answer in window.read([log])]
    assert labels == ["monocyte"] * 52 + ["eosinophil"] * 2
    assert window.repeated == 3


def test_lines_that_count_requests_are_neither_answers_nor_broken(tmp_path: Path) -> None:
    summary = json.dumps({"summary": "requests", "from": NOON, "to": NOON, "status": 401, "count": 7})
    window = Window()
    assert len(list(window.read([write(tmp_path / "audit.jsonl", summary, line(), '{"lost": 3}')]))) == 1
    assert window.broken == 0


def test_the_answers_of_a_window_are_not_kept_in_memory() -> None:
    def answers() -> Iterator[Seen]:
        for _ in range(3):
            one = Seen("monocyte", 0.9, 1.2, review=False)
            kept.append(weakref.ref(one))
            yield one
            del one
            assert not [each for each in kept[:-1] if each() is not None]

    kept: list[weakref.ref[Seen]] = []
    assert summarise(answers(), CLASSES, "drawn").n == 3


@pytest.mark.parametrize("content", [b"no log\n", b"[]\n{}\n", b"\xff\xfe\n", b"5\n"])
def test_a_file_that_is_not_an_audit_log_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(Unusable, match="file"):
        list(Window().read([path]))


@pytest.mark.parametrize("name", ["absent", "short.gz", "corrupt.gz"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    packed = gzip.compress(line().encode())
    (tmp_path / "short.gz").write_bytes(packed[:-9])
    (tmp_path / "corrupt.gz").write_bytes(packed[:10] + b"\xff" * 20 + packed[30:])
    with pytest.raises(Unusable, match="cannot be read"):
        list(Window().read([tmp_path / name]))


def test_the_shipped_bundle_carries_its_answer_profile() -> None:
    assert SHIPPED.reference is not None
    assert SHIPPED.reference.n == SHIPPED.scores["n"]
    assert dump(SHIPPED.reference) == json.loads((SHIPPED.path / "config.json").read_text())["reference"]


def test_the_log_of_a_running_service_can_be_read(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    with serving(audit=str(log)) as client:
        for grey in (10, 70):
            assert client.post("/predict", files={"files": ("a.png", png(grey))}).status_code == 200
    answers = list(Window().read([log]))
    assert [(answer.label, answer.ood_score, answer.review) for answer in answers] == [
        ("eosinophil", 1.5, True),
        ("lymphocyte", 1.5, True),
    ]


def test_the_command_exits_with_3_on_drift_and_a_saved_window_is_a_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write(tmp_path / "audit.jsonl", *[line() for _ in range(300)])
    saved = tmp_path / "saved.json"
    assert main(["drift", str(log), "--save", str(saved)]) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["n"], document["reference"]["n"], document["repeated"]) == (300, 2487, 0)
    assert "drifted" in {shift["verdict"] for shift in document["shifts"]}
    assert read_reference(saved).labels["monocyte"] == 300
    assert main(["drift", str(log), "--reference", str(saved)]) == 0
    assert main(["drift", str(log), "--since", "2026-11-28"]) == 1
    assert "no answers of this bundle" in capsys.readouterr().err


def test_bytes_that_are_not_utf_8_break_their_line_only(tmp_path: Path) -> None:
    good, other = line().encode(), line().encode()
    broken = [b"\xff", good.replace(b"monocyte", b"\xe9"), good + b"\xc3"]
    (tmp_path / "audit.jsonl").write_bytes(b"\n".join([good, *broken, other]))
    window = Window()
    assert len(list(window.read([tmp_path / "audit.jsonl"]))) == 2
    assert window.broken == 3


def test_a_reference_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write(tmp_path / "audit.jsonl", *[line() for _ in range(300)])
    saved, link = tmp_path / "folder" / "saved.json", tmp_path / "link.json"
    saved.parent.mkdir()
    link.symlink_to(saved)
    saved.write_text("old")
    saved.chmod(0o640)
    with full_beyond(20):
        assert main(["drift", str(log), "--save", str(link)]) == 1
    assert capsys.readouterr().err == f"leuko: {saved}: File too large\n"
    assert saved.read_text() == "old"
    assert [*saved.parent.iterdir()] == [saved]
    assert main(["drift", str(log), "--save", str(link)]) == 3
    assert link.is_symlink()
    assert read_reference(saved).n == 300
    assert stat.S_IMODE(saved.stat().st_mode) == 0o640
    assert [*saved.parent.iterdir()] == [saved]


def test_a_reference_can_be_written_into_a_pipe(tmp_path: Path) -> None:
    log = write(tmp_path / "audit.jsonl", *[line() for _ in range(300)])
    reading, writing = os.pipe()
    assert main(["drift", str(log), "--save", f"/dev/fd/{writing}"]) == 3
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert json.load(pipe)["n"] == 300


def test_the_command_shows_a_table_on_a_terminal(tmp_path: Path) -> None:
    answers = [line() for _ in range(300)]
    log = write(tmp_path / "audit.jsonl", *answers, answers[0], line(sha256="other"), "broken")
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    assert drift([log], Settings(), Window(), console=console) == 3
    text = cast(io.StringIO, console.file).getvalue()
    for part in (
        "300 answers compared with 2487",
        "share of monocyte",
        "1.0000",
        "drifted",
        "1 answers of other models",
        "1 answers of requests that were already counted",
    ):
        assert part in text


def test_the_name_of_a_reference_formats_nothing(tmp_path: Path) -> None:
    log = write(tmp_path / "audit.jsonl", *[line() for _ in range(300)])
    reference = tmp_path / "reference.json"
    content = dump(SHIPPED.reference) if SHIPPED.reference else {}
    reference.write_text(json.dumps({**content, "of": "a[/b][link=https://c.example]d[/link]\x1b[2J"}))
    console = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    assert drift([log], Settings(reference=str(reference)), Window(), console=console) == 3
    assert "a[/b][link=https://c.example]d[/link]�[2J" in cast(io.StringIO, console.file).getvalue()


def test_a_reference_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    for content in ("{}", "no JSON", "[]"):
        path.write_text(content)
        with pytest.raises(BundleError, match="reference"):
            read_reference(path)
    with pytest.raises(BundleError, match="cannot be read"):
        read_reference(tmp_path / "absent")
