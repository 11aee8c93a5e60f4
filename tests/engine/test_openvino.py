from __future__ import annotations

import openvino

from app.engine.bundle import load_bundle
from app.engine.openvino import OpenVinoEngine
from tests.test_shipped import BUNDLE


def test_no_processor_computes_in_bfloat16() -> None:
    # The default where there is AMX; the shipped graph cannot be compiled with it.
    engine = OpenVinoEngine(load_bundle(BUNDLE), threads=1)
    for requests in (engine._all_threads, engine._streams):
        with requests.take() as request:
            hint = request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
        assert hint == openvino.Type.f32
