"""A lineup: the models that are served together, found by name and version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.errors import StartupError, UnknownModel
from app.inference.fair_queue import Caller
from app.inference.service import Service
from app.registry.model_runner import ModelRunner
from app.registry.models_file import ModelEntry


@dataclass(frozen=True)
class RunnerKey:
    """The entry that a runner was made for; a loaded runner is reused only for an equal key.

    config_sha256: of the bundle's config.json, so that new files at the same address get a new runner; None
    if it could not be read. default: whether it is the default model.
    """

    entry: ModelEntry
    config_sha256: str | None
    default: bool


@dataclass(frozen=True)
class Lineup:
    """Models in the order of the file, so the default first: live ones answer requests, shadows do not.

    Empty until all models are loaded; `default`, `find`, `use` and `check_room` need at least one model.
    """

    members: tuple[tuple[RunnerKey, ModelRunner], ...] = ()

    @property
    def runners(self) -> list[ModelRunner]:
        return [runner for _, runner in self.members]

    @property
    def live(self) -> list[ModelRunner]:
        """Return the models that answer requests."""
        return [runner for key, runner in self.members if not key.entry.shadow]

    @property
    def shadows(self) -> dict[ModelRunner, float]:
        """Return the shadow models, each with its share of the images."""
        return {runner: key.entry.shadow for key, runner in self.members if key.entry.shadow}

    @property
    def default(self) -> ModelRunner:
        return self.live[0]

    @property
    def depth(self) -> int:
        """Return the number of images in all queues."""
        return sum(runner.service.batcher.depth for runner in self.live)

    @property
    def capacity(self) -> int:
        return sum(runner.service.batcher.capacity for runner in self.live)

    @property
    def callers(self) -> int:
        """Return the most callers that share the queue of one model."""
        return max((runner.service.batcher.callers for runner in self.live), default=0)

    def check_room(self, caller: Caller) -> None:
        """Raise QueueFull if no model has room for the caller; which model it is for is known only later."""
        *others, last = [runner.service.batcher for runner in self.live]
        if not any(batcher.has_room(caller) for batcher in others):
            last.check_room(caller)

    def check_names(self) -> None:
        """Raise StartupError if two live models have the same name and version."""
        names = [(runner.bundle.name, runner.bundle.version) for runner in self.live]
        duplicates = [name for name in names if names.count(name) > 1]
        if duplicates:
            raise StartupError(f"two models have the same name and version: {' '.join(duplicates[0])}")

    @contextmanager
    def use(self, name: str | None = None, version: str | None = None) -> Iterator[Service]:
        """Delay retiring a model while it is used; None: the default. Raise NotReady or UnknownModel."""
        with self.find(name, version).use() as service:
            yield service

    def find(self, name: str | None = None, version: str | None = None) -> ModelRunner:
        """Return a live model; None: the default, or the first version of that name. Raise UnknownModel."""
        if name is None:
            return self.default
        named = [runner for runner in self.live if runner.bundle.name == name]
        if not named:
            raise UnknownModel("There is no model of this name.")
        matching = [runner for runner in named if version in (None, runner.bundle.version)]
        if not matching:
            raise UnknownModel(f"The model {name} has no such version.")
        return matching[0]

    def versions(self, name: str) -> list[str]:
        return [runner.bundle.version for runner in self.live if runner.bundle.name == name]

    def get(self, key: RunnerKey) -> ModelRunner | None:
        return dict(self.members).get(key)
