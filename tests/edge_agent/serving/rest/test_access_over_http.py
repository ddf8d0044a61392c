"""Tokens, users, permissions and quotas over real sockets."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import ApiSettings, AppSettings
from edge_agent.contract.errors import ConfigurationError
from tests.edge_agent.serving.rest.conftest import make_three
from tests.edge_agent.serving.rest.requests import INFER, image
from tests.fakes.serving_device import Device, serving

_APPS = (
    AppSettings(name="phone", token_sha256=hashlib.sha256(b"phone-token").hexdigest(), models=("digits",)),
    AppSettings(name="operator", token_sha256=hashlib.sha256(b"operator-token").hexdigest(), control=True),
    AppSettings(name="me", uid=os.getuid(), requests_per_s=0.01, burst=3),
)
_PHONE, _OPERATOR = {"Authorization": "Bearer phone-token"}, {"authorization": "bearer  operator-token"}


def _device(folder: Path) -> Iterator[Device]:
    make_three(folder)
    with serving(folder, ApiSettings(port=0, unix_socket=str(folder / "api.sock"), apps=_APPS)) as device:
        yield device


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    yield from _device(tmp_path)


def _error(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[2])["error"]


def test_without_a_known_token_nothing_but_health_and_pages_is_answered(device: Device) -> None:
    for wrong in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic cGhvbmU6eA=="}):
        for method, path in (("GET", "/v2"), ("POST", INFER), ("GET", "/metrics"), ("GET", "/openapi.json")):
            status, headers, _ = device.ask(method, path, image() if method == "POST" else None, wrong)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
        for path in ("/v2/health/live", "/v2/health/ready", "/docs", "/"):
            assert device.ask("GET", path, None, wrong)[0] == 200


def test_a_token_opens_what_its_application_may(device: Device) -> None:
    assert device.ask("POST", INFER, image(), _PHONE)[0] == 200
    status, text = _error(device.ask("POST", "/v2/models/echo/infer", image(), _PHONE))
    assert (status, "application 'phone' may not ask model 'echo'" in text) == (403, True)
    assert device.ask("POST", "/v2/models/cats/infer", image(), _PHONE)[0] == 403  # whether it is there, or not
    assert device.ask("POST", "/v2/models/cats/infer", image(), _OPERATOR)[0] == 404
    assert device.ask("GET", "/v2/models/echo", None, _OPERATOR)[0] == 200


def test_lists_show_an_application_only_what_it_may_ask(device: Device) -> None:
    index = json.loads(device.ask("POST", "/v2/repository/index", b"", _PHONE)[2])
    assert [one["name"] for one in index] == ["digits"]
    stats = json.loads(device.ask("GET", "/v2/models/stats", None, _PHONE)[2])
    assert [one["name"] for one in stats["model_stats"]] == ["digits"]
    paths = json.loads(device.ask("GET", "/openapi.json", None, _PHONE)[2])["paths"]
    assert [path for path in paths if path.endswith("/infer")] == [INFER]
    metrics = device.ask("GET", "/metrics", None, _PHONE)[2]
    assert b'model="digits"' in metrics
    assert b'model="echo"' not in metrics
    every = json.loads(device.ask("GET", "/openapi.json", None, _OPERATOR)[2])["paths"]
    assert len([path for path in every if path.endswith("/infer")]) == 3


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/repository/models/digits/load", b""),
        ("/v2/repository/models/digits/unload", b""),
        ("/v2/systemsharedmemory/region/mine/register", b"{}"),
        ("/v2/systemsharedmemory/unregister", b""),
        ("/v2/cudasharedmemory/unregister", b""),
    ],
)
def test_control_is_for_who_may(device: Device, path: str, body: Any) -> None:
    status, text = _error(device.ask("POST", path, body, _PHONE))
    assert (status, "control = true" in text) == (403, True)
    assert device.ask("POST", path, body, _OPERATOR)[0] in {200, 400}


def test_a_process_on_a_unix_socket_is_known_by_its_user_and_held_to_its_quota(device: Device) -> None:
    for _ in range(3):
        assert device.ask_unix("POST", INFER, image())[0] == 200
    status, headers, body = device.ask_unix("POST", INFER, image())
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert "application 'me' asks more than 0.01 times a second" in json.loads(body)["error"]
    assert device.ask_unix("GET", "/v2/health/live")[0] == 200  # never counted
    assert device.ask_unix("POST", INFER, image(), _PHONE)[0] == 200  # as another application
    metrics = device.ask("GET", "/metrics", None, _OPERATOR)[2].decode()
    assert 'shoal_app_requests_total{app="me"} 3' in metrics
    assert 'shoal_app_refused_total{app="me",reason="quota"} 1' in metrics


def test_a_token_speaks_for_a_page_of_anywhere(device: Device) -> None:
    """What a page cannot know, it cannot send behind somebody's back."""
    assert device.ask("POST", INFER, image(), {**_PHONE, "Origin": "https://app.example"})[0] == 200
    assert device.ask("GET", "/v2", None, {**_PHONE, "Host": "device.example"})[0] == 200


def test_a_token_makes_no_page_trusted_where_nobody_needs_one(tmp_path: Path) -> None:
    make_three(tmp_path)
    with serving(tmp_path, ApiSettings(port=0)) as device:
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            assert device.ask("POST", INFER, image(), {**headers, "Authorization": "Bearer x"})[0] == 403


def test_a_device_reached_from_elsewhere_does_not_start_without_tokens(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with (
        pytest.raises(ConfigurationError, match="no application has a token"),
        serving(tmp_path, ApiSettings(host="0.0.0.0", port=0)),
    ):
        pass
