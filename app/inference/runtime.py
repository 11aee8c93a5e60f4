"""Settings, metrics and the bundle loader, which all models of a process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.engine.classifier import Classifier
from app.observability.metrics import Telemetry
from app.settings import Settings

Load = Callable[[Settings], Classifier]  # loads the bundle of the settings; raises BundleError


@dataclass(frozen=True)
class Runtime:
    """load: loads a bundle; tests replace it with a fake."""

    settings: Settings
    telemetry: Telemetry
    load: Load
