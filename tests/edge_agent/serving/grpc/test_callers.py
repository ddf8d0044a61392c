"""Who may call over gRPC, how often, and how slowly."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from edge_agent.config import ApiSettings, AppSettings
from tests.edge_agent.serving.conftest import make_models
from tests.edge_agent.serving.grpc.asking import ask, image_input, right
from tests.fakes.serving_device import Device, serving

TOKEN = "a-token-of-the-tests"
PRESS = AppSettings(name="press", token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(), models=("digits",))
BEARER = (("authorization", f"Bearer {TOKEN}"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a device with "digits" and "echo"."""
    folder = tmp_path_factory.mktemp("callers")
    make_models(folder)
    return folder


def test_applications_are_known_by_their_token(folder: Path) -> None:
    with serving(folder, ApiSettings(port=0, grpc_port=0, apps=(PRESS,))) as device:
        client = tritonclient.grpc.InferenceServerClient(device.api.addresses["grpc"])
        assert client.is_server_live()
        with pytest.raises(InferenceServerException) as unknown:
            client.infer("digits", [image_input()])
        assert unknown.value.status() == "StatusCode.UNAUTHENTICATED"
        headers = dict(BEARER)
        assert client.infer("digits", [image_input()], headers=headers).as_numpy("probabilities").shape == (3, 10)
        with pytest.raises(InferenceServerException, match="may not ask model 'echo'") as forbidden:
            client.get_model_metadata("echo", headers=headers)
        assert forbidden.value.status() == "StatusCode.PERMISSION_DENIED"
        with pytest.raises(InferenceServerException, match="control = true"):
            client.unload_model("digits", headers=headers)
        client.close()


def test_credentials_of_another_scheme_are_a_proxys_own(folder: Path) -> None:
    here = AppSettings(name="here", local=True)
    with serving(folder, ApiSettings(port=0, grpc_port=0, apps=(PRESS, here))) as device:
        with grpc.insecure_channel(device.api.addresses["grpc"]) as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata", bytes, bytes)
            assert live(b"", metadata=(("authorization", "Basic cHJveHk6cHJveHk="),), timeout=30)
            with pytest.raises(grpc.RpcError) as unknown:
                live(b"", metadata=(("authorization", "bearer another"),), timeout=30)
        assert unknown.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer", "RepositoryIndex", "SystemSharedMemoryRegister"])
def test_who_is_unknown_is_told_before_a_message_is_read(folder: Path, method: str) -> None:
    with serving(folder, ApiSettings(port=0, grpc_port=0, apps=(PRESS,))) as device, _silent(device, method) as call:
        with pytest.raises(grpc.RpcError) as unknown:
            call(())
        assert unknown.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", ["ModelInfer", "RepositoryIndex"])
def test_a_message_that_does_not_come_holds_its_call_for_so_long_only(folder: Path, method: str) -> None:
    settings = ApiSettings(port=0, grpc_port=0, body_timeout_s=0.3, apps=(PRESS,))
    with serving(folder, settings) as device, _silent(device, method) as call:
        with pytest.raises(grpc.RpcError) as late:
            call(BEARER)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not arrive within 0.3 s" in (late.value.details() or "")


def test_a_call_without_a_message_is_refused(folder: Path) -> None:
    with (
        serving(folder, ApiSettings(port=0, grpc_port=0)) as device,
        grpc.insecure_channel(device.api.addresses["grpc"]) as channel,
    ):
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer", bytes, bytes)
        with pytest.raises(grpc.RpcError) as refused:
            call(iter(()), timeout=30)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_who_asks_too_often_is_told_when_to_ask_again(folder: Path) -> None:
    here = AppSettings(name="here", local=True, requests_per_s=0.01, burst=1)
    with serving(folder, ApiSettings(port=0, grpc_port=0, apps=(here,))) as device:
        assert ask(device, right()).model_name == "digits"
        with pytest.raises(grpc.RpcError) as refused:
            ask(device, right())
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        told = {pair.key: str(pair.value) for pair in refused.value.trailing_metadata()}
        assert 60 < int(told["retry-after"]) <= 100  # a request in 100 s, less what has passed since the first one


@contextlib.contextmanager
def _silent(device: Device, method: str) -> Iterator[Callable[[Any], Any]]:
    """Calls a method with metadata, and never sends a message."""
    over = threading.Event()

    def messages() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with grpc.insecure_channel(device.api.addresses["grpc"]) as channel:
        path = f"/inference.GRPCInferenceService/{method}"
        call: Callable[..., Any] = channel.stream_unary(path, bytes, bytes)
        if method == "ModelStreamInfer":
            stream = channel.stream_stream(path, bytes, bytes)
            call = lambda *given, **named: list(stream(*given, **named))  # noqa: E731
        try:
            yield lambda metadata: call(messages(), metadata=metadata, timeout=30)
        finally:
            over.set()
