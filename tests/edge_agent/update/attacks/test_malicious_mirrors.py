"""Malicious mirrors: who passes files on may change, withhold or mix them (TUF 1.5.2)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from edge_agent.config import UpdateSettings
from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from tests.edge_agent.update.attacks.thief import gone, recovers, send_body, unharmed
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice


@pytest.fixture
def liar() -> Iterator[str]:
    """A mirror that answers every question with bytes of its own; gives its URL."""

    class Lies(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert "Authorization" not in self.headers, "no mirror is told the device's secret"
            self.send_response(200)
            self.send_header("Content-Length", "9")
            self.end_headers()
            self.wfile.write(b"all lies!")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Lies) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_mirror_that_lies_costs_time_and_nothing_else(
    server: UpdateServer, new_device: NewDevice, device: UpdatingDevice, second: Package, liar: str
) -> None:
    device.close()
    mirrored = new_device(settings=UpdateSettings(mirrors=(liar,)))
    mirrored.update(server.assign(second))
    assert mirrored.version == "2"


def test_a_server_whose_files_all_are_garbage_changes_nothing(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    desired = server.assign(second)

    async def garbage(_path: str, send: object) -> None:
        await send_body(send, b'{"signed": "nothing"}')  # type: ignore[arg-type]

    server.line.answers["/updates/"] = garbage
    assert not device.apply(desired)
    unharmed(device, "director repository: what came is no metadata", refused=False)
    recovers(server, device, desired)


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_drops_files_leaves_the_old_version_serving(
    server: UpdateServer, device: UpdatingDevice, second: Package, status: int
) -> None:
    desired = server.assign(second)
    server.line.answers[blob_path("")] = gone(status)
    assert not device.apply(desired)
    unharmed(device, str(status), refused=False)
    recovers(server, device, desired)
