"""Wrong, hostile and unlucky requests on every way into a real agent process, and the state that they leave."""

from __future__ import annotations

import contextlib
import functools
import gzip
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from edge_agent import load
from edge_agent.contract.errors import ShoalError
from edge_agent.contract.frames import decode_answer
from edge_agent.contract.tensors import Datatype
from tests.fakes.hanging_package import FOREVER
from tests.fakes.packages import INPUT, OUTPUT
from tests.integration.attacked_agent import TRANSPORTS, AttackedAgent, attacked
from tests.integration.hostile_requests import EXPECTED, IMAGES, Request, Tensor


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedAgent]:
    with attacked(tmp_path_factory.mktemp("attacked")) as one:
        yield one


def pixels(value: float, rows: int = 1) -> Tensor:
    """Images of one shade."""
    return Tensor.of(np.full((rows, 64), value, np.float32))


def with_pixel(value: float) -> Tensor:
    """Two images, one pixel of the second of which is special."""
    images = IMAGES.copy()
    images[1, 7] = value
    return Tensor.of(images)


def hanging(model: str, turns: float) -> Request:
    """A request that runs for about so many microseconds."""
    return asking(Tensor.of(np.full((1, 64), turns, np.float32)), model=model)


def asking(*inputs: Tensor, **told: Any) -> Request:
    return Request(inputs=inputs, **told)


_SLOW = 2e5
_FLOAT64 = Tensor.of(IMAGES.astype(np.float64))
_HUGE = (1, 2**40)
_NOWHERE = ("nowhere", 0, 512)
# What is wrong; its status; what the error names; whether the model's counts know of it.
_WRONG: dict[str, tuple[Request, int, str, str]] = {
    "unknown model": (Request(model="nobody"), 404, "model 'nobody' is not served here", ""),
    "unknown version": (Request(version="9"), 404, "no version '9'", ""),
    "a name that is a path": (Request(model="..%2f..%2fetc"), 404, "etc", ""),
    "unknown input": (asking(Tensor(name="picture")), 400, "picture", "refused"),
    "no input": (asking(), 400, "image", "refused"),
    "an input twice": (asking(Tensor(), Tensor()), 400, "twice", "refused"),
    "one input too many": (asking(Tensor(), Tensor(name="mask")), 400, "mask", "refused"),
    "unknown output": (Request(outputs={"colour": None}), 400, "colour", "refused"),
    "an output into memory that nobody registered": (
        Request(outputs={"probabilities": ("nowhere", 0, 80)}),
        404,
        "nowhere",
        "refused",
    ),
    "another datatype": (asking(_FLOAT64), 400, "FP64", "refused"),
    "another shape": (asking(Tensor(shape=(4, 32))), 400, "[4, 32]", "refused"),
    "too few bytes": (asking(Tensor(data=IMAGES.tobytes()[:-1])), 400, "511", "refused"),
    "too many bytes": (asking(Tensor(data=IMAGES.tobytes() + b"x")), 400, "513", "refused"),
    "no bytes": (asking(Tensor(data=b"")), 400, "image", "refused"),
    "no axes": (asking(Tensor(shape=())), 400, "shape", "refused"),
    "an empty axis": (asking(Tensor(shape=(0, 64), data=b"")), 400, "image", "refused"),
    "a negative axis": (asking(Tensor(shape=(-2, -64))), 400, "axes", "refused"),
    "forty axes": (asking(Tensor(shape=(1,) * 39 + (128,))), 400, "axes", "refused"),
    "an axis without end": (asking(Tensor(shape=_HUGE)), 400, "1099511627776", "refused"),
    "too many rows": (asking(pixels(0.5, 65)), 400, "65 rows, the limit is 64", "refused"),
    "not a number": (asking(with_pixel(np.nan)), 400, "row 1", "refused"),
    "infinity": (asking(with_pixel(np.inf)), 400, "row 1", "refused"),
    "minus infinity": (asking(with_pixel(-np.inf)), 400, "row 1", "refused"),
    "out of range": (asking(with_pixel(1.5)), 400, "row 1", "refused"),
    "memory that nobody registered": (asking(Tensor(region=_NOWHERE)), 404, "nowhere", "refused"),
    "memory of the wrong size": (asking(Tensor(region=("nowhere", 0, 2**50))), 400, str(2**50), "refused"),
    "a name as long as a book": (Request(id="x" * 129), 400, "128", "refused"),
    "a row that the model fails on": (asking(with_pixel(0.99)), 500, "failed on this input", "failure"),
}
# Read before anybody knows which model is meant; gRPC's and HTTP's requests name it apart from the rest.
_UNREADABLE = {
    "unknown datatype": (asking(Tensor(datatype="FP99")), "FP99"),
    "no datatype": (asking(Tensor(datatype="")), "datatype"),
}


