"""`shoal-agent` as a person at the device meets it: what it says, and with which status it ends."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.contract.manifest import MANIFEST_FILE
from tests.e2e.running_agent import Agent, agent, shoal_agent, until
from tests.fakes.packages import make_package
from tests.fakes.pipeline_package import make_pipeline_package, make_scaler_package
from tests.fakes.small_disk import run_on_full_disk


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Agent]:
    with agent(tmp_path / "device") as one:
        yield one


def fails(*arguments: str | Path, code: int) -> str:
    """The one line with which `shoal-agent` ends."""
    done = shoal_agent(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("shoal-agent: ")]
    return line


def test_help_teaches_the_first_steps() -> None:
    done = shoal_agent("--help")
    assert done.returncode == 0
    for shown in ("enrol", "run", "install", "status", "--claim TOKEN", "Exit codes"):
        assert shown in done.stdout
    for command in ("enrol", "run", "install", "status"):
        assert shoal_agent(command, "--help").returncode == 0


def test_a_taken_port_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = fails("run", "--state", tmp_path / "state", "--port", str(port), code=6)
    assert f"127.0.0.1:{port}: already in use" in line
    assert not (tmp_path / "state" / "agent.json").exists()


def test_a_state_folder_without_permission_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        forbidden = Path("/sys/shoal")  # root may write anywhere but in the kernel's own files
    else:
        (tmp_path / "read-only").mkdir(mode=0o500)
        forbidden = tmp_path / "read-only" / "state"
    assert "not writable by this user" in fails("run", "--state", forbidden, "--port", "0", code=6)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    state = tmp_path / "small" / "state"
    command = [sys.executable, "-m", "edge_agent.cli", "run", "--state", str(state), "--port", "0"]
    done = run_on_full_disk(command, tmp_path / "small")
    assert done.returncode == 6, done.stderr
    assert "no space left on the device" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_that_do_not_belong_are_named(tmp_path: Path) -> None:
    settings = tmp_path / "agent.toml"
    settings.write_text("[api]\nprot = 1\n")
    assert "prot" in fails("run", "--config", settings, code=2)


def test_two_agents_do_not_share_a_state_folder(device: Agent) -> None:
    device.start()
    line = fails("run", "--config", device.settings, code=2)
    assert "another agent, or a program that has loaded a model with it, uses this state folder" in line
    assert "uses this state folder" in fails("install", "--config", device.settings, device.state, code=2)
    assert device.stop() == 0
    assert not (device.state / "agent.json").exists()


def test_a_device_that_has_not_enrolled_is_told_how_to(device: Agent) -> None:
    device.start()
    assert "this device has not enrolled" in device.log
    assert "to join a fleet: shoal-agent enrol --help" in device.log


def test_an_agent_ends_without_a_word_of_python(device: Agent) -> None:
    device.start()
    with urllib.request.urlopen(f"http://{device.address}/v2/health/live") as answer:  # so the server minds signals
        assert answer.status == 200
    assert device.stop() == 0
    assert "Traceback" not in device.log
    assert "Exception in thread" not in device.log
    assert "SIGTERM: no more requests are taken" in device.log
    assert device.log.rstrip().endswith("stopped")


def test_a_package_is_installed_by_hand_and_shown(tmp_path: Path, device: Agent) -> None:
    package = make_package(tmp_path / "package")
    done = shoal_agent("install", "--config", device.settings, package.folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "digits 1 is active" in done.stdout
    shown = shoal_agent("status", "--config", device.settings).stdout
    assert "not enrolled" in shown
    assert package.digest[:12] in shown


def test_a_package_installed_by_hand_takes_the_place_of_the_one_before_and_can_be_removed(
    tmp_path: Path, device: Agent
) -> None:
    first, second = (make_package(tmp_path / version, version=version, seed=int(version)) for version in ("1", "2"))
    for package, said in (
        (first, "digits 1 is active."),
        (second, "digits 2 is active; digits 1 was, and is kept to go back to."),
        (second, "digits 2 was active already, this very package."),
    ):
        done = shoal_agent("install", "--config", device.settings, package.folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout
    assert device.slots["active"] == second.digest
    assert device.slots["last_known_good"] == first.digest
    assert "installed are: digits" in fails("remove", "--config", device.settings, "reader", code=2)
    assert "digits is no longer installed" in shoal_agent("remove", "--config", device.settings, "digits").stdout
    assert device.slots == {}


def test_a_pipeline_is_installed_by_hand_after_its_steps(tmp_path: Path, device: Agent) -> None:
    pipeline = make_pipeline_package(tmp_path / "reader")
    line = fails("install", "--config", device.settings, pipeline.folder, code=2)
    assert "Install the steps of 'reader' first" in line
    assert "runtime.models" in line
    for package in (make_package(tmp_path / "digits"), make_scaler_package(tmp_path / "scaler"), pipeline):
        assert shoal_agent("install", "--config", device.settings, package.folder).returncode == 0
    device.start()
    until(lambda: "reader 1" in device.log, f"the log to name the pipeline; it says: {device.log}")


def test_a_tampered_package_is_refused_by_hand_too(tmp_path: Path, device: Agent) -> None:
    package = make_package(tmp_path / "package")
    with (package.folder / "model.onnx").open("ab") as model:
        model.write(b"x")
    line = fails("install", "--config", device.settings, package.folder, code=4)
    assert "model.onnx: expected sha256" in line
    assert device.slots == {}


def test_a_package_that_fails_its_self_test_is_not_installed(tmp_path: Path, device: Agent) -> None:
    package = make_package(tmp_path / "package", golden_is_wrong=True)
    line = fails("install", "--config", device.settings, package.folder, code=3)
    assert "probabilities" in line
    assert device.slots == {}


def test_a_folder_that_is_no_package_is_named(tmp_path: Path, device: Agent) -> None:
    (tmp_path / "empty").mkdir()
    assert MANIFEST_FILE in fails("install", "--config", device.settings, tmp_path / "empty", code=3)


def test_a_package_that_rots_on_disk_is_not_served(tmp_path: Path, device: Agent) -> None:
    package = make_package(tmp_path / "package")
    assert shoal_agent("install", "--config", device.settings, package.folder).returncode == 0
    rotten = device.state / "packages" / package.digest / "model.onnx"
    shutil.copy(rotten, tmp_path / "whole")
    rotten.chmod(0o644)
    rotten.write_bytes(rotten.read_bytes()[:-1] + b"x")
    device.start()
    slots = json.loads((device.state / "slots.json").read_text())["models"]["digits"]
    assert "could not start" in slots["reason"]
    assert slots.get("active", "") == ""
