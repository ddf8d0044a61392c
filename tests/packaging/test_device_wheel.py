"""The device-only wheel: holds edge_agent alone, installs into an empty environment, and works there."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.interpreters import OLDEST_PYTHON, Environment, find_python, run
from tests.packaging.running_agent import get_json, running_agent

pytestmark = pytest.mark.timeout(600)

_THIS_PYTHON = sys.version_info[:2]

# Hardware's own libraries, and those of the extra for gRPC: an environment without them lacks them.
_IMPORT_EVERYTHING = """
import importlib, pkgutil, edge_agent
for module in pkgutil.walk_packages(edge_agent.__path__, "edge_agent."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"tensorrt", "tensorrt_bindings", "pycuda", "grpc", "google"}:
            raise
"""


@pytest.fixture(
    scope="module",
    params=[pytest.param(version, id=".".join(map(str, version))) for version in (_THIS_PYTHON, OLDEST_PYTHON)],
)
def device(
    request: pytest.FixtureRequest, wheel: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    """An environment with the device wheel and what it pulls in, on each Python that matters."""
    python = find_python(request.param)
    if python is None:
        pytest.skip(f"no Python {request.param[0]}.{request.param[1]} on this machine")
    environment = Environment(root=tmp_path_factory.mktemp("device"))
    run([str(python), "-m", "venv", str(environment.root)])
    environment.install("-c", str(repository / "constraints.txt"), str(wheel))
    return environment


def test_the_wheel_holds_the_device_part_its_licence_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"edge_agent"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "edge_agent/contract/__init__.py" in names
    assert not any("__pycache__" in name for name in names)


def test_every_module_imports_in_an_empty_environment(device: Environment, tmp_path: Path) -> None:
    run([str(device.command("python")), "-c", _IMPORT_EVERYTHING], cwd=tmp_path)


def test_the_installed_parts_need_nothing_that_is_missing(device: Environment, tmp_path: Path) -> None:
    run([str(device.command("python")), "-m", "pip", "check"], cwd=tmp_path)


def test_the_command_starts_and_says_what_it_can_do(device: Environment, tmp_path: Path) -> None:
    shown = run([str(device.command("shoal-agent")), "--help"], cwd=tmp_path).stdout
    assert "Usage" in shown
    assert "run" in shown


def test_the_command_names_the_version_of_its_wheel(device: Environment, wheel: Path, tmp_path: Path) -> None:
    shown = run([str(device.command("shoal-agent")), "--version"], cwd=tmp_path).stdout
    assert wheel.name.split("-")[1] in shown


def test_the_agent_starts_there_and_answers(device: Environment, tmp_path: Path) -> None:
    with running_agent([str(device.command("shoal-agent"))], tmp_path) as agent:
        status, body = get_json(f"{agent.url}/v2/health/live")
    assert status == 200
    assert body["live"] is True
