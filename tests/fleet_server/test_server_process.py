"""The server as a process: what it leaves behind, and what it says when it cannot start."""

from __future__ import annotations

import os
import queue
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.fleet_server.running_server import Running, prepared, server, shoal


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Running]:
    data = prepared(tmp_path_factory.mktemp("server") / "data", keys)
    with server(data) as one:
        yield one


@pytest.fixture
def data(tmp_path: Path, keys: Path) -> Path:
    return prepared(tmp_path / "data", keys)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def fails(*arguments: str | Path, code: int) -> str:
    """The one line with which `shoal server` ends."""
    done = shoal("server", *arguments)
    assert done.returncode == code, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("shoal: ")]
    assert "Traceback" not in done.stderr
    return line


def test_secrets_are_readable_by_their_owner_alone(running: Running) -> None:
    for name in ("admin.token", "keys/director.pem"):
        assert stat.S_IMODE((running.data / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(running.data.stat().st_mode) == 0o700
    assert running.token not in (running.data / "server.json").read_text()


def test_a_data_folder_that_was_open_to_others_stays_so_and_is_told_of(tmp_path: Path, keys: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    said = shoal("server", "init", "--data", data, "--keys", keys)
    assert said.returncode == 0, said.stderr
    assert f"(mode 755): chmod 700 {data}" in said.stderr
    assert stat.S_IMODE(data.stat().st_mode) == 0o755
    assert stat.S_IMODE((data / "keys").stat().st_mode) == 0o700
    data.chmod(0o700)
    assert "chmod" not in shoal("server", "init", "--data", data, "--keys", keys).stderr


def test_keys_that_are_given_to_a_running_server_wait_for_its_next_start_and_init_says_so(
    running: Running, keys: Path
) -> None:
    said = shoal("server", "init", "--data", running.data, "--keys", keys)
    assert said.returncode == 0, said.stderr
    assert "goes on with those it began with" in said.stdout
    assert f"start it again, shoal server --data {running.data}" in said.stdout


def test_a_folder_with_one_half_of_new_keys_says_how_to_get_the_other(data: Path, keys: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert shoal("keys", "init", other, "--model", "digits").returncode == 0
    shutil.copy(other / "server/director.pem", data / "keys/director.pem")
    said = fails("--data", data, "--port", "0", "--broker-port", "0", code=2)
    assert "`shoal server init` was broken off, run it once more" in said


def test_health_and_metrics_need_no_token(running: Running) -> None:
    assert httpx.get(f"{running.url}/healthz").json() == {"status": "ok", "database": True, "broker": True}
    metrics = httpx.get(f"{running.url}/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert 'shoal_devices{online="true"} 0.0' in metrics.text


def test_the_api_describes_itself(running: Running) -> None:
    document = httpx.get(f"{running.url}/api/v1/openapi.json").json()
    paths = document["paths"]
    for path in ("/api/v1/enrol", "/api/v1/devices", "/api/v1/models", "/api/v1/rollouts", "/api/v1/runs/claim"):
        assert path in paths
    for methods in paths.values():
        for operation in methods.values():
            assert operation["tags"]
            assert operation.get("summary")
    assert httpx.get(f"{running.url}/api/docs").status_code == 200


def test_errors_have_one_form(running: Running) -> None:
    with running.client() as client:
        answers = {
            401: httpx.get(f"{running.url}/api/v1/devices"),
            404: client.get("/api/v1/devices/nobody"),
            405: client.delete("/api/v1/devices"),
            400: client.post("/api/v1/tokens", json={"role": "emperor", "name": "x"}),
        }
        answers[404] = client.get("/nowhere")
    for status, answer in answers.items():
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]
    assert "role" in answers[400].json()["error"]


def test_a_role_that_is_too_low_is_refused(running: Running) -> None:
    with running.client() as admin:
        token = admin.post("/api/v1/tokens", json={"role": "viewer", "name": "wall display"}).json()["token"]
    with running.client(token) as viewer:
        assert viewer.get("/api/v1/devices").status_code == 200
        refused = viewer.post("/api/v1/claims", json={})
    assert refused.status_code == 403
    assert "needs the role admin" in refused.json()["error"]


def test_the_login_link_of_the_log_opens_the_console_once(running: Running) -> None:
    (link,) = re.findall(r"http://\S+/login\?token=\S+", running.log)
    with httpx.Client(timeout=30.0) as browser:
        answer = browser.get(link)
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert browser.get(running.url).status_code == 200
        assert browser.get(f"{running.url}/api/v1/devices").status_code == 200
        foreign = browser.post(f"{running.url}/api/v1/claims", json={}, headers={"Sec-Fetch-Site": "cross-site"})
        assert foreign.status_code == 403
        browser.post(f"{running.url}/logout")
        assert browser.get(f"{running.url}/api/v1/devices").status_code == 401
    assert httpx.get(link).status_code == 401


def test_a_device_enrols_over_rest_and_its_secret_opens_its_own_metadata_only(running: Running) -> None:
    with running.client() as admin:
        claim = admin.post("/api/v1/claims", json={"device": "press-7"}).json()["claim"]
        body = {"claim": claim, "device": "press-7", "hardware": {"architecture": "aarch64", "system": "Linux"}}
        roots = httpx.get(f"{running.url}/api/v1/enrol/roots").json()
        enrolment = httpx.post(f"{running.url}/api/v1/enrol", json=body).json()
        again = httpx.post(f"{running.url}/api/v1/enrol", json=body)
    assert again.status_code == 403
    assert roots == {name: enrolment[name] for name in ("image_root", "director_root")}, "given to who has no claim yet"
    assert enrolment["server"] == running.url
    assert f"{enrolment['broker']['host']}:{enrolment['broker']['port']}" == running.broker
    assert '"_type": "root"' in enrolment["image_root"].replace('"_type":"root"', '"_type": "root"')
    with running.client(enrolment["secret"]) as device:
        assert device.get("/updates/director/press-7/1.root.json").status_code == 200
        assert device.get("/updates/director/press-8/1.root.json").status_code == 403
        assert device.get("/api/v1/devices").status_code == 401


def test_a_revoked_device_is_disconnected_and_cannot_come_back(running: Running) -> None:
    host, port = running.broker.split(":")
    with running.client() as admin:
        claim = admin.post("/api/v1/claims", json={}).json()["claim"]
        body = {"claim": claim, "device": "stolen", "hardware": {"architecture": "aarch64", "system": "Linux"}}
        secret = httpx.post(f"{running.url}/api/v1/enrol", json=body).json()["secret"]
        device = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="stolen", clean_session=False)
        device.username_pw_set("stolen", secret)
        answers: queue.Queue[bool] = queue.Queue()
        device.on_connect = lambda _client, _data, _flags, reason, _properties: answers.put(not reason.is_failure)
        device.on_disconnect = lambda *_: answers.put(False)
        device.connect(host, int(port))
        device.loop_start()
        assert answers.get(timeout=30)
        assert admin.post("/api/v1/devices/stolen/revoke").status_code == 204
        assert not answers.get(timeout=30)  # thrown out ...
        assert not answers.get(timeout=30)  # ... and not let in again
        device.loop_stop()
        assert admin.get("/api/v1/devices/stolen").json()["revoked"]
    with running.client(secret) as stolen:
        assert stolen.get("/updates/director/stolen/1.root.json").status_code == 401


def test_people_use_it_from_the_command_line(running: Running) -> None:
    at = ("--data", running.data)
    claim = shoal("devices", "claim", "--device", "cli-1", *at)
    assert (claim.returncode, len(claim.stdout.strip())) == (0, 43)
    assert "cli-1" not in shoal("devices", "list", *at).stdout  # claimed, not yet enrolled
    token = shoal("tokens", "create", "--role", "viewer", "--name", "cli", *at).stdout.strip()
    by_token = {"SHOAL_SERVER": running.url, "SHOAL_TOKEN": token}
    assert shoal("models", "list", environment=by_token).stdout == "nothing is published: shoal trainer --help\n"
    assert shoal("rollouts", "list", "--json", environment=by_token).stdout == "[]\n"
    refused = shoal("runs", "start", "digits", environment=by_token)
    assert (refused.returncode, refused.stderr) == (7, "shoal: this needs the role admin, the token has viewer\n")
    verbose = shoal("runs", "start", "digits", "--verbose", environment=by_token)
    assert f"{running.url}/api/v1/runs: 403: this needs the role admin" in verbose.stderr
    unknown = shoal("rollouts", "show", "r-9", *at)
    assert "there is no rollout 'r-9'" in unknown.stderr
    assert shoal("login", *at).stdout.startswith(f"{running.url}/login?token=")


def test_a_command_without_a_server_says_so() -> None:
    done = shoal("devices", "list", "--server", "http://127.0.0.1:9")
    assert done.returncode == 5
    assert "http://127.0.0.1:9 does not answer" in done.stderr


def test_it_ends_in_order_and_remembers_across_a_restart(data: Path) -> None:
    with server(data) as first, first.client() as client:
        claim = client.post("/api/v1/claims", json={}).json()["claim"]
        hardware = {"architecture": "x86_64", "system": "Linux"}
        client.post("/api/v1/enrol", json={"claim": claim, "device": "d0", "hardware": hardware})
    assert first.process.returncode == 0
    assert not (data / "server.json").exists()
    with server(data) as second, second.client() as client:
        assert second.token == first.token
        assert [device["name"] for device in client.get("/api/v1/devices").json()] == ["d0"]
        second.process.kill()  # and what a kill leaves behind stops nobody
    with server(data) as third, third.client() as client:
        assert len(client.get("/api/v1/devices").json()) == 1


def test_a_second_server_stays_out_of_the_folder(running: Running) -> None:
    line = fails("--data", running.data, "--port", "0", "--broker-port", "0", code=2)
    assert "another server works in this folder" in line
    assert (running.data / "server.json").exists()


def test_the_http_port_is_taken(data: Path, taken: int) -> None:
    line = fails("--data", data, "--port", str(taken), "--broker-port", "0", code=6)
    assert f"127.0.0.1:{taken} is taken: choose another --port" in line


def test_the_broker_port_is_taken(data: Path, taken: int) -> None:
    line = fails("--data", data, "--port", "0", "--broker-port", str(taken), code=6)
    assert f"127.0.0.1:{taken} is taken: choose another broker port" in line
    assert not (data / "server.json").exists()


def test_the_data_folder_cannot_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        forbidden = Path("/sys/shoal")  # root may write anywhere but in the kernel's own files
    else:
        forbidden = tmp_path / "read-only" / "data"
        forbidden.parent.mkdir(mode=0o500)
    assert "not writable by this user" in fails("--data", forbidden, code=6)


def test_a_data_folder_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "choose a folder for --data" in fails("--data", tmp_path / "file" / "data", code=6)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_the_disk_is_full(tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    script = 'mount -t tmpfs -o size=1m tmpfs "$1"; head -c 2m /dev/zero > "$1/filler"; shift; exec "$@"'
    command = [sys.executable, "-m", "fleet_server.cli", "server", "--data", str(mounted / "data")]
    unshared = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshared, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces")
    done = subprocess.run(
        [*unshared, "sh", "-c", script, "sh", str(mounted), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 6
    assert "no space left on the device" in done.stderr or "MiB are free" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_settings_are_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[http]\nport = 'high'")
    line = fails("--config", tmp_path / "config.toml", "--data", data, code=2)
    assert "config.toml: Expected `int`, got `str` - at `$.http.port`" in line


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("SHOAL_DATABASE", "nonsense:secret", "the database's URL cannot be used"),
        ("SHOAL_DATABASE", "mysql://me:secret@host/shoal", "postgresql+psycopg://USER@HOST/DATABASE"),
        ("SHOAL_DATABASE", "postgresql+psycopg://me:secret@127.0.0.1:9/shoal", "connection"),
        ("SHOAL_LAKE", "/proc/lake", "/proc/lake/samples: the lake cannot be used"),
    ],
)
def test_a_database_or_lake_that_cannot_be_used_is_named(data: Path, variable: str, value: str, says: str) -> None:
    done = shoal("server", "--data", data, "--port", "0", "--broker-port", "0", environment={variable: value})
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_missing_keys_are_asked_for(tmp_path: Path) -> None:
    missing = fails("--data", tmp_path / "empty", code=2)
    assert "director.pem is missing" in missing
    assert "shoal server init" in missing


def test_a_damaged_key_is_named(data: Path) -> None:
    (data / "keys" / "director.pem").write_text("scribble")
    assert "director.pem: cannot be used" in fails("--data", data, "--port", "0", "--broker-port", "0", code=2)


def test_the_folder_of_keys_is_none(tmp_path: Path) -> None:
    done = shoal("server", "init", "--data", tmp_path / "data", "--keys", tmp_path)
    assert done.returncode == 2
    assert "was not made by `shoal keys init`" in done.stderr
