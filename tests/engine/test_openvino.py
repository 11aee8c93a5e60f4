from __future__ import annotations

import subprocess
import sys

import numpy as np
import openvino
import pytest

from app.engine.bundle import load_bundle
from app.engine.openvino import OpenVinoEngine
from tests.test_shipped import BUNDLE


@pytest.fixture(scope="module")
def engine() -> OpenVinoEngine:
    return OpenVinoEngine(load_bundle(BUNDLE), threads=2)


def test_no_processor_computes_in_bfloat16(engine: OpenVinoEngine) -> None:
    # The default where there is AMX; the shipped graph cannot be compiled with it.
    with engine._take(1) as [request]:
        hint = request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
    assert hint == openvino.Type.f32


def test_two_threads_may_be_the_first_to_use_it() -> None:
    threads = """
import builtins, threading, time
import app.engine.openvino, openvino

find = builtins.__import__

def slowly(name, *arguments, **options):
    if name.startswith("numpy"):
        time.sleep(0.3)  # lets the other thread run, as it may do at any import
    return find(name, *arguments, **options)

builtins.__import__ = slowly
both = [threading.Thread(target=openvino.Type.u8.to_dtype) for _ in range(2)]
for one in both:
    one.start()
for one in both:
    one.join()
"""
    subprocess.run([sys.executable, "-c", threads], check=True, timeout=60)


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(engine: OpenVinoEngine) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), np.uint8)
    together = engine.infer(pixels, maps=True)
    assert together.maps is not None
    for exclusive in (True, False):
        for i in range(len(pixels)):
            alone = engine.infer(pixels[i : i + 1], maps=True, exclusive=exclusive)
            assert alone.maps is not None
            assert np.array_equal(alone.logits[0], together.logits[i])
            assert np.array_equal(alone.features[0], together.features[i])
            assert np.array_equal(alone.maps[0], together.maps[i])


def test_a_call_takes_no_more_streams_than_it_needs(engine: OpenVinoEngine) -> None:
    assert engine._streams == 2
    with engine._take(1) as one, engine._take(2) as other:
        assert len(one) == len(other) == 1
    with engine._take(2) as both:
        assert len(both) == 2
