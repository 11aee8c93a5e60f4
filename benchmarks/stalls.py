"""How long a second client waits for /healthz while the service answers the heaviest request of each kind.

Run: python -m benchmarks.stalls
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256

from app.engine.bundle import CLASSES
from app.units import MIB
from benchmarks.client import BOUNDARY, MULTIPART, form
from benchmarks.server import HOST, serve

PAUSE_S = 0.002  # between two probes
IDLE_S = 3.0
PATIENCE_S = 300


@dataclass(frozen=True)
class Request:
    """headers: in addition to the media type."""

    path: str
    body: bytes
    media_type: str = MULTIPART
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Waits:
    """Seconds that each probe took."""

    seconds: list[float] = field(default_factory=list)

    @property
    def longest_ms(self) -> float:
        return 1000 * max(self.seconds)


@contextmanager
def probing(port: int) -> Iterator[Waits]:
    """Ask for /healthz over one connection, again and again, until the block ends."""
    waits, stop = Waits(), threading.Event()

    def probe() -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
        while not waits.seconds or not stop.wait(PAUSE_S):
            began = time.perf_counter()
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            response.read()
            waits.seconds.append(time.perf_counter() - began)
            assert response.status == 200, response.status
        connection.close()

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield waits
    finally:
        stop.set()
        thread.join()


def send(port: int, request: Request) -> int:
    """Return the status."""
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
    headers = {"Content-Type": request.media_type} | dict(request.headers)
    connection.request("POST", request.path, request.body, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def corrupt_images(mib: int, size: int = 15) -> Request:
    """Images of `size` MiB each that begin like a JPEG and cannot be decoded."""
    image = b"\xff\xd8\xff\xe0\x00\x02" + bytes(size * MIB)
    images = [image] * max(1, mib // size)
    return Request("/predict", form(images))


def corrupt_archive(count: int) -> Request:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(count):
            archive.writestr(f"{CLASSES[number % 4]}/{number}.png", b"\x89PNG\r\n\x1a\n" + os.urandom(200))
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="archive"; filename="a.zip"\r\n\r\n'
    return Request("/evaluate", part.encode() + file.getvalue() + f"\r\n--{BOUNDARY}--\r\n".encode())


def outcomes(rows: int) -> Request:
    labels = [number % 4 for number in range(rows)]
    document = {"labels": labels, "probabilities": [[0.1, 0.2, 0.3, 0.4]] * rows}
    return Request("/evaluate/predictions", json.dumps(document).encode(), JSON)


def cells(count: int) -> Request:
    cell = {"label": "monocyte", "confidence": 0.5, "review_reasons": ["low_confidence"]}
    document = {"predictions": [cell | {"filename": f"{number}.png"} for number in range(count)]}
    return Request("/differential", json.dumps(document).encode(), JSON)


def tensors(count: int, size: int = MIB) -> Request:
    data = [base64.b64encode(b"\xff\xd8\xff\xe0" + os.urandom(size)).decode() for _ in range(count)]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [count], "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()
    return Request("/v2/models/wbc-resnet18/infer", body, JSON)


def json_body(path: str, body: bytes) -> Request:
    return Request(path, body, JSON)


def parts(*named: tuple[str, str, bytes]) -> bytes:
    """Return a form of parts: name, further parameters of Content-Disposition, content."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="'.encode()
    found = [head + f'{name}"{more}\r\n\r\n'.encode() + data + b"\r\n" for name, more, data in named]
    return b"".join([*found, f"--{BOUNDARY}--\r\n".encode()])


def labels(data: bytes) -> Request:
    return Request("/evaluate", parts(("files", '; filename="1"', PIXEL), ("labels", "", data)))


def labels_json(entries: int) -> Request:
    return labels(json.dumps({str(number): "monocyte" for number in range(entries)}).encode())


def labels_csv(entries: int) -> Request:
    return labels("".join(f"{number},monocyte\n" for number in range(entries)).encode())


def tiny_parts(count: int) -> Request:
    named = [("files", f'; filename="{number}"', b"") for number in range(count)]
    return Request("/evaluate", parts(*named, ("labels", "", b"{}")))


def pattern() -> Request:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"monocyte/{'a' * 60}b.png", PIXEL)
    return Request("/evaluate", parts(("archive", "", archive.getvalue()), ("group_pattern", "", b"(a+)+$")))


