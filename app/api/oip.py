"""Open Inference Protocol v2: requests and responses of `infer`, in JSON and with Triton's binary tensors.

https://github.com/kserve/open-inference-protocol, and Triton's extensions binary_data and classification.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from app import validation
from app.api.long_texts import LONG, cut_out, decode_base64
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
    shape: Annotated[list[int], Field(max_length=8, fail_fast=True)]
    parameters: _InputParameters = _InputParameters()
    data: Annotated[list[str], Field(fail_fast=True)] | None = None


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
    outputs: list[_Output] = Field([], max_length=16, fail_fast=True)


@dataclass(frozen=True)
class Output:
    """classification: how many of the most probable classes to return as text; 0 for numbers."""

    name: str
    binary: bool
    classification: int


@dataclass(frozen=True)
class InferRequest:
    """images: each the content of an image file."""

    id: str | None
    images: list[bytes]
    outputs: list[Output]


@dataclass(frozen=True)
class InferResponse:
    """header_bytes: length of the JSON before the binary tensors; None if there are no binary tensors."""

    body: bytes
    header_bytes: int | None


def parse(body: bytes, header_length: str | None, *, most_images: int, most_bytes: int) -> InferRequest:
    """Parse a request body of at most most_images images, each of at most most_bytes bytes.

    header_length: the header Inference-Header-Content-Length, sent if binary tensors follow the JSON.
    Raise MalformedRequest or TooLarge.
    """
    size = _header_size(header_length, len(body))
    document, texts = cut_out(body, size, most_images)
    try:
        request = _Request.model_validate_json(document)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        faults = validation.faults({**each, "loc": each["loc"] or ("body",)} for each in errors[:3])
        raise MalformedRequest("; ".join(f"{fault.field}: {fault.detail}" for fault in faults)) from None
    (image,) = request.inputs
    count = _count(image.shape)
    if count > most_images:
        raise TooLarge(f"input image has {count} elements; at most {most_images} are accepted")
    images = _elements(image, count, texts, memoryview(body)[size:], most_bytes)
    return InferRequest(request.id, images, _outputs(request))


def encode(
    request: InferRequest,
    predictions: Sequence[Prediction],
    *,
    name: str,
    version: str,
    labels: Sequence[str],
) -> InferResponse:
    """Encode the predictions, one per image, in little-endian order.

    name, version: of the model; labels: its classes.
    """
    tensors, binary = [], []
    for output in request.outputs:
        datatype, values = _values(output, predictions, labels)
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
    if request.id is not None:
        document["id"] = request.id
    header = json.dumps(document).encode()
    return InferResponse(b"".join([header, *binary]), len(header) if binary else None)


def describe(name: str, versions: Sequence[str], platform: str, classes: int) -> Tensor:
    """Return the metadata of the model. In shapes, -1 is the number of images."""
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
            {"name": output, "datatype": datatype, "shape": shape}
            for output, (datatype, shape) in shapes.items()
        ],
    }


def _header_size(text: str | None, most: int) -> int:
    """Return the length of the JSON: the whole body (most) without the header."""
    if text is None:
        return most
    if not (text.isascii() and text.isdigit() and len(text) < 18 and int(text) <= most):
        raise MalformedRequest("Inference-Header-Content-Length is not a length within the body")
    return int(text)


def _count(shape: Sequence[int]) -> int:
    """Return the number of images. Triton's clients add a dimension where they expect a batch: [N, 1]."""
    if len(shape) not in (1, 2) or shape[0] < 1 or shape[1:] not in ([], [1]):
        raise MalformedRequest(
            f"inputs.0.shape: {list(shape)} is neither [N] nor [N, 1]; N is the number of images, at least 1"
        )
    return shape[0]


