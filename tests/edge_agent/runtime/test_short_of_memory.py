"""A process that gets no more memory: the package that is loaded or tested then is not to blame."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.large_package import make_large_package

_BEFORE = """
import resource, sys
from pathlib import Path
import numpy as np
from edge_agent.contract.errors import OutOfMemory
from edge_agent.runtime.loaded import load
from edge_agent.runtime.package import Golden, Package
from edge_agent.runtime.selftest import self_test

def take_no_more(but_mib):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (but_mib << 20),) * 2)

package = Package.open(Path(sys.argv[1]), verify=True)
loaded = load(package)
golden = loaded.golden()
"""
_LOAD = "loaded.close(); take_no_more(5); load(package)"
_TEST = """
rows = {name: np.repeat(array, 1000, axis=0) for name, array in golden.inputs.items()}
take_no_more(40)
self_test(loaded.backend, Golden(rows, golden.outputs))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc")
@pytest.mark.parametrize(("step", "says"), [(_LOAD, "to load it"), (_TEST, "to run the golden samples")])
def test_a_model_for_which_memory_is_short_is_no_bad_package(tmp_path: Path, step: str, says: str) -> None:
    package = make_large_package(tmp_path / "large", weights_mib=25)
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE + step, str(package.folder)], capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("edge_agent.contract.errors.OutOfMemory: "), last
    assert f"there is no memory left {says}" in last
