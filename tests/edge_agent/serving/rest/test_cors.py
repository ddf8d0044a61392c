"""What web pages may do, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.config import ApiSettings
from edge_agent.contract.errors import ConfigurationError
from edge_agent.serving.rest.cors import Origins
from tests.edge_agent.serving.rest.requests import INFER, image
from tests.fakes.packages import make_package
from tests.fakes.serving_device import Device, serving

_PAGE = "https://app.example"
_PREFLIGHT = {
    "Origin": _PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type",
}


def _device(folder: Path, *origins: str) -> Iterator[Device]:
    make_package(folder / "models" / "digits")
    socket = str(folder / "api.sock")
    with serving(folder, ApiSettings(port=0, unix_socket=socket, cors_origins=origins)) as device:
        yield device


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    yield from _device(tmp_path_factory.mktemp("closed"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    yield from _device(tmp_path_factory.mktemp("opened"), _PAGE, "http://panel.example:8080")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    yield from _device(tmp_path_factory.mktemp("wide"), "*")


def _cors(headers: dict[str, str]) -> set[str]:
    return {name for name in headers if name.startswith("access-control-")} | ({"vary"} & set(headers))


def test_no_page_may_read_or_send_by_default(closed: Device) -> None:
    status, headers, body = closed.ask("POST", INFER, image(), {"Origin": _PAGE})
    assert status == 403
    assert "pages of 'https://app.example' may not ask this device" in json.loads(body)["error"]
    assert _cors(headers) == set()
    status, headers, _ = closed.ask("GET", "/v2/models/digits", None, {"Origin": _PAGE})
    assert (status, _cors(headers)) == (200, set())  # a browser keeps it from the page
    status, _, body = closed.ask("OPTIONS", INFER, None, _PREFLIGHT)
    assert status == 403
    assert "name the origin in cors_origins under [api]" in json.loads(body)["error"]
    assert closed.ask("OPTIONS", INFER)[0] == 405
    assert closed.slots.get("digits").requests == 0
    assert closed.ask("POST", INFER, image(), {"Origin": "null"})[0] == 403


def test_the_apis_own_page_may_ask(closed: Device) -> None:
    own = {"Origin": f"http://127.0.0.1:{closed.port}"}
    assert closed.ask("POST", INFER, image(), own)[0] == 200
    assert closed.ask("POST", INFER, image(), {"Origin": "http://127.0.0.1:1"})[0] == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example:8500", 403),
        ("127.0.0.1.evil.example", 403),
        ("Evil.Example.", 403),
        ("localhost:8500", 200),
        ("LOCALHOST", 200),
        ("device:8500", 200),
        ("camera.local", 200),
        ("[::1]:8500", 200),
        ("10.0.0.7:8500", 200),
    ],
)
def test_a_name_that_somebody_could_point_here_is_refused_without_a_token(
    closed: Device, host: str, status: int
) -> None:
    for method, path, body in (("GET", "/v2/models/digits", None), ("POST", INFER, image())):
        found, _, data = closed.ask(method, path, body, {"Host": host})
        assert found == status
        assert status == 200 or "is a public name" in json.loads(data)["error"]
    assert closed.ask("GET", "/v2/health/live", None, {"Host": host})[0] == 200


def test_on_a_unix_socket_names_do_not_matter_but_origins_do(closed: Device) -> None:
    assert closed.ask_unix("POST", INFER, image(), {"Host": "evil.example"})[0] == 200
    assert closed.ask_unix("POST", INFER, image(), {"Origin": _PAGE})[0] == 403


def test_a_preflight_of_an_allowed_origin_is_granted_for_any_path(opened: Device) -> None:
    for path in (INFER, "/v2/repository/index", "/v2/models/cats/infer"):
        status, headers, body = opened.ask("OPTIONS", path, None, _PREFLIGHT)
        assert (status, body) == (204, b"")
        assert headers["access-control-allow-origin"] == _PAGE
        assert "POST" in headers["access-control-allow-methods"]
        assert {"authorization", "content-type"} <= set(headers["access-control-allow-headers"].split(", "))
        assert headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in headers
    assert opened.ask("OPTIONS", INFER, None, {**_PREFLIGHT, "Origin": "https://evil.example"})[0] == 403


def test_an_allowed_page_sends_and_reads_answers_and_errors(opened: Device) -> None:
    wrong = image(pixels=7.0)
    for path, request, status in ((INFER, image(), 200), (INFER, wrong, 400), ("/v2/models/cats/infer", image(), 404)):
        found, headers, _ = opened.ask("POST", path, request, {"Origin": _PAGE})
        assert (found, headers["access-control-allow-origin"], headers["vary"]) == (status, _PAGE, "Origin")
    status, headers, _ = opened.ask("GET", "/v2/models/digits", None, {"Origin": "https://evil.example"})
    assert (status, _cors(headers)) == (200, {"vary"})
    assert opened.ask("POST", INFER, image(), {"Origin": "https://evil.example"})[0] == 403
    assert opened.ask("GET", "/v2", None, {"Host": "panel.example:8500"})[0] == 200


def test_any_origin_may_be_allowed(wide: Device) -> None:
    status, headers, _ = wide.ask("POST", INFER, image(), {"Origin": "https://anybody.example"})
    assert (status, headers["access-control-allow-origin"], "vary" in headers) == (200, "*", False)


@pytest.mark.parametrize(
    "origin",
    [
        "app.example",
        "https://app.example/",
        "https://App.example",
        "ftp://app.example",
        "https://",
        "https://a:b@c",
        "x",
    ],
)
def test_an_origin_that_is_none_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="is no origin: write it as"):
        Origins([origin])
