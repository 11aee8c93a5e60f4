"""Bundles with a laboratory's own labels, made in a moment: the network knows cells by their grey.

The greys from 0 to 255 are divided among the labels: `grey_of` is the middle of a label's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from app.engine.bundle import CONFIG, FILES, FORMAT, GRAPH, KNOWN_ANSWER, OOD, WEIGHTS
from app.engine.classifier import softmax
from app.evaluation.answer_profile import Seen, dump, summarise
from app.imaging.framing import Preprocessing
from tests.fake_classifier import png

SIZE, FEATURES = 32, 4
SHARPNESS = 0.2  # of the logits, per squared level of grey


def grey_of(label: str, labels: Sequence[str]) -> int:
    return round((labels.index(label) + 0.5) * 256 / len(labels))


def cell(label: str, labels: Sequence[str]) -> bytes:
    """Return a PNG that the bundle with these labels takes for the label."""
    return png(grey_of(label, labels))


def write_bundle(
    folder: Path,
    labels: Sequence[str],
    *,
    name: str = "own",
    version: str = "1",
    codes: Mapping[str, Mapping[str, str]] | None = None,
    **changes: Any,
) -> Path:
    """Write a bundle that OpenVINO can run. changes: of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    greys = np.array([grey_of(label, labels) for label in labels], np.float32)
    onnx.save(_graph(greys), folder / GRAPH)
    save_file({"fc.weight": np.ones((len(labels), FEATURES), np.float32)}, folder / WEIGHTS)
    bank = np.linspace(0, 1, 64, dtype=np.float32)[:, None] * np.ones(FEATURES, np.float32)
    save_file({"bank": bank, "k": np.array([1]), "scale": np.array([1.0])}, folder / OOD)
    Image.new("RGB", (SIZE, SIZE), (int(greys[0]),) * 3).save(folder / KNOWN_ANSWER)
    answers = [Seen(label, 0.9, 1.0, review=False) for label in labels]
    config = {
        "format": FORMAT,
        "name": name,
        "version": version,
        "labels": list(labels),
        "preprocessing": asdict(Preprocessing(size=SIZE, framing="whole", white_point=False)),
        "temperature": 1.0,
        "review": {"confidence": 0.5, "ood_score": 3.0},
        "known_answer": softmax(_logits(greys[0], greys)[None])[0].tolist(),
        "files": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in FILES},
        "training": {},
        "scores": {},
        "reference": dump(summarise(answers, labels, "one cell of each class")),
    }
    if codes is not None:
        config["codes"] = codes
    (folder / CONFIG).write_text(json.dumps(config | changes))
    return folder


def _logits(grey: np.floating[Any], greys: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    return -SHARPNESS * (grey - greys) ** 2


def _graph(greys: np.ndarray[Any, np.dtype[np.float32]]) -> onnx.ModelProto:
    """Return a network: pixels → mean grey → logits by its distance to each label's grey."""
    constants: dict[str, np.ndarray[Any, Any]] = {
        "greys": greys[None],
        "sharpness": np.array(-SHARPNESS, np.float32),
        "level": np.full((1, FEATURES), 1 / 255, np.float32),
        "column": np.array([-1, 1], np.int64),
        "square": np.array([-1, FEATURES, SIZE // 32, SIZE // 32], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Reshape", ["mean", "column"], ["grey"]),
        helper.make_node("Sub", ["grey", "greys"], ["distance"]),
        helper.make_node("Mul", ["distance", "distance"], ["squared"]),
        helper.make_node("Mul", ["squared", "sharpness"], ["logits"]),
        helper.make_node("Mul", ["grey", "level"], ["features"]),
        helper.make_node("Reshape", ["features", "square"], ["maps"]),
    ]
    images = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIZE, SIZE, 3])
    shapes: dict[str, list[str | int | None]] = {"logits": ["n", len(greys)], "features": ["n", FEATURES]}
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes.get(name, ["n", FEATURES, 1, 1]))
        for name in ("logits", "features", "maps")
    ]
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "greys", [images], outputs, initial)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
