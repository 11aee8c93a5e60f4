from __future__ import annotations

import pytest

import app.bulk.plan


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.bulk.plan, "IMAGES", 7)
