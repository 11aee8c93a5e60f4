from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from app.engine.classifier import Classifier
from app.errors import BundleError
from app.registry.fetch import locate
from app.server.ahead import LoadAhead
from app.settings import Settings

SETTINGS = Settings()
LOCATED = replace(SETTINGS, bundle=str(locate(SETTINGS)))


class Loader:
    """Notes what it was asked to load. fails: it cannot."""

    def __init__(self, *, fails: bool = False) -> None:
        self.loaded: list[Settings] = []
        self._fails = fails

    def __call__(self, settings: Settings) -> Classifier:
        self.loaded.append(settings)
        if self._fails:
            raise BundleError("broken")
        return cast(Classifier, len(self.loaded))


def test_the_first_call_gets_what_was_loaded_ahead_and_later_ones_load() -> None:
    load = Loader()
    ahead = LoadAhead(load, SETTINGS)
    results: list[object] = [ahead(LOCATED), ahead(LOCATED)]
    assert results == [1, 2]
    assert load.loaded == [LOCATED, LOCATED]


def test_another_bundle_is_not_mistaken_for_the_one_that_was_loaded() -> None:
    load = Loader()
    ahead = LoadAhead(load, SETTINGS)
    other = replace(SETTINGS, bundle="models/other")
    result: object = ahead(other)
    assert result == 2
    assert load.loaded == [LOCATED, other]


def test_the_call_raises_the_error_of_loading() -> None:
    ahead = LoadAhead(Loader(fails=True), SETTINGS)
    with pytest.raises(BundleError, match="broken"):
        ahead(LOCATED)


@pytest.mark.parametrize("change", [{"bundle": "hf://owner/name"}, {"models": "models.toml"}])
def test_nothing_is_loaded_ahead_that_must_be_fetched_or_is_listed_in_a_file(change: dict[str, str]) -> None:
    load, settings = Loader(), replace(SETTINGS, **change)  # type: ignore[arg-type]
    ahead = LoadAhead(load, settings)
    assert load.loaded == []
    result: object = ahead(settings)
    assert result == 1
