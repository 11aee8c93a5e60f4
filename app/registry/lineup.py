"""The models that are served together: which of them is meant, and whether there is room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.errors import StartupError, UnknownModel
from app.inference.service import Service
from app.registry.model_runner import ModelRunner
from app.registry.models_file import ModelEntry


@dataclass(frozen=True)
class Place:
    """What a runner was made for; bundles of one address but other files are others."""

    entry: ModelEntry
    config_sha256: str | None
    default: bool


@dataclass(frozen=True)
class Lineup:
    """In the order of the file, so the default first. Shadows answer nobody.

    Empty until all are loaded; then alone may it be asked for a model, or for room.
    """

    places: tuple[tuple[Place, ModelRunner], ...] = ()

    @property
    def runners(self) -> list[ModelRunner]:
        return [runner for _, runner in self.places]

    @property
    def answering(self) -> list[ModelRunner]:
        return [runner for place, runner in self.places if not place.entry.shadow]

    @property
    def shadows(self) -> dict[ModelRunner, float]:
        """With their shares."""
        return {runner: place.entry.shadow for place, runner in self.places if place.entry.shadow}

    @property
    def default(self) -> ModelRunner:
        return self.answering[0]

    @property
    def depth(self) -> int:
        return sum(runner.service.batcher.depth for runner in self.answering)

    @property
    def capacity(self) -> int:
        return sum(runner.service.batcher.capacity for runner in self.answering)

    def check_room(self) -> None:
        """Raises QueueFull where no model has room; what is for one of several is known later."""
        *others, last = [runner.service.batcher for runner in self.answering]
        if not any(batcher.depth < batcher.capacity for batcher in others):
            last.check_room()

    def check_names(self) -> None:
        """Raises StartupError where two that answer could not be told apart."""
        names = [(runner.bundle.name, runner.bundle.version) for runner in self.answering]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise StartupError(f"two bundles are called {' '.join(twice[0])}")

    @contextmanager
    def use(self, name: str | None = None, version: str | None = None) -> Iterator[Service]:
        """None: the default. Raises NotReady, UnknownModel."""
        with self.find(name, version).use() as service:
            yield service

    def find(self, name: str | None = None, version: str | None = None) -> ModelRunner:
        """The first of the name, where no version is given. Raises UnknownModel."""
        if name is None:
            return self.default
        named = [runner for runner in self.answering if runner.bundle.name == name]
        if not named:
            raise UnknownModel("There is no model of this name.")
        found = [runner for runner in named if version in (None, runner.bundle.version)]
        if not found:
            raise UnknownModel(f"The model {name} has no such version.")
        return found[0]

    def versions(self, name: str) -> list[str]:
        return [runner.bundle.version for runner in self.answering if runner.bundle.name == name]

    def at(self, place: Place) -> ModelRunner | None:
        return dict(self.places).get(place)
