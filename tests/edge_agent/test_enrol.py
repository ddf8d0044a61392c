"""Enrolment against real HTTP: what is kept, and what is refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edge_agent.cli import main
from edge_agent.config import prepare_state
from edge_agent.contract.enrolment import BrokerAddress, Enrolment, EnrolmentRequest, EnrolmentRoots
from edge_agent.contract.errors import ConfigurationError, DeviceError, NetworkError, ServerRefused, TrustError
from edge_agent.contract.messages import Hardware
from edge_agent.enrol import enrol
from edge_agent.identity import read_identity

REQUEST = EnrolmentRequest(claim="token", device="press-7", hardware=Hardware(architecture="x86_64", system="Linux"))
ENROLMENT = Enrolment(
    fleet="f", device="press-7", secret="secret", server="http://server", broker=BrokerAddress(host="h", port=1883),
    image_root='{"image": 1}', director_root='{"director": 1}',
)  # fmt: skip

ROOTS = EnrolmentRoots(image_root=ENROLMENT.image_root, director_root=ENROLMENT.director_root)


class Server:
    """Answers every enrolment with ``status`` and ``body``, and who asks for its roots with those of ``ENROLMENT``."""

    def __init__(self) -> None:
        self.status, self.body = 200, msgspec.json.encode(ENROLMENT)
        self.roots = (200, msgspec.json.encode(ROOTS))
        self.asked: list[tuple[str, EnrolmentRequest]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append((self.path, msgspec.json.decode(body, type=EnrolmentRequest)))
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(outer.body)

            def do_GET(self) -> None:
                assert self.path == "/api/v1/enrol/roots"
                status, body = outer.roots
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Nothing: the test's output is its own."""

        self._http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    prepare_state(tmp_path / "state")
    return tmp_path / "state"


def test_the_identity_is_kept_for_its_owner_alone(server: Server, state: Path) -> None:
    assert enrol(state, server.url, REQUEST, image_root=None, director_root=None) == ENROLMENT
    assert read_identity(state) == ENROLMENT
    assert (state / "identity.json").stat().st_mode & 0o777 == 0o600
    assert server.asked == [("/api/v1/enrol", REQUEST)]


def test_a_device_with_an_identity_does_not_spend_another_claim(server: Server, state: Path) -> None:
    enrol(state, server.url, REQUEST, image_root=None, director_root=None)
    with pytest.raises(ConfigurationError, match=r"has enrolled already; .* remove it and identity\.copy\.json"):
        enrol(state, server.url, REQUEST, image_root=None, director_root=None)
    assert len(server.asked) == 1


