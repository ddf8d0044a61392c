"""The local API as a whole: where it listens, and what becomes of an address that it cannot have."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from edge_agent.client import Client
from edge_agent.config import ApiSettings
from edge_agent.contract.errors import AddressInUse, ConfigurationError
from tests.edge_agent.serving.conftest import make_models
from tests.fakes.packages import reference_images
from tests.fakes.serving_device import serving


def test_every_way_in_answers_at_the_address_that_is_told(tmp_path: Path) -> None:
    make_models(tmp_path)
    settings = ApiSettings(
        port=0, unix_socket=str(tmp_path / "api.sock"), frames_socket=str(tmp_path / "frames.sock"), socket_mode="600"
    )
    with serving(tmp_path, settings) as device:
        addresses = device.api.addresses
        assert addresses == {
            "api": f"http://127.0.0.1:{device.port}",
            "unix": f"unix:{settings.unix_socket}",
            "frames": f"unix:{settings.frames_socket}",
        }
        assert device.ask("GET", "/v2")[0] == device.ask_unix("GET", "/v2")[0] == 200
        for path in (settings.unix_socket, settings.frames_socket):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116 - one call
        with Client(settings.frames_socket) as frames:
            assert frames.infer("digits", {"image": reference_images(1)}).model == "digits"
    assert not Path(settings.unix_socket).exists()


def test_without_tcp_the_unix_socket_is_the_address(tmp_path: Path) -> None:
    make_models(tmp_path)
    settings = ApiSettings(host="", unix_socket=str(tmp_path / "api.sock"))
    with serving(tmp_path, settings) as device:
        assert device.api.addresses == {"api": f"unix:{settings.unix_socket}", "unix": f"unix:{settings.unix_socket}"}
        assert device.ask_unix("GET", "/v2/health/ready")[0] == 200


def test_a_taken_address_gives_back_those_that_were_free(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port}"), serving(tmp_path, ApiSettings(port=port)):
            pass
    wrong = ApiSettings(port=0, unix_socket=str(tmp_path / "models"))
    with pytest.raises(ConfigurationError, match="no socket"), serving(tmp_path, wrong):
        pass
    with serving(tmp_path, ApiSettings(port=port)) as device:
        assert device.port == port
