"""Processors: what the cpuset and the control group leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.runtime import cpus
from tests.fakes.packages import make_package


def _mount(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "cgroup").mkdir(exist_ok=True)
    return folder / "cgroup"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, None),
        ("0::/container/path\n", {"cpu.max": "200000 100000\n"}, 2.0),
        (
            "4:cpu,cpuacct:/c\n0::/\n",
            {"cpu,cpuacct/c/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        ("1:cpu:/c\n", {"cpu/c/cpu.cfs_quota_us": "-1\n", "cpu/c/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/a\n", {"a/cpu.max": "rubbish\n"}, None),
        ("rubbish\n", {}, None),
    ],
)
def test_the_tightest_quota_of_all_groups_around_the_process_counts(
    tmp_path: Path, groups: str, files: dict[str, str], expected: float | None
) -> None:
    (tmp_path / "own").write_text(groups)
    assert cpus.quota_cpus(tmp_path / "own", _mount(tmp_path, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpus.quota_cpus(tmp_path / "missing", tmp_path) is None


_PINNED = """
import json, os, sys
os.sched_setaffinity(0, {int(sys.argv[2])})
from pathlib import Path
from edge_agent.runtime import cpus
from edge_agent.runtime.loaded import load
from edge_agent.runtime.package import Package
loaded = load(Package.open(Path(sys.argv[1]), verify=True), threads=3)
allowed = []
for task in Path("/proc/self/task").iterdir():
    try:
        lines = (task / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        continue  # a thread that ended this moment
    allowed += [line.split()[1] for line in lines if line.startswith("Cpus_allowed_list")]
print(json.dumps({"cpus": cpus.available(), "threads": len(allowed), "allowed": sorted(set(allowed))}))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no cpusets")
def test_the_runtimes_threads_stay_on_the_processors_of_the_process(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    processor = str(min(os.sched_getaffinity(0)))
    command = [sys.executable, "-c", _PINNED, str(package.folder), processor]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout)
    assert found["cpus"] == 1
    assert found["threads"] > 1
    assert found["allowed"] == [processor]
