"""The runtime tells nobody but this device what it does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.fakes.packages import make_package

RUN = "import sys\nfrom edge_agent import load\nload(sys.argv[1]).close()\n"
# What 1.32 keeps for its telemetry, in the user's cache; older ones for Linux have none.
KEPT = ".cache/Microsoft"


def test_onnx_runtime_prepares_no_telemetry(tmp_path: Path) -> None:
    package, home = make_package(tmp_path / "package"), tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", RUN, str(package.folder)], env=environment, timeout=60, check=True)
    assert not (home / KEPT).exists()
