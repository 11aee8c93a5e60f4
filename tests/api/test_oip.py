"""Bodies of the Open Inference Protocol, without a server."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api import oip
from app.api.negotiation import choose_coding
from app.edge.content_encoding import CODINGS, compress, expand
from app.engine.bundle import CLASSES
from app.engine.classifier import Prediction
from app.errors import LeukoError, MalformedRequest, TooLarge, UnsupportedFormat

IMAGES = [b"one", b"", b"three\0"]
PREDICTIONS = [
    Prediction("neutrophil", 0.7, (0.1, 0.05, 0.15, 0.7), 1.5, ("out_of_distribution",)),
    Prediction("eosinophil", 0.9, (0.9, 0.05, 0.03, 0.02), 0.5, ()),
]


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": "BYTES", "shape": [3]} | changes


def plain(**changes: Any) -> bytes:
    data = [base64.b64encode(image).decode() for image in IMAGES]
    return json.dumps({"inputs": [tensor(data=data)]} | changes).encode()


def parse(body: bytes, header: str | None = None) -> oip.InferRequest:
    return oip.parse(body, header, most_images=4, most_bytes=100)


def binary(tail: bytes, size: int | None = None, **changes: Any) -> tuple[bytes, str]:
    parameters = {"binary_data_size": len(tail) if size is None else size}
    head = json.dumps({"inputs": [tensor(parameters=parameters, **changes)]}).encode()
    return head + tail, str(len(head))


def test_images_are_base64_in_json() -> None:
    request = parse(plain(id="7"))
    assert (request.id, request.images) == ("7", IMAGES)
    assert request.outputs == [oip.Output(name, False, 0) for name in ("probabilities", "label")]


def test_images_are_bytes_after_the_json() -> None:
    assert parse(*binary(packed(*IMAGES))).images == IMAGES


def test_a_batch_may_have_a_second_dimension_of_one() -> None:
    data = [base64.b64encode(image).decode() for image in IMAGES]
    assert parse(plain(inputs=[tensor(shape=[3, 1], data=data)])).images == IMAGES
    assert parse(*binary(packed(*IMAGES), shape=[3, 1])).images == IMAGES
    assert parse(*binary(packed(b"one"), shape=[1, 1])).images == [b"one"]
    with pytest.raises(MalformedRequest, match="has 3 elements, but its shape is 4"):
        parse(*binary(packed(*IMAGES), shape=[4, 1]))
    with pytest.raises(TooLarge, match="5 elements"):
        parse(*binary(packed(*[b"a"] * 5), shape=[5, 1]))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: Invalid JSON"),
        (b"[]", "body: Input should be an object"),
        (plain(inputs=[]), "inputs"),
        (plain(inputs=[tensor(data=[])] * 2), "inputs"),
        (plain(inputs=[tensor(name="x", data=["YQ=="] * 3)]), r"inputs\.0\.name"),
        (plain(inputs=[tensor(datatype="UINT8", data=["YQ=="] * 3)]), r"inputs\.0\.datatype"),
        *(
            (
                plain(inputs=[tensor(shape=shape, data=["YQ=="] * 3)]),
                r"shape: \[.*\] is neither \[N\] nor \[N, 1\]",
            )
            for shape in ([], [0], [-3], [1, 3], [3, 2], [3, 0], [0, 1], [3, -1], [1, 1, 3], [3, 1, 1])
        ),
        *(
            (plain(inputs=[tensor(shape=shape, data=["YQ=="])]), r"inputs\.0\.shape")
            for shape in (3, None, "3", [None], ["a"], [[1]], [1.5], [1] * 9)
        ),
        (plain(inputs=[tensor(data=["YQ=="])]), "has 1 elements, but its shape is 3"),
        (plain(inputs=[tensor(data=["no base64"] * 4)]), "has 4 elements, but its shape is 3"),
        (plain(inputs=[tensor(data=["é"] * 3)]), "image 0 is not base64"),
        (plain(inputs=[tensor(data=["YQ==", "YQ", "YQ=="])]), "image 1 is not base64"),
        (plain(inputs=[tensor()]), "either data or binary_data_size"),
        (plain(inputs=[tensor(data=["YQ=="], parameters={"binary_data_size": 4})]), "either data or"),
        (plain(outputs=[{"name": "logits"}]), r"outputs\.0\.name"),
        (plain(outputs=[{"name": "label", "parameters": {"classification": 1}}]), "classification is only"),
        (plain(outputs=[{"name": "label"}, {"name": "label"}]), "requested twice"),
        (plain(outputs=[{"name": "probabilities", "parameters": {"classification": -1}}]), "classification"),
    ],
)
def test_an_invalid_request_is_malformed(body: bytes, message: str) -> None:
    with pytest.raises(MalformedRequest, match=message):
        parse(body)


@pytest.mark.parametrize(
    ("body", "header", "message"),
    [
        (*binary(packed(*IMAGES)[:-1]), "within an element"),
        (*binary(packed(*IMAGES) + b"\0"), "within a length"),
        (*binary(b"\xff\xff\xff\xff"), "within an element"),
        (*binary(packed(*IMAGES), 5), "bytes follow the JSON"),
        (*binary(packed(*IMAGES), 2**62), "bytes follow the JSON"),
        (*binary(packed(*IMAGES), shape=[2]), "more than 2 elements, but its shape is 2"),
        (*binary(packed(*IMAGES), shape=[4]), "has 3 elements, but its shape is 4"),
        (*binary(packed(*IMAGES[:2], b"i" * 101), shape=[2]), "more than 2 elements"),
        (plain(), "1e3", "not a length"),
        (plain(), "-1", "not a length"),
        (plain(), "99999", "not a length"),
        (plain() + b"tail", str(len(plain())), "bytes follow the JSON"),
    ],
)
def test_tensors_with_wrong_lengths_are_malformed(body: bytes, header: str, message: str) -> None:
    with pytest.raises(MalformedRequest, match=message):
        parse(body, header)


def test_elements_over_the_shape_are_not_even_read() -> None:
    with pytest.raises(MalformedRequest, match="more than 1 elements, but its shape is 1"):
        parse(*binary(packed(b"a", b"b") + b"an invalid rest", shape=[1]))


def test_images_are_limited_in_number_and_size() -> None:
    with pytest.raises(TooLarge, match="5 elements"):
        parse(*binary(packed(*[b"a"] * 5), shape=[5]))
    with pytest.raises(TooLarge, match="image 0 has 101 bytes"):
        parse(*binary(packed(b"a" * 101), shape=[1]))


@given(st.binary(max_size=200), st.none() | st.integers(0, 200).map(str) | st.text(max_size=5))
def test_any_bytes_are_a_request_or_refused(body: bytes, header: str | None) -> None:
    with pytest.raises(LeukoError):
        parse(body, header)


@given(st.binary(max_size=60))
def test_any_tensor_is_images_or_refused(tail: bytes) -> None:
    try:
        request = parse(*binary(tail))
    except LeukoError:
        return
    assert packed(*request.images) == tail


def encoded(*outputs: oip.Output, id: str | None = None) -> tuple[dict[str, Any], bytes]:
    response = oip.encode(
        oip.InferRequest(id, [b""] * 2, list(outputs)), PREDICTIONS, name="m", version="1", labels=CLASSES
    )
    size = len(response.body) if response.header_bytes is None else response.header_bytes
    return json.loads(response.body[:size]), response.body[size:]


def test_numbers_and_texts_are_answered_in_json() -> None:
    names = ("probabilities", "label", "confidence", "ood_score", "review")
    document, rest = encoded(*(oip.Output(name, False, 0) for name in names), id="7")
    assert (document["model_name"], document["model_version"], document["id"], rest) == ("m", "1", "7", b"")
    outputs = {
        output["name"]: (output["datatype"], output["shape"], output["data"])
        for output in document["outputs"]
    }
    assert outputs["probabilities"][:2] == ("FP32", [2, 4])
    assert outputs["probabilities"][2] == pytest.approx(
        [p for prediction in PREDICTIONS for p in prediction.probabilities]
    )
    assert outputs["label"] == ("BYTES", [2], ["neutrophil", "eosinophil"])
    assert outputs["review"] == ("BOOL", [2], [True, False])
    assert outputs["ood_score"] == ("FP32", [2], [1.5, 0.5])


def test_binary_tensors_follow_the_json_in_its_order() -> None:
    document, rest = encoded(
        oip.Output("label", True, 0), oip.Output("review", False, 0), oip.Output("confidence", True, 0)
    )
    sizes = [
        output["parameters"]["binary_data_size"] for output in document["outputs"] if "data" not in output
    ]
    assert rest[: sizes[0]] == packed(b"neutrophil", b"eosinophil")
    assert np.frombuffer(rest[sizes[0] :], "<f4") == pytest.approx([0.7, 0.9])
    assert "id" not in document


def test_classification_is_value_index_and_label_of_the_best() -> None:
    document, _ = encoded(oip.Output("probabilities", False, 2))
    assert document["outputs"][0] == {
        "name": "probabilities",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": [
            "0.700000:3:neutrophil",
            "0.150000:2:monocyte",
            "0.900000:0:eosinophil",
            "0.050000:1:lymphocyte",
        ],
    }
    assert encoded(oip.Output("probabilities", False, 9))[0]["outputs"][0]["shape"] == [2, 4]


# --- compression ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies_are_expanded_within_limits(encoding: str, pack: Any) -> None:
    body = bytes(range(256)) * 8
    assert expand(pack(body), encoding) == body
    with pytest.raises(TooLarge, match="8 times"):
        expand(pack(bytes(10**7)), encoding)
    for end in range(len(pack(body))):
        with pytest.raises(MalformedRequest):
            expand(pack(body)[:end], encoding)
    with pytest.raises(MalformedRequest, match="bytes follow its end"):
        expand(pack(body) + b"more", encoding)


def test_other_encodings_are_not_accepted() -> None:
    assert expand(b"x", "") == expand(b"x", "Identity") == b"x"
    for encoding in ("br", "gzip, gzip", "x"):
        with pytest.raises(UnsupportedFormat):
            expand(b"x", encoding)


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, GZIP;q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("br", None),
        ("", None),
    ],
)
def test_answers_are_compressed_as_the_client_accepts(accept: str, encoding: str | None) -> None:
    coding = choose_coding(accept, CODINGS)
    assert coding == encoding
    if coding is not None:
        assert expand(compress(b"answer", coding), coding) == b"answer"