_POST = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
_HTTP: dict[str, bytes] = {
    "no JSON": _POST + b"Content-Length: 9\r\n\r\n{'a': 1}\n",
    "JSON cut off": _POST + b'Content-Length: 12\r\n\r\n{"inputs":[{',
    "JSON without an end": _POST + b"Content-Length: 60000\r\n\r\n" + b"[" * 60000,
    "JSON of another kind": _POST + b"Content-Length: 4\r\n\r\nnull",
    "no UTF-8": _POST + b'Content-Length: 10\r\n\r\n{"id":"\xff"}',
    "a truncated body": _POST + b"Content-Length: 100\r\n\r\n{}",
    "a negative length": _POST + b"Content-Length: -1\r\n\r\n",
    "a length without end": _POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    "two lengths": _POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": _POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "a chunk that lies": _POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n0\r\n\r\n",
    "a chunk without end": _POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n",
    "a header of tensors that lies": _POST + b"Inference-Header-Content-Length: 9\r\nContent-Length: 2\r\n\r\n{}",
    "a header of tensors that is none": _POST + b"Inference-Header-Content-Length: x\r\nContent-Length: 2\r\n\r\n{}",
    "gzip that is none": _POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "gzip that is cut off": _POST + b"Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + gzip.compress(b"{}")[:20],
    "an unknown encoding": _POST + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
    "a head without end": b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 70_000,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}
_FRAMES: dict[str, bytes] = {
    "random bytes": b"\x08\0\0\0garbage!",
    "a frame without end": b"\xff\xff\xff\xff",
    "HTTP": _POST,
    "an array": b"\x01\0\0\0\x90",
    "arrays within arrays": (60_000).to_bytes(4, "little") + b"\x91" * 60_000,
    "a map that lies": b"\x05\0\0\0\xdf\xff\xff\xff\xff",
}
_GRPC: dict[str, bytes] = {
    "HTTP/1.1": _POST + b"\r\n",
    "half a preface": b"PRI * HTTP/2.0\r\n\r\nSM",
    "a preface and garbage": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}
