"""The README's first command: the whole loop, as a newcomer runs it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.e2e.demo_run import DEMO, DemoRun

_COLUMNS = {
    "id",
    "accuracy_before",
    "accuracy_drifted",
    "accuracy_recovered",
    "labels_used",
    "bytes_up",
    "bytes_down",
    "package",
}


@pytest.mark.timeout(600)
def test_the_fleet_notices_that_it_has_become_wrong_and_mends_itself(demo: DemoRun) -> None:
    assert demo.wait(540) == 0, demo.said
    found = demo.report()
    assert (found["ok"], found["requests_failed"], found["lost"], found["duplicated"]) == (True, 0, 0, 0)
    assert len(found["devices"]) >= 3
    for device in found["devices"]:
        assert device.keys() >= _COLUMNS
        assert device["accuracy_drifted"] < device["accuracy_before"] - 0.1
        assert device["accuracy_recovered"] > device["accuracy_drifted"] + 0.1
        assert device["labels_used"] > 0
        assert device["bytes_up"] > 0
        assert device["bytes_down"] > 0
    assert len({device["package"] for device in found["devices"]}) == 1
    assert "drift, seen with 0 labels" in " ".join(demo.said.split())
    assert "console: http://127.0.0.1:" in demo.said


def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path, repository: Path) -> None:
    folder = tmp_path / "demo"
    with subprocess.Popen(
        [*DEMO, "--folder", str(folder)], stdout=subprocess.PIPE, text=True, cwd=repository
    ) as process:
        try:
            assert process.stdout is not None
            assert any("console:" in line for line in process.stdout)
            # Not SIGINT: where the tests run in the background of a script, that one is ignored by all of them.
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    left = [other for other in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(other.info["cmdline"] or [])]
    assert left == []


def test_a_folder_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    done = subprocess.run([*DEMO, "--folder", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is there already" in done.stderr
    assert os.listdir(tmp_path) == ["mine.txt"]  # noqa: PTH208 - names are enough
