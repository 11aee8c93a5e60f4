"""Load the first model on a thread while the service imports everything else."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from threading import Thread

from app.engine.classifier import Classifier
from app.inference.runtime import Load
from app.registry.fetch import locate
from app.settings import NONE, Settings


class LoadAhead:
    """A `Load` that has begun already. Only its first call, for the same folder, gets what was loaded."""

    def __init__(self, load: Load, settings: Settings) -> None:
        self._load = load
        self._settings = settings
        self._loaded: Future[tuple[Settings, Classifier]] | None = None
        # Only a bundle in a folder: fetching one needs a cache, and time in which nothing else is imported.
        if settings.models == NONE and "://" not in settings.bundle:
            self._loaded = Future()
            Thread(target=self._begin, args=(self._loaded,), name="loading", daemon=True).start()

    def __call__(self, settings: Settings) -> Classifier:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            located, classifier = loaded.result()
            if located == settings:
                return classifier
        return self._load(settings)

    def _begin(self, loaded: Future[tuple[Settings, Classifier]]) -> None:
        try:
            settings = replace(self._settings, bundle=str(locate(self._settings)))
            loaded.set_result((settings, self._load(settings)))
        except Exception as error:  # of loading, which the call raises
            loaded.set_exception(error)
