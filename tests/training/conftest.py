"""A small labelled archive of drawn images, shared by the training tests."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from app.engine.bundle import CLASSES
from app.samples.smear import draw_smear
from training.data import Row, build_manifest

PHOTOS = 4  # per class
COPIES = 2  # per photo


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slides.zip"
    with zipfile.ZipFile(path, "w") as file:
        for label in CLASSES:
            for photo in range(PHOTOS):
                image = draw_smear(label, seed=photo)
                for copy in range(COPIES):
                    buffer = io.BytesIO()
                    image.rotate(15 * copy).save(buffer, "JPEG", quality=92)
                    file.writestr(f"slides/{label.upper()}/{photo}_{copy}.jpg", buffer.getvalue())
    return path


@pytest.fixture(scope="session")
def sources(archive: Path) -> dict[str, str]:
    with zipfile.ZipFile(archive) as file:
        return {name: f"{name.split('/')[1]}-{Path(name).stem[0]}" for name in file.namelist()}


@pytest.fixture(scope="session")
def rows(archive: Path, sources: dict[str, str]) -> list[Row]:
    return build_manifest(archive, sources=sources)
