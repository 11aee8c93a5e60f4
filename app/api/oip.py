"""Open Inference Protocol v2: requests and answers of `infer`, in JSON and with Triton's binary tensors.

https://github.com/kserve/open-inference-protocol, and Triton's extensions binary_data and classification.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from app.engine.classifier import Prediction
from app.errors import MalformedRequest, TooLarge

EXTENSIONS = ("binary_tensor_data", "classification")
DEFAULT_OUTPUTS = ("probabilities", "label")
LENGTH = struct.Struct("<I")  # before each element of a BYTES tensor

Name = Literal["probabilities", "label", "confidence", "ood_score", "review"]
Tensor = dict[str, Any]


class _InputParameters(BaseModel):
    binary_data_size: Annotated[int, Field(ge=0)] | None = None


class _Input(BaseModel):
    name: Literal["image"]
    datatype: Literal["BYTES"]
    shape: tuple[Annotated[int, Field(ge=1)]]
    parameters: _InputParameters = _InputParameters()
    data: list[str] | None = None


class _OutputParameters(BaseModel):
    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0)] = 0


class _Output(BaseModel):
    name: Name
    parameters: _OutputParameters = _OutputParameters()


class _RequestParameters(BaseModel):
    binary_data_output: bool = False


class _Request(BaseModel):
    id: str | None = Field(None, max_length=1024)
    parameters: _RequestParameters = _RequestParameters()
    inputs: tuple[_Input]
    outputs: list[_Output] = Field([], max_length=16)


@dataclass(frozen=True)
class Output:
    """classification: how many of the best classes are wanted as text, 0 for numbers."""

    name: str
    binary: bool
    classification: int


@dataclass(frozen=True)
class Inference:
    """What a client asks for; images: each as in a file."""

    id: str | None
    images: list[bytes]
    outputs: list[Output]


@dataclass(frozen=True)
class Answer:
    """header_bytes: of the JSON before binary tensors; None where there are none."""

    body: bytes
    header_bytes: int | None


def parse(body: bytes, header_length: str | None, *, most_images: int, most_bytes: int) -> Inference:
    """header_length: the header Inference-Header-Content-Length, where JSON is followed by tensors.

    Raises MalformedRequest, TooLarge.
    """
    size = _header_size(header_length, len(body))
    try:
        request = _Request.model_validate_json(body[:size])
    except ValidationError as error:
        raise MalformedRequest(_explain(error)) from None
    (image,) = request.inputs
    (count,) = image.shape
    if count > most_images:
        raise TooLarge(f"input image has {count} elements; at most {most_images} are accepted")
    images = _elements(image, memoryview(body)[size:], most_bytes)
    if len(images) != count:
        raise MalformedRequest(f"input image has {len(images)} elements, its shape says {count}")
    return Inference(request.id, images, _outputs(request))


def encode(
    asked: Inference, found: Sequence[Prediction], *, name: str, version: str, labels: Sequence[str]
) -> Answer:
    """found: one for each image. FP32 and BYTES are little-endian."""
    tensors, binary = [], []
    for output in asked.outputs:
        datatype, values = _values(output, found, labels)
        shape = list(values.shape)
        tensor: Tensor = {"name": output.name, "datatype": datatype, "shape": shape}
        if output.binary:
            packed = _pack(values)
            tensor["parameters"] = {"binary_data_size": len(packed)}
            binary.append(packed)
        else:
            tensor["data"] = values.ravel().tolist()
        tensors.append(tensor)
    document = {"model_name": name, "model_version": version, "outputs": tensors}
    if asked.id is not None:
        document["id"] = asked.id
    header = json.dumps(document).encode()
    return Answer(b"".join([header, *binary]), len(header) if binary else None)


def describe(name: str, versions: Sequence[str], platform: str, classes: int) -> Tensor:
    """The metadata of the model; -1 is as many as there are images."""
    shapes = {
        "probabilities": ("FP32", [-1, classes]),
        "label": ("BYTES", [-1]),
        "confidence": ("FP32", [-1]),
    }
    shapes |= {"ood_score": ("FP32", [-1]), "review": ("BOOL", [-1])}
    return {
        "name": name,
        "versions": versions,
        "platform": platform,
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": output, "datatype": kind, "shape": shape} for output, (kind, shape) in shapes.items()
        ],
    }


def _header_size(text: str | None, most: int) -> int:
    if text is None:
        return most
    if not (text.isascii() and text.isdigit() and len(text) < 18 and int(text) <= most):
        raise MalformedRequest("Inference-Header-Content-Length is no length within the body")
    return int(text)


def _explain(error: ValidationError) -> str:
    faults = error.errors(include_input=False, include_context=False)[:3]
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in faults)


def _elements(image: _Input, rest: memoryview, most_bytes: int) -> list[bytes]:
    size = image.parameters.binary_data_size
    if (size is None) == (image.data is None):
        raise MalformedRequest("input image needs either data or binary_data_size")
    if len(rest) != (size or 0):
        raise MalformedRequest(f"{len(rest)} bytes follow the JSON, {size or 0} are announced")
    found = _unpack(rest) if size is not None else _decode(image.data or [])
    images = []
    for index, element in enumerate(found):
        if len(element) > most_bytes:
            raise TooLarge(f"image {index} has {len(element)} bytes; at most {most_bytes} are accepted")
        images.append(element)
    return images


def _unpack(rest: memoryview) -> Iterator[bytes]:
    place = 0
    while place < len(rest):
        if place + LENGTH.size > len(rest):
            raise MalformedRequest("the tensor of input image ends within a length")
        (size,) = LENGTH.unpack_from(rest, place)
        place += LENGTH.size
        if place + size > len(rest):
            raise MalformedRequest("the tensor of input image ends within an element")
        yield bytes(rest[place : place + size])
        place += size


def _decode(data: Sequence[str]) -> Iterator[bytes]:
    for index, text in enumerate(data):
        try:
            yield base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise MalformedRequest(f"image {index} is not base64, as images in JSON must be") from None


def _outputs(request: _Request) -> list[Output]:
    binary = request.parameters.binary_data_output
    outputs = []
    for output in request.outputs:
        asked = output.parameters
        if asked.classification and output.name != "probabilities":
            raise MalformedRequest("classification is only of the output probabilities")
        chosen = binary if asked.binary_data is None else asked.binary_data
        outputs.append(Output(output.name, chosen, asked.classification))
    if len({output.name for output in outputs}) < len(outputs):
        raise MalformedRequest("an output is asked for twice")
    return outputs or [Output(name, binary, 0) for name in DEFAULT_OUTPUTS]


def _values(
    output: Output, found: Sequence[Prediction], labels: Sequence[str]
) -> tuple[str, np.ndarray[Any, np.dtype[Any]]]:
    if output.classification:
        best = [_best(one.probabilities, labels, output.classification) for one in found]
        return "BYTES", np.array(best, object)
    if output.name == "label":
        return "BYTES", np.array([one.label for one in found], object)
    if output.name == "review":
        return "BOOL", np.array([one.review for one in found], bool)
    return "FP32", np.array([getattr(one, output.name) for one in found], np.float32)


def _best(probabilities: Sequence[float], labels: Sequence[str], most: int) -> list[str]:
    """Triton's `value:index:label`, the most probable first."""
    order = sorted(range(len(labels)), key=lambda index: -probabilities[index])[:most]
    return [f"{probabilities[index]:f}:{index}:{labels[index]}" for index in order]


def _pack(values: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    if values.dtype != object:
        return values.astype(values.dtype.newbyteorder("<")).tobytes()
    texts = [str(text).encode() for text in values.ravel()]
    return b"".join(LENGTH.pack(len(text)) + text for text in texts)
