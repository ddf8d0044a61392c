"""What starts on a device never loads what belongs to the server or the trainer, even where it is installed."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.packaging.interpreters import run
from tests.packaging.running_agent import get_json, running_agent

_FOREIGN = frozenset(
    {
        "amqtt",
        "deltalake",
        "fastapi",
        "fleet_server",
        "pyarrow",
        "pydantic",
        "pytorch_lightning",
        "sklearn",
        "sqlalchemy",
        "torch",
        "trainer",
    }
)
_SHOW_LOADED = """
import sys, pkgutil, importlib, edge_agent
for module in pkgutil.walk_packages(edge_agent.__path__, "edge_agent."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"tensorrt", "tensorrt_bindings", "pycuda"}:
            raise
print("\\n".join(sys.modules))
"""
_START = "from edge_agent.cli import main; main()"
# python -X importtime writes: "import time:  self [us] | cumulative | imported package"
_IMPORT = re.compile(r"^import time:[^|]*\|[^|]*\|\s*([\w.]+)", re.MULTILINE)


def _roots(modules: list[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


def test_what_is_forbidden_is_installed_here_so_that_the_tests_below_can_fail() -> None:
    assert {name for name in ("torch", "sqlalchemy", "fastapi") if find_spec(name) is None} == set()


def test_importing_all_of_the_device_part_loads_nothing_foreign(tmp_path: Path) -> None:
    loaded = run([sys.executable, "-c", _SHOW_LOADED], cwd=tmp_path).stdout.split()
    assert "edge_agent.contract" in loaded
    assert _roots(loaded) & _FOREIGN == set()


def test_starting_the_agent_loads_nothing_foreign(tmp_path: Path) -> None:
    with running_agent([sys.executable, "-X", "importtime", "-c", _START], tmp_path) as agent:
        assert get_json(f"{agent.url}/v2/health/live")[0] == 200
    loaded = _IMPORT.findall(agent.log.read_text())
    assert "edge_agent.agent" in loaded
    assert _roots(loaded) & _FOREIGN == set()
