"""The REST API as strangers, mistaken clients and people on an island without internet meet it."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import generate_latest

from edge_agent.contract.errors import StorageFull
from fleet_server.database import Database, metadata
from fleet_server.http_limits import BODY_LIMIT_BYTES
from fleet_server.metrics import ServerMetrics
from fleet_server.updates.blobs import BlobStore
from tests.fleet_server.running_server import Running, prepared, server, shoal

HARDWARE = {"architecture": "aarch64", "system": "Linux"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Running]:
    data = prepared(tmp_path_factory.mktemp("api") / "data", keys)
    with server(data) as one:
        yield one


@pytest.fixture
def other_program() -> Iterator[str]:
    """Something that speaks HTTP and is no Shoal server."""

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if "runs" in self.path else 200)
            self.send_header("Location", "https://elsewhere.example/")
            self.end_headers()
            self.wfile.write(b"<h1>It works!</h1>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hello) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{one.server_port}"
        one.shutdown()
        thread.join()


def test_a_stranger_cannot_fill_the_servers_memory(running: Running) -> None:
    address, large = f"{running.url}/api/v1/enrol", b" " * (BODY_LIMIT_BYTES + 1)
    pieces = (b" " * (1 << 20) for _ in range(20))
    for body in (large, pieces):
        answer = httpx.post(address, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert "larger than" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "claims", b'{"device": "Line 3"}'),
        ("POST", "claims", b"{"),
        ("POST", "enrol", b'{"claim": "x", "device": "Line 3", "hardware": {"architecture": "a", "system": "b"}}'),
        ("POST", "enrol", b'{"claim": "\\ud800", "device": "d0", "hardware": {}}'),
        ("POST", "enrol", b"[]"),
        ("POST", "runs/r/result", b'{"fence": 1e400}'),
        ("GET", "events?before=99999999999999999999", b""),
        ("GET", "models/digits/accuracy?since_ms=99999999999999999999", b""),
        ("DELETE", "tokens/99999999999999999999", b""),
        ("POST", "rollouts", b'{"model": "digits", "package": "1", "gate": {"soak_s": Infinity}}'),
        ("PUT", "models/digits/sampling", b'{"samples_per_minute": Infinity}'),
        ("PUT", "report-interval", b'{"seconds": NaN}'),
    ],
)
def test_what_makes_no_sense_is_the_callers_mistake(running: Running, method: str, path: str, body: bytes) -> None:
    with running.client() as client:
        answer = client.request(method, f"/api/v1/{path}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]


def test_a_policy_for_what_cannot_be_a_model_is_refused(running: Running) -> None:
    with running.client() as client:
        assert client.put("/api/v1/models/no%20model/sampling", json={}).status_code == 404


def test_signed_metadata_is_for_members_only(running: Running) -> None:
    assert httpx.get(f"{running.url}/updates/image/1.root.json").status_code == 401
    with running.client() as client:
        assert client.get("/updates/image/1.root.json").status_code == 200


def test_errors_are_described_as_they_are(running: Running) -> None:
    document = httpx.get(f"{running.url}/api/v1/openapi.json").json()
    declared = {tag["name"] for tag in document["tags"]}
    for methods in document["paths"].values():
        for operation in methods.values():
            assert set(operation["tags"]) <= declared
            assert "422" not in operation["responses"]
            assert operation["responses"]["default"] == {"$ref": "#/components/responses/Error"}
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path in ("/api/v1/enrol", "/api/v1/repository/metadata", "/api/v1/runs/{run}/result"):
        assert "requestBody" in document["paths"][path]["post"]


def test_the_page_of_the_api_loads_nothing_from_elsewhere(running: Running) -> None:
    page = httpx.get(f"{running.url}/api/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("</", "")
    loaded = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    assert len(loaded) == 4
    for address in loaded:
        assert httpx.get(running.url + address).status_code == 200
    assert "SwaggerUIBundle" in httpx.get(running.url + loaded[-1]).text


def test_methods_of_strangers_own_making_do_not_become_series(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'shoal.db'}")
    metadata.create_all(db.engine)
    metrics = ServerMetrics(db)
    for number in range(3):
        metrics.request_answered(f"HACK{number}", 405)
    text = generate_latest(metrics.registry).decode()
    db.close()
    assert 'shoal_http_requests_total{method="other",status="405"} 3.0' in text
    assert "HACK" not in text


def test_an_upload_to_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = BlobStore(tmp_path)

    def full(_descriptor: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageFull, match="no space left"), blobs.receive("a" * 64) as receiver:
        receiver.write(b"data")
    assert list((tmp_path / "staged").iterdir()) == []


def test_what_a_publisher_is_sending_stays_however_little_may_be_staged(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path, staged_limit_bytes=0)
    digest = hashlib.sha256(b"data").hexdigest()
    with blobs.receive(digest) as receiver:
        receiver.write(b"data")
        blobs.forget_abandoned()
    assert blobs.find(digest) is not None


def test_commands_say_what_is_wrong_with_what_they_were_given(running: Running, other_program: str) -> None:
    at = ("--data", str(running.data))
    for arguments, code, words in (
        (("devices", "show", "", *at), 2, "an empty name"),
        (("rollouts", "show", "../tokens", *at), 7, "not found"),
        (("devices", "claim", "--device", "Line 3", *at), 7, "device 'Line 3': use 1 to 63"),
        (("devices", "list", "--server", running.url, "--token", "schlüssel"), 2, "the token is none"),
        (("devices", "list", "--server", running.url, "--token", "wrong"), 7, "give a valid token"),
        (("devices", "list", "--server", other_program), 5, "is no Shoal server's"),
        (("runs", "list", "--server", other_program), 5, "elsewhere.example"),
    ):
        done = shoal(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert words in done.stderr


@pytest.mark.parametrize(
    ("method", "path", "body", "names"),
    [
        ("POST", "rollouts", {"model": "digits", "package": "1", "wave": [1]}, "body.wave"),
        ("POST", "rollouts", {"model": "digits", "package": "1", "gate": {"soak": 5}}, "body.gate.soak"),
        ("POST", "rollouts/r-1/halt", {"reason": "bad", "reverse": True}, "body.reverse"),
        ("POST", "claims", {"devices": "d0"}, "body.devices"),
        ("POST", "tokens", {"role": "viewer", "name": "x", "ttl": 5}, "body.ttl"),
        ("POST", "models/digits/versions/1/withdraw", {"reason": "bad", "force": True}, "body.force"),
        ("POST", "runs", {"model": "digits", "why": "x"}, "body.why"),
        ("POST", "runs/claim", {"worker": "w", "model": "x"}, "body.model"),
        ("POST", "runs/x/cancel", {"why": "x"}, "body.why"),
        ("PUT", "schedules/s", {"model": "digits", "expression": "0 3 * * *", "zone": "UTC"}, "body.zone"),
        ("PUT", "models/digits/sampling", {"labels": 3}, "body.labels"),
        ("PUT", "report-interval", {"seconds": 3, "unit": "s"}, "body.unit"),
        ("POST", "repository/metadata", {"files": {}, "force": True}, "force"),
    ],
)
def test_a_member_that_no_body_has_is_refused_by_name(
    running: Running, method: str, path: str, body: dict[str, object], names: str
) -> None:
    with running.client() as admin:
        trainer = admin.post("/api/v1/tokens", json={"role": "trainer", "name": "t"}).json()["token"]
    with running.client(trainer if ("claim" in path and "runs" in path) or "repository" in path else None) as client:
        answer = client.request(method, f"/api/v1/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert names in answer.json()["error"]


def test_waves_that_make_no_sense_are_the_callers_mistake(running: Running) -> None:
    with running.client() as admin:
        answer = admin.post("/api/v1/rollouts", json={"model": "digits", "package": "1", "waves": ["many"]})
    assert answer.status_code == 400
    assert "wave 'many': give a number of devices" in answer.json()["error"]


def test_a_path_that_is_none_is_named_with_where_to_look(running: Running) -> None:
    with running.client() as admin:
        nowhere, wrong = admin.get("/api/v1/nope"), admin.delete("/api/v1/devices")
    assert nowhere.json()["error"] == "GET /api/v1/nope: not found; /api/docs lists what there is"
    assert wrong.json()["error"] == "DELETE /api/v1/devices: method not allowed; /api/docs lists what there is"
