"""The device-only wheel: holds edge_agent alone, installs into an empty environment, and works there."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.interpreters import Environment, find_python, run
from tests.packaging.running_agent import get_json, running_agent

pytestmark = pytest.mark.timeout(600)

_THIS_PYTHON = sys.version_info[:2]
# JetPack 6's Python, older than what the server and the trainer need.
_OLDEST_PYTHON = (3, 10)

# Tests that need not run there a second time, in tests/edge_agent/.
_NEED_A_NEWER_PYTHON = ("update", "link/test_link.py")  # they bring a server with them
# What native code, worker processes or long waits decide: on another Python all of it takes minutes and shows nothing
# new. Names that an older Python lacks are found by mypy, which `make check` runs as on Python 3.10.
_THE_SAME_ON_EVERY_PYTHON = (
    "client/test_c_client.py",
    "client/test_documentation.py",
    "monitor/board/test_tegrastats.py",
    "runtime/gpu/test_providers.py",
    "runtime/gpu/test_survey.py",
    "runtime/tensorrt/test_builder.py",
    "runtime/tensorrt/test_over_driver.py",
    "runtime/tensorrt/test_rtx_builds.py",
    "runtime/test_acceleration.py",
    "runtime/test_hot_swap.py",
    "runtime/test_memory.py",
    "runtime/test_optimised.py",
    "serving/http/test_fuzzing.py",
    "serving/http/test_head_reader.py",
    "serving/http/test_slow_clients.py",
    "serving/http/test_splitting.py",
    "serving/test_codec_large.py",
    "serving/test_compression.py",
    "test_reporter.py",
)

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


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "-qq"]
    source = str(repository / "packaging" / "device")
    run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), source])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(
    scope="module",
    params=[pytest.param(version, id=".".join(map(str, version))) for version in (_THIS_PYTHON, _OLDEST_PYTHON)],
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


def test_the_devices_own_tests_pass_on_the_oldest_python(device: Environment, repository: Path) -> None:
    version = run([str(device.command("python")), "-c", "import sys; print(*sys.version_info[:2])"]).stdout.split()
    if tuple(map(int, version)) == _THIS_PYTHON:
        pytest.skip("they run on this Python anyway")
    tools = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "msgpack", "onnx")
    device.install(*tools, "tritonclient[grpc,http]")
    left_out = [repository / "tests/edge_agent" / path for path in (*_NEED_A_NEWER_PYTHON, *_THE_SAME_ON_EVERY_PYTHON)]
    assert [path for path in left_out if not path.exists()] == []
    fewer_examples = ["env", "SHOAL_HYPOTHESIS_PROFILE=again"]
    pytest_there = [*fewer_examples, str(device.command("python")), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = run(
        [*pytest_there, "tests/edge_agent", *(f"--ignore={path}" for path in left_out)], cwd=repository, timeout_s=500.0
    )
    assert " passed" in done.stdout
