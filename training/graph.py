"""Export of the network as an ONNX graph, and its quantisation to int8."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout

import numpy as np
import torch
from numpy.typing import NDArray

from training.network import Network

OUTPUTS = ("logits", "features", "maps")


def export_graph(network: Network, size: int) -> bytes:
    """Return an ONNX model: pixels uint8 [n, size, size, 3] → logits, features, maps in float32.

    Normalisation is part of the graph.
    """
    buffer = io.BytesIO()
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    torch.onnx.export(
        network,
        (example,),
        buffer,  # type: ignore[arg-type]  # the tracing exporter writes to a buffer too
        input_names=["pixels"],
        output_names=list(OUTPUTS),
        dynamic_axes={name: {0: "n"} for name in ("pixels", *OUTPUTS)},
        dynamo=False,  # tracing folds batch norm; NNCF corrects biases only of folded convolutions
    )
    return buffer.getvalue()


def quantise(model: bytes, images: Sequence[NDArray[np.uint8]]) -> bytes:
    """Quantise an ONNX model to int8 with NNCF; ranges from `images`, each uint8 [1, size, size, 3]."""
    for name in ("nncf", "torch.utils.cpp_extension"):  # the latter: that there is no CUDA
        logging.getLogger(name).setLevel(logging.ERROR)
    import nncf
    import onnx

    dataset = nncf.Dataset(list(images), lambda image: {"pixels": image})
    with redirect_stdout(io.StringIO()):  # its progress bars
        quantised = nncf.quantize(
            onnx.load_from_string(model),
            dataset,
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
        )
    content: bytes = quantised.SerializeToString()
    return content
