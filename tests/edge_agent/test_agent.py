"""The agent's parts put together: what the server wishes reaches them, and its end finds them all."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edge_agent.agent import Agent
from edge_agent.by_hand import install
from edge_agent.cli import main
from edge_agent.config import AgentConfig, ApiSettings, ReportSettings
from edge_agent.contract.enrolment import BrokerAddress, Enrolment
from edge_agent.contract.errors import ConfigurationError, DeviceError, UnknownModel
from edge_agent.contract.messages import Desired
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.identity import keep_identity
from edge_agent.reporter import ALONE_INTERVAL_S
from tests.fakes.packages import make_package

ENROLMENT = Enrolment(
    fleet="main", device="press-7", secret="s", server="http://127.0.0.1:1",
    broker=BrokerAddress(host="127.0.0.1", port=1), image_root="{}", director_root="{}",
)  # fmt: skip


def config(state: Path) -> AgentConfig:
    return AgentConfig(state=str(state), api=ApiSettings(port=0), report=ReportSettings(interval_s=7.0))


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(config(tmp_path))
    yield made
    made.close()


def test_wishes_that_the_server_takes_back_no_longer_hold(agent: Agent) -> None:
    policy = SamplingPolicy(samples_per_minute=1.0)
    agent._take_desired(Desired(revision=1, sampling={"digits": policy}, report_interval_s=2.0))
    assert (agent._monitor._policies, agent._reporter._interval_s) == ({"digits": policy}, 2.0)
    agent._take_desired(Desired(revision=2))
    assert (agent._monitor._policies, agent._reporter._interval_s) == ({}, ALONE_INTERVAL_S)


def test_a_device_without_a_fleet_seldom_reports_to_its_disk_and_keeps_the_pace_it_was_set_where_that_is_slower(
    tmp_path: Path,
) -> None:
    for interval_s, kept in ((0.5, ALONE_INTERVAL_S), (3600.0, 3600.0)):
        settings = msgspec.structs.replace(config(tmp_path), report=ReportSettings(interval_s=interval_s))
        agent = Agent(settings)
        assert agent._reporter._interval_s == kept
        agent.close()


def test_what_an_agent_writes_is_for_its_user_alone_and_a_folder_open_to_others_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o755)
    agent = Agent(config(tmp_path))
    try:
        agent._start()
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()}
        assert {modes[name] for name in ("agent.json", "agent.lock", "outbox.db", "requests.db")} == {0o600}
        assert f"(mode 755): chmod 700 {tmp_path}" in caplog.text
    finally:
        agent.close()


def test_an_agent_that_serves_nothing_or_nobody_says_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    agent = Agent(msgspec.structs.replace(config(tmp_path), api=ApiSettings(host="")))
    try:
        agent._start()
        assert "nobody can ask this agent: set host, unix_socket" in caplog.text
        assert "listening on no address, serving no model yet: stop the agent and run `shoal-agent ins" in caplog.text
        with pytest.raises(
            UnknownModel, match=r"served are: none yet: stop the agent .* runtime\.models in the agent's"
        ):
            agent._slots.get("digits")
    finally:
        agent.close()


def test_an_agent_that_could_not_start_ends_in_good_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(config(tmp_path))
    monkeypatch.setattr(agent._installer, "start", _fail)
    with pytest.raises(DeviceError, match="worn out"):
        agent.run()
    Agent(config(tmp_path)).close()  # neither the lock nor the databases are held any more


def test_an_agent_whose_identity_is_damaged_beyond_mending_serves_and_says_so_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, enrolment = tmp_path / "state", ENROLMENT
    state.mkdir(mode=0o700)
    install(state, make_package(tmp_path / "package").folder)
    keep_identity(state, enrolment)
    for name in ("identity.json", "identity.copy.json"):
        (state / name).write_bytes(bytes(100))
    agent = Agent(config(state))
    try:
        agent._start()
        agent._api.start()
        assert agent._link is None
        (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert f"{state}/identity.json" in said
        assert "enrol this device again" in said
        address = agent._api.addresses["api"].removeprefix("http://")
        for path in ("live", "ready"):
            assert ask(address, f"/v2/health/{path}") == (200, {"live": True, "ready": True, "trouble": said})
        agent._api.stop()
    finally:
        agent.close()
    shown = CliRunner().invoke(main, ["status", "--state", str(state)])
    assert shown.exit_code == 0
    assert shown.output.splitlines()[0] == f"damaged {said}"
    assert "digits" in shown.output
    keep_identity(state, enrolment)  # it has enrolled again
    again = Agent(config(state))
    assert again._link is not None
    again.close()


def ask(address: str, path: str) -> tuple[int, object]:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "agent.lock").mkdir()
    with pytest.raises(DeviceError, match=r"agent\.lock"):
        Agent(config(tmp_path))


def test_two_agents_do_not_share_a_state_folder(agent: Agent, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"another agent, .* uses this state folder; stop it, or give"):
        Agent(config(tmp_path))


def _fail() -> None:
    raise DeviceError("the disk is worn out")


_SERVE_ONCE = """
import http.client, json, sys
from pathlib import Path
from edge_agent.agent import Agent
from edge_agent.by_hand import install
from edge_agent.config import AgentConfig, ApiSettings

state, package = Path(sys.argv[1]), Path(sys.argv[2])
install(state, package)
agent = Agent(AgentConfig(state=str(state), api=ApiSettings(port=0)))
agent._start()
agent._api.start()
host, port = agent._api.addresses["api"].removeprefix("http://").split(":")
connection = http.client.HTTPConnection(host, int(port), timeout=30)
body = {"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64}]}
connection.request("POST", "/v2/models/digits/infer", json.dumps(body))
status = connection.getresponse().status
connection.close()
agent._api.stop()
agent.close()
print(json.dumps({"status": status, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""
# Verifying what the fleet signs and fetching it takes 11 MB, MQTT 1.5 MB.
_OF_UPDATES = {"cryptography", "securesystemslib", "tuf", "urllib3"}
_OF_THE_LINK = {"paho"}
# What only extras, other programs, or tests have.
_NEVER = {"fastapi", "google", "grpc", "jinja2", "onnx", "requests", "tensorrt", "torch"}


@pytest.mark.parametrize("has_fleet", [False, True])
def test_an_agent_takes_no_memory_for_what_it_does_not_need_yet(tmp_path: Path, *, has_fleet: bool) -> None:
    state, package = tmp_path / "state", make_package(tmp_path / "package")
    state.mkdir(mode=0o700)
    if has_fleet:
        (state / "identity.json").write_bytes(msgspec.json.encode(ENROLMENT))
    command = [sys.executable, "-c", _SERVE_ONCE, str(state), str(package.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == 200
    unneeded = _OF_UPDATES | _NEVER | (set() if has_fleet else _OF_THE_LINK)
    assert not unneeded & set(found["modules"])
