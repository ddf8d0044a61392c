from __future__ import annotations

import importlib.util
import json

import pytest

from tests.edge_agent.runtime.gpu.scenarios import SCENARIOS
from tests.fakes.cuda_driver import StubDriver

_MODULES = {"pycuda": "pycuda", "cuda-python": "cuda.bindings"}
_GRAPHS = ("captured_work_runs_again", "what_cannot_be_captured_is_none")
# After the one nothing works any more in its process; the other is about the end of its process.
_ALONE = ("work_that_fails_tells_who_waits", "an_owner_that_nobody_closed_ends_with_the_process")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class Stage:
    """Plays scenarios over the driver without a GPU; most of them in one process, which costs a second to start."""

    def __init__(self, stub_driver: StubDriver, provider: str) -> None:
        self.has_graphs = provider != "pycuda"
        self._provider = provider
        self._driver = stub_driver
        self._together: dict[str, str | None] = {}

    def play(self, scenario: str) -> None:
        if scenario in _ALONE:
            problem = self._play(scenario)[scenario]
        else:
            others = _ALONE if self.has_graphs else _ALONE + _GRAPHS
            self._together = self._together or self._play(*(name for name in SCENARIOS if name not in others))
            problem = self._together[scenario]
        assert problem is None, problem

    def _play(self, *scenarios: str) -> dict[str, str | None]:
        module = "tests.edge_agent.runtime.gpu.scenarios"
        done = self._driver.python("-m", module, self._provider, *scenarios)
        said = f"it ended with {done.returncode}: {done.stderr}"
        problems: dict[str, str | None] = dict(json.loads(line) for line in done.stdout.splitlines())
        assert done.returncode == 0, said
        assert done.stderr == ""
        return problems


@pytest.fixture(scope="module", params=list(_MODULES))
def stage(stub_driver: StubDriver, request: pytest.FixtureRequest) -> Stage:
    if not _is_installed(_MODULES[request.param]):
        pytest.skip(f"not installed: {request.param} (`make gpu-parts` installs it)")
    return Stage(stub_driver, request.param)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_provider_keeps_its_promise_that(stage: Stage, scenario: str) -> None:
    if scenario in _GRAPHS and not stage.has_graphs:
        pytest.skip("pycuda has no graphs")
    stage.play(scenario)