_MALFORMED = {
    (transport, attack): data
    for transport, attacks in zip(TRANSPORTS, (_HTTP, _HTTP, _FRAMES, _GRPC, _GRPC), strict=True)
    for attack, data in attacks.items()
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("wrong", _WRONG)
def test_a_wrong_request_is_told_why_and_counted_once(device: AttackedAgent, transport: str, wrong: str) -> None:
    request, status, said, counted = _WRONG[wrong]
    before = device.counts()
    outcome = device.ask(transport, request)
    assert (outcome.status, said in outcome.error) == (status, True), outcome
    after = device.counts()
    expected = {name: count + (name == counted) for name, count in before.items()}
    assert after == expected


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("wrong", _UNREADABLE)
def test_a_request_that_cannot_be_read_is_told_why(device: AttackedAgent, transport: str, wrong: str) -> None:
    request, said = _UNREADABLE[wrong]
    outcome = device.ask(transport, request)
    assert outcome.status == 400
    assert said.lower() in outcome.error.lower() or "enum" in outcome.error


@pytest.mark.parametrize(("transport", "attack"), _MALFORMED, ids=lambda value: str(value)[:40])
def test_bytes_that_are_no_request_end_their_connection_at_most(
    device: AttackedAgent, transport: str, attack: str
) -> None:
    with device.connect(transport) as connection:
        connection.sendall(_MALFORMED[transport, attack])
        if transport not in ("tcp", "unix") or "truncated" in attack:
            with contextlib.suppress(OSError):  # it may have been closed already
                connection.shutdown(socket.SHUT_WR)
        told = _read_all(connection)
    if transport in ("tcp", "unix"):
        assert told.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501", b"HTTP/1.1 505")), told
        assert b'{"error":"' in told
    elif transport == "frames":
        assert decode_answer(told).id == 0
    device.assert_serves(transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_body_beyond_the_limit_is_refused(device: AttackedAgent, transport: str) -> None:
    outcome = device.ask(transport, asking(Tensor(shape=(1, 2**19), data=bytes(2**21))))
    assert outcome.status == 413, outcome
    device.assert_serves(transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_text_whose_lengths_lie_is_refused(device: AttackedAgent, transport: str) -> None:
    for data in (b"\xff\xff\xff\xffab", b"\x02\0\0\0a", b"\x01\0", b"", b"\x01\0\0\0a\x01\0\0\0b"):
        outcome = device.ask(transport, asking(Tensor("text", "BYTES", (1, 1), data), model="echo"))
        assert (outcome.status, "text" in outcome.error) == (400, True), outcome


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_text_without_end_is_refused_and_nobody_waits(device: AttackedAgent, transport: str) -> None:
    many = Tensor("text", "BYTES", (1, 250_000), bytes(1_000_000))
    with ThreadPoolExecutor(1) as others:
        refused = others.submit(device.ask, transport, asking(many, model="echo"))
        device.assert_serves("unix")
        assert refused.result().status == 400
    assert device.process.memory_info().rss < 400_000_000


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("count", [10**9, 10**12, 10**18])
def test_a_shape_that_claims_more_text_than_there_is_takes_no_memory(
    device: AttackedAgent, transport: str, count: int
) -> None:
    body = b'{"inputs":[{"name":"text","shape":[1,%d],"datatype":"BYTES","data":["a"]}]}' % count
    for padding in (b"", b" " * 70_000):
        status, text = device.ask_http("POST", "/v2/models/echo/infer", padding + body, transport=transport)
        assert (status, b"data has 1" in text) == (400, True)
    assert device.process.memory_info().rss < 400_000_000


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_models_that_hang_are_broken_off_and_hold_nobody_else(device: AttackedAgent, transport: str) -> None:
    models = ("sleeper", "queued")
    before = [device.counts(model) for model in models]
    with ThreadPoolExecutor(2) as others:
        asked = [others.submit(device.ask, transport, hanging(model, FOREVER)) for model in models]
        device.assert_serves(transport)
        outcomes = [one.result() for one in asked]
    for outcome in outcomes:
        assert (outcome.status, "hung on this input" in outcome.error) == (500, True), outcome
    for model, counts in zip(models, before, strict=True):
        assert device.ask(transport, Request(model=model)).status == 200
        expected = {**counts, "failure": counts["failure"] + 1, "success": counts["success"] + 1}
        assert device.counts(model) == expected


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_bad_row_among_many_fails_alone(device: AttackedAgent, transport: str) -> None:
    requests = [asking(pixels(0.99 if number == 7 else 0.5)) for number in range(16)]
    with ThreadPoolExecutor(8) as applications:
        outcomes = list(applications.map(functools.partial(device.ask, transport), requests))
    assert [number for number, outcome in enumerate(outcomes) if outcome.status == 500] == [7]
    assert {outcome.status for outcome in outcomes} == {200, 500}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_full_queue_and_a_late_turn_are_told_and_counted(device: AttackedAgent, transport: str) -> None:
    before = device.counts("queued")
    with ThreadPoolExecutor(16) as applications:
        asked = [applications.submit(device.ask, transport, hanging("queued", _SLOW)) for _ in range(14)]
        asked += [applications.submit(device.ask, transport, Request(model="queued", timeout_us=1)) for _ in range(2)]
        outcomes = [one.result() for one in asked]
    refused = [outcome.error for outcome in outcomes if outcome.status != 200]
    assert {outcome.status for outcome in outcomes} <= {200, 503, 504}
    assert all("requests wait already" in error or "for its turn" in error for error in refused)
    assert refused
    after = device.counts("queued")
    assert after["failure"] == before["failure"] + len(refused)
    assert after["success"] == before["success"] + len(outcomes) - len(refused)
    assert device.ask(transport, Request(model="queued")).status == 200


def test_the_same_package_in_a_program_of_its_own_refuses_the_same(device: AttackedAgent) -> None:
    applicable = (
        "unknown input", "no input", "one input too many", "another datatype", "another shape", "not a number",
        "infinity", "minus infinity", "out of range", "a name as long as a book", "a row that the model fails on",
    )  # fmt: skip
    with load(device.models / "digits") as model:
        for wrong in applicable:
            request, status, said, counted = _WRONG[wrong]
            arrays = {
                each.name: np.frombuffer(each.data, Datatype(each.datatype).numpy).reshape(each.shape)
                for each in request.inputs
            }
            before = model.statistics()
            with pytest.raises(ShoalError, match=re.escape(said)) as caught:
                model.infer(arrays, request_id=request.id)
            assert caught.value.http_status == status, wrong
            after = model.statistics()
            assert after.fail_count == before.fail_count + (counted == "failure")
        assert model.infer({INPUT: IMAGES}).outputs[OUTPUT] == pytest.approx(EXPECTED, rel=1e-4, abs=1e-6)


def test_after_all_of_it_the_agent_rests(device: AttackedAgent) -> None:
    device.assert_rests()


def _read_all(connection: socket.socket) -> bytes:
    told = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            told += data
    return told
