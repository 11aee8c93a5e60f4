"""Scenarios 36, 43, 44 and 49: bodies made to be expensive to parse, to refuse or to evaluate."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from app.api.json_bodies import PROCESS_MIB
from app.edge.body_cost import cost
from app.edge.content_encoding import EXPANSION, compress
from app.units import MIB
from app.validation import MOST_ERRORS
from benchmarks.client import BOUNDARY, MULTIPART
from benchmarks.stalls import filled, outcomes, parts, pattern, tensors, tiny_parts
from tests.api.test_uploads import LIMITS, part, request
from tests.fake_classifier import png
from tests.fakes import zipped
from tests.running import FAKE, PATIENCE_S, Running, linux, running, wait_until
from tests.safety.memory import growing_less_than

JSON, BYTES = "application/json", "application/octet-stream"
INFER = "/v2/models/fake/infer"
TENSOR = b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":['
FORMER = b'{"predictions":[{"label":"monocyte"}],"former":{'
REASONS = b'{"predictions":[{"label":"monocyte","review_reasons":['
UTF_8 = 0x800  # flag of an entry of a ZIP
SMALL_MIB = 64  # what a service may take beside the reservations: small bodies, responses, imports


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    # One arena: with glibc's own number of them, memory that was freed stays where it cannot be measured.
    with running(FAKE, environ={"MALLOC_ARENA_MAX": "1", "LEUKO_EVALUATE_DEADLINE_S": "60"}) as found:
        with found.client() as client:  # imports what is imported by the first request
            send(client, "/evaluate/predictions", b'{"labels":[0],"predictions":[0]}')
            send(client, "/differential", b'{"predictions":[{"label":"monocyte"}]}')
        yield found


def send(client: httpx.Client, path: str, body: bytes, media_type: str = JSON) -> httpx.Response:
    return client.post(path, content=body, headers={"content-type": media_type})


# --- 36: errors without bound -----------------------------------------------------------------------

MANY_ERRORS = {
    "objects for labels": ("/evaluate/predictions", filled(b'{"labels":[', b"{},", b"]}", 6_000_000)),
    "some objects for labels": ("/evaluate/predictions", filled(b'{"labels":[', b"{},", b"]}", 600_000)),
    "objects in rows": ("/evaluate/predictions", filled(b'{"probabilities":[[', b"{},", b"]]}", 600_000)),
    "nulls for sources": ("/evaluate/predictions", filled(b'{"groups":[', b"null,", b"]}", 9_000)),
    "unknown fields": (
        "/evaluate/predictions",
        b"{" + b",".join(b'"%x":0' % number for number in range(200_000)) + b"}",
    ),
    "a long unknown field": ("/evaluate/predictions", b'{"' + b"x" * MIB + b'":0}'),
    "bad reasons": ("/differential", filled(REASONS, b"1,", b"]}]}", 1_000_000)),
    "bad cells": ("/differential", filled(b'{"predictions":[', b'{"label":1,"filename":1},', b"]}", 240_000)),
    "bad changes": ("/differential", filled(FORMER + b'"changes":[', b'{"label":1},', b"]}}", 400_000)),
    "bad classes": (
        "/differential",
        FORMER + b'"counts":{' + b",".join(b'"%d":1' % number for number in range(400_000)) + b"}}}",
    ),
    "whole numbers for images": (INFER, filled(TENSOR, b"1,", b"]}]}", 8_000_000)),
    "a few whole numbers for images": (INFER, filled(TENSOR, b"1,", b"]}]}", 8000)),
    "endless outputs": (INFER, filled(b'{"outputs":[', b"{},", b"]}", 9000)),
}


@linux
@pytest.mark.parametrize(("path", "body"), MANY_ERRORS.values(), ids=[*MANY_ERRORS])
def test_36_a_refusal_names_few_errors_and_takes_little_memory(
    service: Running, path: str, body: bytes
) -> None:
    reserved = cost(path, JSON, len(body)) / MIB
    with service.client() as client, growing_less_than(reserved + SMALL_MIB, service):
        answer = send(client, path, body)
    assert answer.status_code in (400, 413, 422), answer.text[:500]
    assert len(answer.content) < 20_000
    assert len(answer.json().get("errors", [])) <= MOST_ERRORS


def test_36_query_and_form_errors_are_few_and_short(service: Running) -> None:
    with service.client() as client:
        query = client.post(
            "/predict?" + "explain=x&" * 5000, content=png(1), headers={"content-type": "image/png"}
        )
        names = [("files", '; filename="a.png"', png(1)), ("specimen", "", b"\x01" * 4096)]
        form = send(client, "/differential", parts(*names), MULTIPART)
    for answer in (query, form):
        assert answer.status_code == 422
        assert len(answer.content) < 2000


WORST = {
    "rows": ("/evaluate/predictions", JSON, outcomes(200_000).body),
    "one long text": (
        "/evaluate/predictions",
        JSON,
        b'{"labels":["' + "😀".encode() + b"a" * 30 * MIB + b'"]}',
    ),
    "nested lists": ("/evaluate/predictions", JSON, filled(b'{"x":[', b"[[[[]]]],", b"]}", 4 * MIB)),
    "cells": ("/differential", JSON, filled(b'{"predictions":[', b'{"label":"monocyte"},', b"]}", 200_000)),
    "base64": (INFER, JSON, tensors(60).body),
    "escaped base64": (INFER, JSON, TENSOR + b'"' + b"\\/" * 10 * MIB + b'"]}]}'),
    "one image": ("/predict", "image/png", bytes(15 * MIB)),
    "labels in CSV": (
        "/evaluate",
        MULTIPART,
        parts(("files", "", b""), ("labels", "", b"".join(b"%d,a\n" % number for number in range(10**6)))),
    ),
    "commas in CSV": ("/evaluate", MULTIPART, parts(("files", "", b""), ("labels", "", b"," * 60 * MIB))),
    "labels in JSON": (
        "/evaluate",
        MULTIPART,
        parts(("files", "", b""), ("labels", "", filled(b"{", b'"":0,', b"}", 8 * MIB))),
    ),
    "small parts": ("/evaluate", MULTIPART, tiny_parts(100_000).body),
}


@linux
def test_36_a_tensor_of_tiny_elements_is_refused_at_the_first_one_too_many(service: Running) -> None:
    elements = (struct.pack("<I", 2) + b"ab") * (10 * MIB)
    head = TENSOR.removesuffix(b',"data":[') + b',"parameters":{"binary_data_size":%d}}]}' % len(elements)
    body = head + elements
    headers = {"content-type": BYTES, "inference-header-content-length": str(len(head))}
    reserved = cost(INFER, BYTES, len(body)) / MIB
    with service.client() as client, growing_less_than(reserved + SMALL_MIB, service):
        answer = client.post(INFER, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "input image has more than 1 elements, but its shape is 1",
    )


def entries(count: int, filler: str = "") -> bytes:
    """Return a ZIP64 of empty entries whose names are images of a class: the shortest ones and `filler`."""
    local, directory, offset = [], [], 0
    for number in range(count):
        name = f"monocyte/{number:x}{filler}".encode()
        local.append(struct.pack("<4s2xH18xHH", b"PK\3\4", UTF_8, len(name), 0) + name)
        directory.append(struct.pack("<4s4xH18xH12xI", b"PK\1\2", UTF_8, len(name), offset) + name)
        offset += len(local[-1])
    listed = b"".join(directory)
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(listed), offset)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, offset + len(listed), 1)
    end += struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    return b"".join([*local, listed, end])


@linux
@pytest.mark.parametrize(("path", "media_type", "body"), WORST.values(), ids=[*WORST])
def test_36_a_body_takes_no_more_memory_than_it_reserves(
    service: Running, path: str, media_type: str, body: bytes
) -> None:
    reserved = cost(path, media_type, len(body)) / MIB
    with service.client() as client, growing_less_than(reserved + SMALL_MIB, service):
        send(client, path, body, media_type)


@linux
def test_36_a_compressed_body_takes_no_more_memory_than_it_reserves(service: Running) -> None:
    image = os.urandom(5 * MIB // 2) + bytes(
        25 * MIB // 2
    )  # as much shorter when compressed as is allowed, nearly
    text = base64.b64encode(image)
    head = TENSOR.replace(b'"shape":[1]', b'"shape":[12]')
    body = head + b",".join([b'"%s"' % text] * 12) + b"]}]}"
    packed = compress(body, "gzip")
    assert len(body) < EXPANSION * len(packed)
    reserved = (len(packed) + cost(INFER, JSON, EXPANSION * len(packed))) / MIB
    headers = {"content-type": JSON, "content-encoding": "gzip"}
    with service.client() as client, growing_less_than(reserved + SMALL_MIB, service):
        answer = client.post(INFER, content=packed, headers=headers)
    assert (answer.status_code, answer.json()["error"].partition(":")[0]) == (415, "image 0"), answer.text


def rows(count: int, name: str, text: str) -> bytes:
    return "".join(f"{number:06x}{name},{text}\n" for number in range(count)).encode()


def wide_rows() -> bytes:
    """Return as many labels or groups, and nearly as many bytes, as a part may have."""
    return rows(200_000, "a" * 158 + "😀", "b" * 158 + "😀")


# One character outside the BMP makes Python keep four bytes for each character of a text.
NAMES: dict[str, tuple[Callable[[], bytes], int]] = {
    "short paths": (
        lambda: parts(("archive", "", entries(100_000)), ("group_pattern", "", b"no group")),
        422,
    ),
    "wide paths": (
        lambda: parts(
            ("archive", "", entries(199_000, "a" * 196 + "😀")), ("group_pattern", "", b"no group")
        ),
        422,
    ),
    "too long paths": (lambda: parts(("archive", "", entries(199_000, "a" * 440 + "😀"))), 413),
    "wide file names": (lambda: parts(*[("files", f'; filename="{"a" * 1960}😀"', b"")] * 120_000), 400),
    "wide labels and groups": (
        lambda: parts(("files", "", b""), ("labels", "", wide_rows()), ("groups", "", wide_rows())),
        422,
    ),
}


@linux
@pytest.mark.parametrize(("make", "status"), NAMES.values(), ids=[*NAMES])
def test_36_names_take_no_more_memory_than_a_body_reserves(
    service: Running, make: Callable[[], bytes], status: int
) -> None:
    body = make()
    reserved = cost("/evaluate", MULTIPART, len(body)) / MIB
    with service.client() as client, growing_less_than(reserved + SMALL_MIB, service):
        assert send(client, "/evaluate", body, MULTIPART).status_code == status


@linux
def test_36_a_process_that_parses_has_a_limit_of_memory(service: Running) -> None:
    with service.client() as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(send, client, "/evaluate/predictions", outcomes(200_000).body)
        wait_until(lambda: bool(working(service, "json_tasks")))
        (pid,) = working(service, "json_tasks")
        wait_until(lambda: f"{PROCESS_MIB * MIB}" in limit(pid, "Max address space"), patience_s=20)
        assert answer.result().status_code == 200


# --- 43: one executor for everything ----------------------------------------------------------------


def working(service: Running, work: str) -> list[int]:
    """Return the processes of a service that do a kind of work."""
    return [pid for pid in service.processes if work in command(pid)]


def command(pid: int) -> str:
    with suppress(OSError):  # it has ended
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def limit(pid: int, name: str) -> str:
    with suppress(OSError):
        return next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if name in line)
    return ""


@linux
def test_43_patterns_that_backtrack_hold_neither_other_work_nor_the_shutdown() -> None:
    slow = pattern()
    with running(FAKE, "--drain-s", "1") as service, ThreadPoolExecutor(12) as pool:
        clients = [service.client() for _ in range(12)]
        waiting = [pool.submit(send, client, slow.path, slow.body, slow.media_type) for client in clients]
        wait_until(lambda: len(working(service, "pattern_search")) == 1)  # one address never has both
        with service.client() as client:
            cells = send(client, "/differential", b'{"predictions":[{"label":"monocyte"}]}')
            large = send(client, "/evaluate/predictions", outcomes(20_000).body)
            failed = send(client, "/predict", b"\x89PNG\r\n\x1a\n", "image/png")
            archive = zipped({"monocyte/a": png(130)})
            scored = send(client, "/evaluate", parts(("archive", "", archive)), MULTIPART)
        # The patterns take 10 s each. The others do not wait for six of them.
        statuses = [answer.status_code for answer in (cells, large, failed, scored)]
        assert statuses == [200, 200, 422, 200]
        assert sum(future.done() and future.result().status_code == 422 for future in waiting) < 6
        pids = working(service, "pattern_search")
        assert service.end() == 0
        assert not all(_answered(future) for future in waiting)
        wait_until(lambda: not any("pattern_search" in command(pid) for pid in pids))
        for client in clients:
            client.close()


def _answered(future: Future[httpx.Response]) -> bool:
    return future.exception(PATIENCE_S) is None and future.result().status_code == 422


@linux
def test_43_the_process_of_a_client_that_leaves_is_ended(service: Running) -> None:
    slow = pattern()
    with httpx.Client(base_url=service.address, timeout=1) as client, pytest.raises(httpx.ReadTimeout):
        send(client, slow.path, slow.body, slow.media_type)
    # Long before the pattern's own limit, which it would reach only if nobody ended it.
    wait_until(lambda: not working(service, "pattern_search"), patience_s=5)


@linux
def test_43_a_large_body_whose_client_leaves_is_not_parsed_on(service: Running) -> None:
    body = outcomes(200_000).body
    with httpx.Client(base_url=service.address, timeout=PATIENCE_S) as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(send, client, "/evaluate/predictions", body)
        wait_until(lambda: bool(working(service, "json_tasks")))
        (pid,) = working(service, "json_tasks")
        os.kill(pid, signal.SIGSTOP)  # as if it took for ever
        with service.client() as second:
            assert second.get("/healthz").status_code == 200
            assert send(second, "/differential", b'{"predictions":[{"label":"monocyte"}]}').status_code == 200
        with httpx.Client(base_url=service.address, timeout=1) as impatient, pytest.raises(httpx.ReadTimeout):
            send(impatient, "/evaluate/predictions", body)  # leaves while it waits for the one process
        os.kill(pid, signal.SIGCONT)
        assert answer.result().status_code == 200
        wait_until(lambda: not working(service, "json_tasks"))


# --- 44: rows ---------------------------------------------------------------------------------------


def test_44_the_rows_of_an_evaluation_are_limited() -> None:
    with running(FAKE, environ={"LEUKO_MAX_ARCHIVE_ENTRIES": "1000"}) as service, service.client() as client:
        assert send(client, "/evaluate/predictions", outcomes(1000).body).json()["n"] == 1000
        for rows in (1001, 30_000):  # found after parsing, and before
            answer = send(client, "/evaluate/predictions", outcomes(rows).body)
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
            assert "more than 1000 rows" in answer.json()["detail"]
        labels = parts(("files", "", b""), ("labels", "", b"".join(b"%d,a\n" % row for row in range(1001))))
        answer = send(client, "/evaluate", labels, MULTIPART)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@linux
def test_44_four_million_rows_are_refused_before_they_are_parsed(service: Running) -> None:
    body = filled(b'{"labels":[', b"1,", b"]}", 8_000_000)
    with service.client() as client, growing_less_than(len(body) * 2 / MIB + 16, service):
        answer = send(client, "/evaluate/predictions", body)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


# --- 49: work that grows with a request -------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/predict", {"content-type": MULTIPART + '";' * 20_000}),
        ("/predict", {"content-type": "multipart/form-data;" + "boundary=x;" * 4000}),
        ("/differential", {"content-type": JSON, "accept": "a/b," * 10_000}),
        ("/evaluate", {"content-type": MULTIPART, "accept": "text/event-stream," * 2000}),
    ],
)
def test_49_long_headers_are_refused_instead_of_parsed(
    service: Running, path: str, headers: dict[str, str]
) -> None:
    with service.client() as client:
        body = parts(("archive", "", zipped({"monocyte/a.png": png(1)})))
        answer = client.post(path, content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert "may have 2048" in answer.json()["detail"]


def test_49_a_long_content_disposition_is_refused(service: Running) -> None:
    body = parts(("files", "; filename=" + '";' * 1500, png(1)))
    with service.client() as client:
        assert send(client, "/predict", body, MULTIPART).status_code == 400
    assert BOUNDARY.encode() in body


def test_49_others_run_while_a_form_of_many_parts_is_parsed() -> None:
    from app.api.uploads import Limit, read_form  # the reader itself: from outside, only durations are seen

    async def scenario() -> int:
        body = part('name="files"', b"") * 10_000
        reading = asyncio.create_task(
            read_form(request([body + b"--line--\r\n"]), LIMITS | {"files": Limit(10_000, 1)})
        )
        turns = 0
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)
        assert len((await reading)["files"]) == 10_000
        return turns

    assert asyncio.run(scenario()) > 10


@linux
def test_49_a_large_body_is_parsed_in_a_process_and_leaves_no_memory(service: Running) -> None:
    body = outcomes(200_000).body
    with service.client() as client:
        for _ in range(2):
            with growing_less_than(cost("/evaluate/predictions", JSON, len(body)) / MIB + 16, service):
                answer = send(client, "/evaluate/predictions", body)
            assert json.loads(answer.content)["n"] == 200_000
