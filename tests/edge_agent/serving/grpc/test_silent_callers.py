"""Callers that send nothing: others are answered beside them, and in the end they are told to go."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from edge_agent.config import ApiSettings
from edge_agent.contract.errors import Busy
from edge_agent.serving.grpc import oip_pb2 as oip
from edge_agent.serving.grpc import reads
from tests.edge_agent.serving.conftest import make_models
from tests.edge_agent.serving.grpc.asking import right
from tests.fakes.serving_device import Device, serving

SERVICE = "/inference.GRPCInferenceService/"
# Far more than anybody needs, far less than a silent call may last.
PATIENCE_S = 12.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a device with "digits" and "echo"."""
    folder = tmp_path_factory.mktemp("silent")
    make_models(folder)
    return folder


@pytest.mark.parametrize("method", ["ModelInfer", "RepositoryIndex", "ModelStreamInfer"])
@pytest.mark.parametrize("connections", [1, 20])
def test_others_are_answered_beside_calls_that_send_nothing(folder: Path, method: str, connections: int) -> None:
    with (
        serving(folder, ApiSettings(port=0, grpc_port=0)) as device,
        connected(device) as channel,
        contextlib.ExitStack() as silent,
    ):
        for _ in range(connections):
            silent.enter_context(silent_calls(device, method, 120 // connections))
        for _ in range(3):
            assert infer(channel).model_name == "digits"
            assert len(list(stream(channel)([right().SerializeToString()] * 2))) == 2
            assert channel.unary_unary(SERVICE + "ServerMetadata", bytes, bytes)(b"", timeout=PATIENCE_S)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_one_connection_does_not_take_all_calls(folder: Path, method: str) -> None:
    with (
        serving(folder, ApiSettings(port=0, grpc_port=0, max_connections=32)) as device,
        connected(device) as channel,
        silent_calls(device, method, 32),
    ):
        for _ in range(3):
            assert infer(channel).model_name == "digits"


def test_a_stream_that_sends_nothing_ends(folder: Path) -> None:
    settings = ApiSettings(port=0, grpc_port=0, body_timeout_s=0.2, idle_timeout_s=0.5)
    with serving(folder, settings) as device, connected(device) as channel:
        messages: queue.Queue[bytes | None] = queue.Queue()
        answers = stream(channel)(iter(messages.get, None))
        for _ in range(2):
            messages.put(right().SerializeToString())
            assert oip.ModelStreamInferResponse.FromString(next(answers)).error_message == ""
        with pytest.raises(grpc.RpcError) as silent:
            next(answers)
        messages.put(None)
    assert silent.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "did not arrive within 0.5 s" in (silent.value.details() or "")


def test_of_many_silent_calls_those_of_whoever_has_most_are_ended_first(folder: Path) -> None:
    with serving(folder, ApiSettings(port=0, grpc_port=0, max_connections=32)) as device, connected(device) as channel:
        messages: queue.Queue[bytes | None] = queue.Queue()
        answers = stream(channel)(iter(messages.get, None))
        messages.put(right().SerializeToString())
        assert next(answers)
        with silent_calls(device, "ModelInfer", 16) as crowd:
            ended = crowd(8)  # half of the calls may be open on one connection, and half of those be late
            assert {error.code() for error in ended} == {grpc.StatusCode.UNAVAILABLE}
            assert all("send nothing" in (error.details() or "") for error in ended)
            messages.put(right().SerializeToString())
            assert next(answers)
        messages.put(None)
        assert list(answers) == []


def infer(channel: grpc.Channel) -> Any:
    """What a right request is answered."""
    call: Any = channel.unary_unary(
        SERVICE + "ModelInfer", response_deserializer=oip.ModelInferResponse.FromString, request_serializer=bytes
    )
    return call(right().SerializeToString(), timeout=PATIENCE_S)


def stream(channel: grpc.Channel) -> Callable[[Any], Iterator[bytes]]:
    """Sends messages on a stream of their own, and yields the answers."""
    call: Any = channel.stream_stream(SERVICE + "ModelStreamInfer", bytes, bytes)
    return lambda messages: call(iter(messages), timeout=60)


@contextlib.contextmanager
def connected(device: Device) -> Iterator[grpc.Channel]:
    """A connection of its own; gRPC else shares one among all channels to an address."""
    with grpc.insecure_channel(
        device.api.addresses["grpc"], options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        yield channel


@contextlib.contextmanager
def silent_calls(device: Device, method: str, count: int) -> Iterator[Callable[[int], list[Any]]]:
    """Calls on one connection that never send a message; what it yields waits for so many of them to be refused."""
    over = threading.Event()
    refused: queue.Queue[Any] = queue.Queue()

    def messages() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    def ended(call: Any) -> None:
        if not over.is_set():
            refused.put(call)

    with connected(device) as channel:
        grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)
        for _ in range(count):
            call: Any
            if method == "ModelStreamInfer":
                call = channel.stream_stream(SERVICE + method, bytes, bytes)(messages())
            else:
                call = channel.stream_unary(SERVICE + method, bytes, bytes).future(messages())
            call.add_done_callback(ended)
        try:
            yield lambda number: [refused.get(timeout=PATIENCE_S) for _ in range(number)]
        finally:
            over.set()


async def test_who_has_been_waited_for_longest_is_not_ended_for_newcomers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else, of large messages on a slow line, none would ever be whole."""
    monkeypatch.setattr(reads, "_TURN_S", 0.02)

    class Slow:
        async def read(self) -> bytes:
            await asyncio.sleep(0.5)
            return b"large"

    several = reads.Reads()
    several.limit(max_calls=256, max_bytes=64 << 20)  # four may be late
    calls = []
    for number in range(10):
        calls.append(asyncio.ensure_future(several.read(cast(reads.Context, Slow()), ("app", number), 30.0)))
        await asyncio.sleep(0.03)
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert found[:4] == [b"large"] * 4
    assert any(isinstance(each, Busy) for each in found)
