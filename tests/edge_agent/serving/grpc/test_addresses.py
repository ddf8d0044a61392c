"""Where gRPC listens, and what becomes of an address that it cannot have."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from edge_agent.config import ApiSettings
from edge_agent.contract.errors import AddressInUse, ConfigurationError
from edge_agent.serving.listen import listen_unix
from tests.edge_agent.serving.conftest import make_models
from tests.edge_agent.serving.grpc.asking import ask, right
from tests.fakes.serving_device import serving


def test_a_taken_address_is_known_before_anything_starts(tmp_path: Path) -> None:
    make_models(tmp_path)
    settings = ApiSettings(port=0, grpc_port=0, grpc_socket=str(tmp_path / "grpc.sock"))
    with serving(tmp_path, settings) as device:
        port = int(device.api.addresses["grpc"].rpartition(":")[2])
        for number, taken in enumerate((ApiSettings(port=0, grpc_port=port), settings)):
            with pytest.raises(AddressInUse), serving(tmp_path / str(number), taken):
                pass
        assert ask(device, right()).model_name == "digits"


def test_a_port_needs_a_host(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    wrong = ApiSettings(host="", unix_socket=str(tmp_path / "s"), grpc_port=0)
    with pytest.raises(ConfigurationError, match="needs a host"), serving(tmp_path, wrong):
        pass


def test_an_address_that_is_taken_before_it_starts_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    settings = ApiSettings(
        port=0, unix_socket=str(tmp_path / "api.sock"), grpc_port=0, grpc_socket=str(tmp_path / "grpc.sock")
    )
    with serving(tmp_path, settings, start=False) as device:
        port = int(device.api.addresses["grpc"].rpartition(":")[2])
        with socket.create_server(("127.0.0.1", port)), pytest.raises(AddressInUse, match=f"127.0.0.1:{port}"):
            device.api.start()
        assert not list(tmp_path.glob("*.sock"))
        anothers = listen_unix(settings.grpc_socket)
    assert Path(settings.grpc_socket).exists()
    anothers.close()


def test_a_socket_that_cannot_be_gives_back_those_before_it(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    wrong = ApiSettings(port=0, unix_socket=str(tmp_path / "api.sock"), grpc_port=0, grpc_socket=str(tmp_path))
    with pytest.raises(ConfigurationError, match="no socket"), serving(tmp_path, wrong):
        pass
    assert not list(tmp_path.glob("*.sock"))
