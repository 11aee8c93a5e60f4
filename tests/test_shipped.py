"""The bundle in models/, as a user gets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from app.engine.bundle import CLASSES, FILES
from app.engine.classifier import Classifier, Prediction, load_classifier
from app.imaging.decode import decode
from app.imaging.framing import Cell, frame_cell
from app.samples.smear import draw_smear
from training.config import config_from, load_recipe

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "models" / "wbc-resnet18"
PAPER_ACCURACY = 0.8689


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return load_classifier(BUNDLE, "openvino")


def cells(classifier: Classifier, n: int = 8) -> list[Cell]:
    return [frame_cell(draw_smear(CLASSES[i % 4], seed=i), classifier.bundle.preprocessing) for i in range(n)]


def probabilities(answers: list[Prediction | Exception]) -> np.ndarray:
    assert all(isinstance(answer, Prediction) for answer in answers)
    return np.array([answer.probabilities for answer in answers if isinstance(answer, Prediction)])


def test_it_warms_up_and_knows_its_answer_on_either_engine(classifier: Classifier) -> None:
    classifier.warm_up(2)
    load_classifier(BUNDLE, "torch").warm_up(1)


def test_numpy_leaves_the_cores_to_the_engine(classifier: Classifier) -> None:
    assert classifier.engine.name == "openvino"
    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert set(blas) == {1}


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(classifier: Classifier) -> None:
    batch = cells(classifier)
    together = probabilities(list(classifier.classify(batch)))
    exclusive = probabilities([classifier.classify([cell])[0] for cell in batch])
    assert np.abs(together - exclusive).max() < 1e-3


def test_threads_that_classify_at_the_same_time_get_the_answers_of_one_that_is_alone(
    classifier: Classifier,
) -> None:
    batches = [cells(classifier)[start : start + 2] for start in range(7)] * 4
    expected = [probabilities(list(classifier.classify(batch))) for batch in batches]
    with ThreadPoolExecutor(2 * classifier.engine.workers) as pool:
        found = pool.map(
            lambda batch: probabilities(list(classifier.classify(batch, exclusive=False))), batches
        )
        for one, other in zip(found, expected, strict=True):
            assert np.abs(one - other).max() < 1e-3


def test_the_two_engines_give_the_same_probabilities_but_for_rounding(classifier: Classifier) -> None:
    batch = cells(classifier)
    int8 = probabilities(list(classifier.classify(batch)))
    float32 = probabilities(list(load_classifier(BUNDLE, "torch").classify(batch)))
    assert np.abs(int8 - float32).mean() < 0.02


def test_probabilities_sum_to_one(classifier: Classifier) -> None:
    assert np.abs(probabilities(list(classifier.classify(cells(classifier)))).sum(axis=1) - 1).max() < 1e-6


def test_the_cpu_service_never_imports_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "from pathlib import Path\n"
        "import app.api.application\n"
        "from app.engine.classifier import load_classifier\n"
        f"load_classifier(Path({str(BUNDLE)!r})).warm_up(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_model_card_says_what_the_report_says() -> None:
    report = json.loads((BUNDLE / "report.json").read_text())
    config = json.loads((BUNDLE / "config.json").read_text())
    assert report["accuracy"] > PAPER_ACCURACY
    assert config["scores"]["accuracy"] == pytest.approx(report["accuracy"], abs=1e-4)
    assert f"{report['accuracy']:.4f}" in (BUNDLE / "README.md").read_text()


def test_it_was_selected_without_looking_at_test() -> None:
    recipe = json.loads((BUNDLE / "config.json").read_text())["training"]["recipe"]
    assert (recipe["select_on"], recipe["monitor"]) == ("laboratories", "last")


def test_it_is_what_its_recipe_makes() -> None:
    shipped = config_from(json.loads((BUNDLE / "config.json").read_text())["training"]["recipe"])
    recipe = load_recipe("laboratories")
    assert shipped.initial == Path(recipe.initial).name
    starts = replace(shipped, initial=recipe.initial, initial_elsewhere=recipe.initial_elsewhere)
    assert starts == recipe


def test_the_repository_stays_small() -> None:
    assert sum((BUNDLE / name).stat().st_size for name in FILES) < 60 * 2**20


def test_real_cells_are_recognised(classifier: Classifier) -> None:
    path = Path(os.environ.get("LEUKO_DATA", ROOT / ".." / "shared" / "data")) / "blood-cells.zip"
    if not path.is_file():
        pytest.skip("LEUKO_DATA is absent: no real cell is classified")
    with zipfile.ZipFile(path) as archive:
        names = [n for n in sorted(archive.namelist()) if "/TEST_SIMPLE/" in n and n.endswith(".jpeg")]
        images = [decode(archive.read(name)) for name in names]
    batch = [frame_cell(image, classifier.bundle.preprocessing) for image in images]
    found = probabilities(list(classifier.classify(batch))).argmax(axis=1)
    truth = np.array([CLASSES.index(name.split("/")[-2].lower()) for name in names])
    assert (found == truth).mean() > PAPER_ACCURACY
