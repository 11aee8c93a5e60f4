"""`leuko serve` with a fake classifier that takes any picture, so that every 500 is the service's own."""

from __future__ import annotations

import sys
from typing import cast

from app.cli.main import main
from app.engine.classifier import Classifier, Prediction
from app.errors import EngineError
from app.settings import Settings
from tests.fake_classifier import NAN, FakeClassifier

UNSHAKEN = "import tests.safety.unshaken as unshaken; unshaken.serve()"


class UnshakenClassifier(FakeClassifier):
    def _predict(self, grey: int) -> Prediction | EngineError:
        return super()._predict(min(grey, NAN - 1))


def load(_: Settings) -> Classifier:
    return cast(Classifier, UnshakenClassifier())


def serve() -> None:
    sys.exit(main(load=load))
