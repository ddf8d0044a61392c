"""A folder that is called as one of our packages, where a command happens to be typed, runs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.packages import make_package
from trainer.gates.footprint import measure
from trainer.own_module import own_module
from trainer.work.run_process import run_to_end

_TRAINER = Path(__file__).parents[2] / "trainer"


@pytest.fixture(autouse=True)
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a package of each of our names that says so and ends."""
    for name in ("trainer", "edge_agent", "fleet_server", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('code of the current folder was run')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("module", ["trainer.work.guard", "fleet_server.cli", "edge_agent.cli"])
def test_our_modules_are_ours(module: str) -> None:
    arguments = [sys.executable, "-c", ""] if module == "trainer.work.guard" else ["--help"]
    command = own_module(module, *arguments)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    assert "code of the current folder was run" not in done.stderr
    shadowed = [word for word in command if word != "-P"]
    done = subprocess.run(shadowed, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    assert "code of the current folder was run" in done.stderr, "else this test shows nothing"


def test_a_run_is_carried_out_by_our_guard(tmp_path: Path) -> None:
    command = [sys.executable, "-c", 'print(\'{"stage": "fit", "fraction": 1.0}\')']
    said: list[str] = []
    status, words = run_to_end(
        command, tmp_path / "log", say=lambda line: said.append(line.stage), given_up=lambda: False, limit_s=60
    )
    assert (status, said) == (0, ["fit"]), words


def test_a_footprint_is_measured_by_our_code(tmp_path: Path) -> None:
    assert measure(make_package(tmp_path / "package"))["fp32"].row_us > 0


def test_every_process_of_the_trainer_is_started_so() -> None:
    found = [path for path in _TRAINER.rglob("*.py") if '"-m"' in path.read_text("utf-8")]
    assert [path.name for path in found] == ["own_module.py"]