def test_a_new_identity_is_said_to_take_a_damaged_ones_place_once_it_has(
    server: Server, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("identity.json", "identity.copy.json"):
        (state / name).write_bytes(b"{")
    server.status, server.body = 409, b'{"error": "is enrolled already"}'
    with pytest.raises(ServerRefused):
        enrol(state, server.url, REQUEST, image_root=None, director_root=None)
    assert "place" not in caplog.text
    server.status, server.body = 200, msgspec.json.encode(ENROLMENT)
    enrol(state, server.url, REQUEST, image_root=None, director_root=None)
    assert f"{state}/identity.json was damaged; the new identity has taken its place" in caplog.text
    assert read_identity(state) == ENROLMENT


def test_a_server_with_another_root_than_the_pinned_one_gets_no_claim(
    server: Server, state: Path, tmp_path: Path
) -> None:
    pinned = tmp_path / "root.json"
    pinned.write_text('{"image": 2}')
    with pytest.raises(TrustError, match=r"its image root \(.*\) is not the one .* claim was not sent"):
        enrol(state, server.url, REQUEST, image_root=pinned, director_root=None)
    assert server.asked == []
    assert read_identity(state) is None
    pinned.write_text(ENROLMENT.image_root)
    enrol(state, server.url, REQUEST, image_root=pinned, director_root=None)


def test_bytes_that_are_no_text_are_an_answer_of_something_else(server: Server, state: Path) -> None:
    server.body = msgspec.json.encode(ENROLMENT).replace(b'"fleet":"', b'"fleet":"\xff', 1)
    with pytest.raises(NetworkError, match="with something else"):
        enrol(state, server.url, REQUEST, image_root=None, director_root=None)
    assert read_identity(state) is None


@pytest.mark.parametrize("roots", [(404, b'{"error": "not found"}'), (200, msgspec.json.encode(ROOTS))])
def test_what_the_claim_brings_is_held_against_the_pins_as_well(
    roots: tuple[int, bytes], server: Server, state: Path, tmp_path: Path
) -> None:
    """An older server gives no roots beforehand, and one that lies gives those that are wanted."""
    pinned = tmp_path / "root.json"
    pinned.write_text(ENROLMENT.director_root)
    server.roots, server.body = roots, msgspec.json.encode(msgspec.structs.replace(ENROLMENT, director_root="{}"))
    with pytest.raises(TrustError, match=r"its director root .* the claim is spent"):
        enrol(state, server.url, REQUEST, image_root=None, director_root=pinned)
    assert read_identity(state) is None


@pytest.mark.parametrize("roots", [(200, b"<html>welcome</html>"), (500, b'{"error": "no disk"}')])
def test_who_gives_no_roots_gets_no_claim(
    roots: tuple[int, bytes], server: Server, state: Path, tmp_path: Path
) -> None:
    pinned = tmp_path / "root.json"
    pinned.write_text(ENROLMENT.image_root)
    server.roots = roots
    with pytest.raises(NetworkError, match=r"gives no roots|no disk"):
        enrol(state, server.url, REQUEST, image_root=pinned, director_root=None)
    assert server.asked == []


def test_a_pinned_root_that_cannot_be_read_is_named_before_the_claim_is_spent(server: Server, state: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read as root metadata"):
        enrol(state, server.url, REQUEST, image_root=None, director_root=state)
    assert server.asked == []


def test_an_identity_that_cannot_be_kept_is_an_error_with_its_file(server: Server, state: Path) -> None:
    (state / ".identity.json.new").mkdir()
    with pytest.raises(DeviceError, match=r"identity\.json"):
        enrol(state, server.url, REQUEST, image_root=None, director_root=None)
    assert read_identity(state) is None


def test_a_server_that_speaks_no_http_is_named(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(NetworkError, match="is the server running and reachable"):
            enrol(state, f"http://127.0.0.1:{other.getsockname()[1]}", REQUEST, image_root=None, director_root=None)
        thread.join()


def test_the_servers_own_words_reach_the_person(server: Server, state: Path) -> None:
    server.status, server.body = 403, b'{"error": "the claim has expired"}'
    with pytest.raises(ServerRefused, match=r"403: .*the claim has expired"):
        enrol(state, server.url, REQUEST, image_root=None, director_root=None)
    assert read_identity(state) is None


@pytest.mark.parametrize(("status", "exit_code"), [(403, 7), (409, 7), (429, 5), (503, 5)])
def test_a_refusal_that_is_final_is_told_from_a_server_that_may_come_back(
    server: Server, state: Path, status: int, exit_code: int
) -> None:
    server.status, server.body = status, b'{"error": "the claim token has been used already"}'
    command = ["enrol", "--state", str(state), "--server", server.url, "--claim", "token", "--device", "press-7"]
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, "has been used already" in done.output) == (exit_code, True)


@pytest.mark.parametrize(
    ("body", "said"),
    [(b'{"error": "the claim is spent"}', "409: the claim is spent"), (b"<html>no</html>", "409: <html>no</html>")],
)
def test_a_refusal_is_shown_in_the_servers_words(server: Server, state: Path, body: bytes, said: str) -> None:
    server.status, server.body = 409, body
    with pytest.raises(ServerRefused) as refused:
        enrol(state, server.url, REQUEST, image_root=None, director_root=None)
    assert str(refused.value) == f"{server.url}/api/v1/enrol: {said}"


def test_an_answer_that_is_no_enrolment_is_refused(server: Server, state: Path) -> None:
    server.body = b"<html>welcome to the hotel's network</html>"
    with pytest.raises(NetworkError, match="answered the enrolment with something else"):
        enrol(state, server.url, REQUEST, image_root=None, director_root=None)
    assert read_identity(state) is None


@pytest.mark.parametrize(
    ("url", "device", "said"),
    [("ftp://x", "press-7", "begin it with http"), ("http://x", "Press 7", "use 1 to 63 of a-z")],
)
def test_a_wrong_url_or_name_is_refused_before_anything_is_sent(state: Path, url: str, device: str, said: str) -> None:
    request = msgspec.structs.replace(REQUEST, device=device)
    with pytest.raises(ConfigurationError, match=said):
        enrol(state, url, request, image_root=None, director_root=None)


def test_a_server_that_is_not_there_is_named(state: Path) -> None:
    with pytest.raises(NetworkError, match=r"http://127\.0\.0\.1:9/.*is the server running"):
        enrol(state, "http://127.0.0.1:9", REQUEST, image_root=None, director_root=None)
