"""The backend on the real providers of GPU memory, each in a process over the driver without a GPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.fakes.cuda_driver import StubDriver, can_build

_MODULES = {"pycuda": "pycuda", "cuda-python": "cuda"}


@pytest.fixture(scope="module")
def stub_driver(tmp_path_factory: pytest.TempPathFactory) -> StubDriver:
    if not can_build():
        pytest.skip("no gcc here, which compiles the driver without a GPU")
    return StubDriver.build(tmp_path_factory.mktemp("cuda_driver"))


@pytest.mark.parametrize("integrated", [0, 1])
@pytest.mark.parametrize("provider", list(_MODULES))
def test_engines_answer_allocate_nothing_while_they_serve_and_give_all_back(
    stub_driver: StubDriver, provider: str, integrated: int, tmp_path: Path
) -> None:
    if importlib.util.find_spec(_MODULES[provider]) is None:
        pytest.skip(f"not installed: {provider} (`make gpu-parts` installs it)")
    module = "tests.edge_agent.runtime.tensorrt.driver_scenario"
    ended = stub_driver.python("-m", module, provider, str(tmp_path), integrated=integrated, sm=87)
    assert ended.returncode == 0, ended.stderr
    outcome = json.loads(ended.stdout)
    assert outcome["live"] == {}
    captures = provider == "cuda-python"  # the other has no graphs
    assert all((captured > 0, refused > 0) == (captures, not captures) for captured, refused in outcome["graphs"])
    assert outcome["execute_us"]
    if not captures:
        assert outcome["allocations"] == 0
