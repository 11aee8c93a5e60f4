"""The example fields of the page are those that `.ci/examples.py` draws."""

from __future__ import annotations

import runpy

import numpy as np
from PIL import Image

from tests.running import ROOT

EXAMPLES = runpy.run_path(str(ROOT / ".ci/examples.py"), run_name="examples")


def test_the_files_are_what_is_drawn() -> None:
    names = []
    for name, picture in EXAMPLES["pictures"]():
        stored = Image.open(EXAMPLES["FOLDER"] / name).convert("RGB")
        assert stored.size == picture.size
        assert np.abs(np.asarray(stored, float) - np.asarray(picture, float)).mean() < 4
        names.append(name)
    assert sorted(names) == sorted(path.name for path in EXAMPLES["FOLDER"].iterdir())


def test_the_page_names_all_of_them() -> None:
    script = (ROOT / "app/api/web/page/examples.js").read_text()
    flawed = [name for name, _ in EXAMPLES["pictures"]() if not name.startswith("field-")]
    assert all(f'"{name}"' in script for name in flawed)
    assert f"{EXAMPLES['FIELDS']}].map" in script