def _elements(
    image: _Input, count: int, texts: dict[str, memoryview], rest: memoryview, most_bytes: int
) -> list[bytes]:
    size = image.parameters.binary_data_size
    if (size is None) == (image.data is None):
        raise MalformedRequest("input image needs either data or binary_data_size")
    if len(rest) != (size or 0):
        raise MalformedRequest(f"{len(rest)} bytes follow the JSON, but binary_data_size is {size or 0}")
    elements: Iterator[bytes | memoryview]
    if image.data is not None:
        if len(image.data) != count:
            raise MalformedRequest(f"input image has {len(image.data)} elements, but its shape is {count}")
        elements = _decode(image.data, texts, most_bytes)
    else:
        elements = _unpack(rest, count)
    images = []
    for index, element in enumerate(elements):
        if len(element) > most_bytes:
            raise TooLarge(f"image {index} has {len(element)} bytes; at most {most_bytes} are accepted")
        images.append(bytes(element))
    return images


def _unpack(rest: memoryview, count: int) -> Iterator[memoryview]:
    """Yield the elements. Raise MalformedRequest unless there are `count`, at the first one too many."""
    offset = number = 0
    while offset < len(rest):
        if offset + LENGTH.size > len(rest):
            raise MalformedRequest("the tensor of input image ends within a length")
        (size,) = LENGTH.unpack_from(rest, offset)
        offset += LENGTH.size
        if offset + size > len(rest):
            raise MalformedRequest("the tensor of input image ends within an element")
        number += 1
        if number > count:
            raise MalformedRequest(f"input image has more than {count} elements, but its shape is {count}")
        yield rest[offset : offset + size]
        offset += size
    if number < count:
        raise MalformedRequest(f"input image has {number} elements, but its shape is {count}")


def _decode(data: Sequence[str], texts: dict[str, memoryview], most_bytes: int) -> Iterator[bytes]:
    for index, text in enumerate(data):
        # A long text stands for one image only: pop, so that its name cannot be sent again and again.
        encoded = texts.pop(text, None) or text.encode("utf-8", "surrogatepass")
        # Each byte may be escaped, and the image itself is checked once it is decoded.
        if len(encoded) > 2 * most_bytes + LONG:
            raise TooLarge(f"image {index} has over {most_bytes} bytes")
        try:
            yield decode_base64(encoded)
        except ValueError:
            raise MalformedRequest(f"image {index} is not base64; images in JSON must be") from None


def _outputs(request: _Request) -> list[Output]:
    binary = request.parameters.binary_data_output
    outputs = []
    for output in request.outputs:
        parameters = output.parameters
        if parameters.classification and output.name != "probabilities":
            raise MalformedRequest("classification is only available for the output probabilities")
        output_binary = binary if parameters.binary_data is None else parameters.binary_data
        outputs.append(Output(output.name, output_binary, parameters.classification))
    if len({output.name for output in outputs}) < len(outputs):
        raise MalformedRequest("an output is requested twice")
    return outputs or [Output(name, binary, 0) for name in DEFAULT_OUTPUTS]


def _values(
    output: Output, predictions: Sequence[Prediction], labels: Sequence[str]
) -> tuple[str, np.ndarray[Any, np.dtype[Any]]]:
    if output.classification:
        classes = [_top_classes(each.probabilities, labels, output.classification) for each in predictions]
        return "BYTES", np.array(classes, object)
    if output.name == "label":
        return "BYTES", np.array([prediction.label for prediction in predictions], object)
    if output.name == "review":
        return "BOOL", np.array([prediction.review for prediction in predictions], bool)
    return "FP32", np.array([getattr(prediction, output.name) for prediction in predictions], np.float32)


def _top_classes(probabilities: Sequence[float], labels: Sequence[str], most: int) -> list[str]:
    """Return Triton's `value:index:label` of the most probable classes, in descending order."""
    order = sorted(range(len(labels)), key=lambda index: -probabilities[index])[:most]
    return [f"{probabilities[index]:f}:{index}:{labels[index]}" for index in order]


def _pack(values: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    if values.dtype != object:
        return values.astype(values.dtype.newbyteorder("<")).tobytes()
    texts = [str(text).encode() for text in values.ravel()]
    return b"".join(LENGTH.pack(len(text)) + text for text in texts)
