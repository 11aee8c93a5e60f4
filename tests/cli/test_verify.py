from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import cast

import pytest

from app.cli.main import main
from app.engine.bundle import CLASSES, Bundle, load_bundle
from app.engine.classifier import Classifier, Prediction, load_classifier
from app.imaging.decode import decode
from app.imaging.framing import frame_cell
from app.settings import Settings
from tests.engine.test_site_bundle import bundle as bundle  # a fixture
from tests.fake_classifier import FakeClassifier, png
from tests.pictures import real

WHO = ("--site", "Ward <3>", "--by", "A. Tester & Co")


def labelled(folder: Path, *, wrong: int = 0) -> Path:
    """Write five cells of each class; of the first class, some look like the second."""
    for index, label in enumerate(CLASSES):
        for number in range(5):
            grey = 64 * index + number + (74 if index == 0 and number < wrong else 0)
            file = folder / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(grey))
    return folder


class Loads:
    """Loads a classifier of this bundle that knows the cells, with a low OOD score."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def __call__(self, _: Settings) -> Classifier:
        classifier = FakeClassifier()
        classifier.bundle = self.bundle
        return cast(Classifier, classifier)


def test_a_verified_bundle_lies_beside_the_old_one_with_a_report(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = labelled(tmp_path / "cells")
    assert main(["verify", str(cells), *WHO], load=Loads(bundle)) == 0
    printed = capsys.readouterr()
    out = tmp_path / "wbc-ward-3"
    assert str(out) in printed.err
    site = load_bundle(out).site
    assert site is not None
    assert (site.name, site.cells, site.balanced_accuracy, site.adapted) == ("Ward <3>", 20, 1.0, False)
    assert site.parent_sha256 == bundle.sha256
    document = json.loads(printed.out)
    assert json.loads((out / "verification.json").read_text()) == document
    assert document["verification"]["by_class"] == dict.fromkeys(CLASSES, 5)
    page = (out / "verification.html").read_text(encoding="utf-8")
    assert "Ward &lt;3&gt;" in page
    assert "A. Tester &amp; Co" in page
    assert "20 cells say little" in page
    assert bundle.sha256 in page


def test_where_no_thresholds_are_good_enough_the_report_alone_is_written(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = labelled(tmp_path / "cells", wrong=4)
    assert main(["verify", str(cells), *WHO], load=Loads(bundle)) == 3
    printed = capsys.readouterr()
    assert "no bundle was written" in printed.err
    assert json.loads(printed.out)["verification"]["proposed"] is None
    out = tmp_path / "wbc-ward-3"
    assert sorted(file.name for file in out.iterdir()) == ["verification.html", "verification.json"]
    assert "review all cells" in (out / "verification.html").read_text(encoding="utf-8")
    shutil.rmtree(out)
    assert main(["verify", str(cells), *WHO, "--right-when-kept", "0.75"], load=Loads(bundle)) == 0


def test_a_bundle_that_was_adapted_without_labels_stays_an_adapted_one(
    bundle: Bundle, tmp_path: Path
) -> None:
    config = json.loads((bundle.path / "config.json").read_text())
    config["training"] = {"adapted": {"unlabelled": 60}}
    (bundle.path / "config.json").write_text(json.dumps(config))
    cells = labelled(tmp_path / "cells")
    assert main(["verify", str(cells), *WHO], load=Loads(load_bundle(bundle.path))) == 0
    site = load_bundle(tmp_path / "wbc-ward-3").site
    assert site is not None
    assert site.adapted


def test_a_laboratory_sets_its_own_thresholds_and_the_report_says_what_they_cost(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = labelled(tmp_path / "cells", wrong=4)  # no thresholds reach the target
    command = ["verify", str(cells), *WHO, "--confidence", "0.65"]
    assert main(command, load=Loads(bundle)) == 0
    figures = json.loads(capsys.readouterr().out)["verification"]
    assert figures["chosen"]["thresholds"] == {"confidence": 0.65, "ood_score": bundle.review_ood_score}
    assert figures["chosen"]["right_when_kept"] == pytest.approx(0.8)
    written = load_bundle(tmp_path / "wbc-ward-3")
    assert (written.review_confidence, written.review_ood_score) == (0.65, bundle.review_ood_score)
    assert written.site is not None
    assert written.site.right_when_kept == pytest.approx(0.8)
    page = (tmp_path / "wbc-ward-3" / "verification.html").read_text(encoding="utf-8")
    assert "set by this laboratory" in page
    assert "80.0 % of 20 cells (58.4 % to 91.9 %)" in page
    assert "80.0% of the kept cells are right, not 95%" in page
    assert "With an OOD score of at most 2.000" in page


def test_thresholds_that_keep_nothing_send_all_to_review(bundle: Bundle, tmp_path: Path) -> None:
    cells = labelled(tmp_path / "cells")
    command = ["verify", str(cells), *WHO, "--confidence", "0.9", "--ood-score", "0"]
    assert main(command, load=Loads(bundle)) == 0
    site = load_bundle(tmp_path / "wbc-ward-3").site
    assert site is not None
    assert (site.review_share, site.right_when_kept) == (1, None)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--confidence", "1.1"), ("--confidence", "nan"), ("--ood-score", "-1"), ("--ood-score", "inf")],
)
def test_thresholds_that_make_no_sense_are_usage_errors(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["verify", "cells", *WHO, f"{option}={value}"])
    assert end.value.code == 2
    assert option in capsys.readouterr().err


def test_the_same_cells_have_the_same_hash_under_other_names(bundle: Bundle, tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        cells = labelled(tmp_path / name)
        (cells / CLASSES[0] / "0.png").rename(cells / CLASSES[0] / f"{name}.png")
        out = tmp_path / f"out-{name}"
        assert main(["verify", str(cells), *WHO, "--out", str(out)], load=Loads(bundle)) == 0
        hashes.append(json.loads((out / "verification.json").read_text())["data"]["sha256"])
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--site", " ", "--by", "x"], "the laboratory's name"),
        (["--site", "x", "--by", " "], "--by needs"),
        (["--site", "wbc", "--by", "x", "--out", "."], "exists already"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_classified(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert main(["verify", str(labelled(tmp_path / "cells")), *arguments], load=Loads(bundle)) == 2
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert not printed.out


@pytest.mark.parametrize("share", ["0.4", "1.1", "nan", "most"])
def test_a_share_that_makes_no_sense_is_a_usage_error(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["verify", "cells", *WHO, "--right-when-kept", share])
    assert end.value.code == 2
    assert "--right-when-kept" in capsys.readouterr().err


def test_a_terminal_shows_tables(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["verify", str(labelled(tmp_path / "cells")), *WHO], load=Loads(bundle)) == 0
    assert "20 cells of this laboratory" in screen.getvalue()
    assert "what other confidences cost" in " ".join(screen.getvalue().split())


def test_a_picture_in_two_classes_is_refused_by_name(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = labelled(tmp_path / "cells")
    shutil.copy(cells / CLASSES[0] / "1.png", cells / CLASSES[2] / "again.png")
    for command in (["verify", str(cells), *WHO], ["evaluate", str(cells)]):
        assert main(command, load=Loads(bundle)) == 1
        assert "in two classes: eosinophil/1.png and monocyte/again.png" in capsys.readouterr().err
    assert not (tmp_path / "wbc-ward-3").exists()


def test_a_picture_that_cannot_be_read_is_refused_by_name(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = labelled(tmp_path / "cells")
    (cells / "monocyte" / "cut.png").write_bytes(png(0)[:40])
    assert main(["verify", str(cells), *WHO], load=Loads(bundle)) == 1
    assert "pictures that cannot be read: monocyte/cut.png" in capsys.readouterr().err
    assert not (tmp_path / "wbc-ward-3").exists()


def test_cells_that_the_bundle_was_adapted_to_are_no_verification(bundle: Bundle, tmp_path: Path) -> None:
    cells = labelled(tmp_path / "cells")
    seen = [hashlib.sha256((cells / "monocyte" / f"{i}.png").read_bytes()).hexdigest()[:16] for i in range(2)]
    config = json.loads((bundle.path / "config.json").read_text())
    config["training"] = {"adapted": {"pictures": seen}}
    (bundle.path / "config.json").write_text(json.dumps(config))
    assert main(["verify", str(cells), *WHO], load=Loads(load_bundle(bundle.path))) == 0
    document = json.loads((tmp_path / "wbc-ward-3" / "verification.json").read_text())
    assert "adapted to 2 of these 20 cells" in document["verification"]["warnings"][0]


def test_a_class_of_one_slide_and_a_target_of_many_digits_are_said(bundle: Bundle, tmp_path: Path) -> None:
    cells = labelled(tmp_path / "cells")
    groups = tmp_path / "groups.csv"
    rows = [f"{label}/{i}.png,{label if label == 'monocyte' else i}" for label in CLASSES for i in range(5)]
    groups.write_text("\n".join(["name,group", *rows]))
    command = ["verify", str(cells), *WHO, "--groups", str(groups), "--right-when-kept", "0.999"]
    assert main(command, load=Loads(bundle)) == 0
    page = (tmp_path / "wbc-ward-3" / "verification.html").read_text(encoding="utf-8")
    assert "All cells of monocyte are of one patient or slide" in page
    assert "99.9% of the kept ones are right" in page
    assert "do not show that 99.9% of others are" in page


def test_cells_of_one_slide_have_no_interval(bundle: Bundle, tmp_path: Path) -> None:
    command = ["verify", str(labelled(tmp_path / "cells")), *WHO, "--group-pattern", "(png)"]
    assert main(command, load=Loads(bundle)) == 0
    site = load_bundle(tmp_path / "wbc-ward-3").site
    assert site is not None
    assert site.interval is None
    page = (tmp_path / "wbc-ward-3" / "verification.html").read_text(encoding="utf-8")
    assert "(interval not known)" in page
    assert "All cells are of one patient or slide: nothing is known about others." in page


def test_verifying_on_real_cells_does_not_let_more_basophils_pass(tmp_path: Path) -> None:
    """The first twenty cells of each class of a laboratory, then its basophils, which are of no class."""
    with zipfile.ZipFile(real("raabin-cells.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        for label in CLASSES:
            for name in [name for name in names if f"/{label}/" in name][:20]:
                (tmp_path / "cells" / label).mkdir(parents=True, exist_ok=True)
                (tmp_path / "cells" / label / Path(name).name).write_bytes(archive.read(name))
        (tmp_path / "basophils").mkdir()
        for name in [name for name in names if "/basophil/" in name]:
            (tmp_path / "basophils" / Path(name).name).write_bytes(archive.read(name))
    shipped, mine = Path(__file__).parents[2] / "models" / "wbc-resnet18", tmp_path / "mine"
    command = ["verify", str(tmp_path / "cells"), *WHO, "--bundle", str(shipped), "--out", str(mine)]
    assert main(command) == 0

    def marked(bundle: Path) -> int:
        classifier = load_classifier(bundle, "openvino")
        pictures = sorted((tmp_path / "basophils").iterdir())
        framed = [frame_cell(decode(one.read_bytes()), classifier.bundle.preprocessing) for one in pictures]
        return sum(isinstance(one, Prediction) and one.review for one in classifier.classify(framed))

    assert marked(mine) >= marked(shipped) > 70