def filled(head: bytes, item: bytes, tail: bytes, size: int) -> bytes:
    """Return JSON of about `size` bytes with the same item again and again."""
    return head + item * (size // len(item)) + item.rstrip(b",") + tail


PIXEL = b"\x89PNG\r\n\x1a\n"
JSON = "application/json"
PREDICTIONS, DIFFERENTIAL, INFER = "/evaluate/predictions", "/differential", "/v2/models/wbc-resnet18/infer"
TENSOR = b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":['
KEYS = b",".join(b'"%x":0' % number for number in range(4000))

KINDS: tuple[tuple[str, Callable[[], Request]], ...] = (
    ("/predict: 480 MiB of corrupt images", lambda: corrupt_images(480)),
    (
        "/predict: Content-Type of 60,000 bytes",
        lambda: Request("/predict", b"", MULTIPART + '";' * 30_000),
    ),
    ("/evaluate: 20,000 corrupt images in a ZIP", lambda: corrupt_archive(20_000)),
    ("/evaluate: 190,000 parts without content", lambda: tiny_parts(190_000)),
    ("/evaluate: 200,000 labels in JSON", lambda: labels_json(200_000)),
    ("/evaluate: 200,000 labels in CSV", lambda: labels_csv(200_000)),
    ("/evaluate: one row of 60 MiB in CSV", lambda: labels(b"," * 60 * MIB)),
    ("/evaluate: one text of 60 MiB in JSON", lambda: labels(b'{"' + b"\\u0000" * 10 * MIB)),
    ("/evaluate: a pattern that backtracks", pattern),
    (f"{PREDICTIONS}: 200,000 rows", lambda: outcomes(200_000)),
    (f"{PREDICTIONS}: 500,000 rows", lambda: outcomes(500_000)),
    (
        f"{PREDICTIONS}: 5.7 MiB of {{}}",
        lambda: json_body(PREDICTIONS, filled(b'{"labels":[', b"{},", b"]}", 6_000_000)),
    ),
    (
        f"{PREDICTIONS}: 2 MiB of nested lists",
        lambda: json_body(PREDICTIONS, filled(b'{"x":[', b"[[[[]]]],", b"]}", 2 * MIB)),
    ),
    (f"{PREDICTIONS}: 4,000 unknown fields", lambda: json_body(PREDICTIONS, b"{" + KEYS + b"}")),
    (
        f"{PREDICTIONS}: 60 MiB of escapes",
        lambda: json_body(PREDICTIONS, filled(b'{"labels":["', b"\\u0000", b'"]}', 60 * MIB)),
    ),
    (f"{DIFFERENTIAL}: 10,000 classified cells", lambda: cells(10_000)),
    (
        f"{DIFFERENTIAL}: 500,000 bad reasons",
        lambda: json_body(
            DIFFERENTIAL,
            filled(b'{"predictions":[{"label":"x","review_reasons":[', b"1,", b"]}]}", 1_000_000),
        ),
    ),
    (
        f"{DIFFERENTIAL}: Accept of 60,000 bytes",
        lambda: Request(DIFFERENTIAL, b"{}", JSON, {"Accept": "a," * 30_000}),
    ),
    ("/v2 infer: 60 MiB of corrupt images in JSON", lambda: tensors(60)),
    ("/v2 infer: 7.6 MiB of 1,", lambda: json_body(INFER, filled(TENSOR, b"1,", b"]}]}", 8_000_000))),
    ("/v2 infer: 60 MiB of quotes", lambda: json_body(INFER, TENSOR + b'"",' * 20 * MIB)),
    ("/v2 infer: 60 MiB of backslashes", lambda: json_body(INFER, TENSOR + b'"' + b"\\" * 60 * MIB)),
    ("/v2 infer: one text of 300 MiB", lambda: json_body(INFER, TENSOR + b'"' + b"A" * 300 * MIB + b'"]}]}')),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only kinds whose name contains this")
    arguments = parser.parse_args(argv)
    body = os.urandom(480 * MIB)
    began = time.perf_counter()
    sha256(body).hexdigest()
    print(f"hashing 480 MiB: {1000 * (time.perf_counter() - began):.0f} ms")
    del body
    with serve() as server:
        with probing(server.port) as idle:
            time.sleep(IDLE_S)
        print(f"{'longest wait for /healthz':<48}{'ms':>8}{'÷ idle':>9}{'status':>8}{'answered in':>13}")
        print(f"{'idle':<48}{idle.longest_ms:8.1f}{1:9.1f}")
        for name, make in KINDS:
            if arguments.only not in name:
                continue
            request = make()
            began = time.perf_counter()
            with probing(server.port) as waits:
                status = send(server.port, request)
            seconds = time.perf_counter() - began
            ratio = waits.longest_ms / idle.longest_ms
            print(f"{name:<48}{waits.longest_ms:8.1f}{ratio:9.1f}{status:8}{seconds:11.1f} s", flush=True)


if __name__ == "__main__":
    main()
