"""The machine: what it reports where its board tells, and where it has none."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from edge_agent.monitor.machine import Machine, hardware
from tests.edge_agent.monitor.conftest import MakeBoard


def test_a_machine_without_a_board_has_no_thread_for_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, tmp_path / "nothing")
    assert machine.board is None
    assert "board" not in {thread.name for thread in threading.enumerate()}
    found = machine.metrics()
    assert (found.gpus, found.power_w, found.energy_j, found.power_mode) == ((), None, None, "")
    machine.close()


def test_a_jetson_reports_its_board_and_its_energy(make_board: MakeBoard, tmp_path: Path) -> None:
    machine = Machine(tmp_path, make_board("orin-nano"))
    assert machine.board is not None
    deadline = time.monotonic() + 30
    while machine.board.energy_j == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    found = machine.metrics(outbox=(1, 2))
    machine.close()
    assert (found.power_mode, found.gpus[0].busy_percent, found.temperature_c) == ("MAXN_SUPER", 63.0, 53.968)
    assert found.power_w == pytest.approx(12.48, abs=0.01)
    assert (found.energy_j or 0) > 0
    assert (found.outbox_messages, (found.resident_bytes or 0) > 0) == (1, True)


def test_hardware_names_the_board_and_its_software(make_board: MakeBoard) -> None:
    found = hardware(make_board("orin-nano"))
    assert found.accelerator == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert found.runtimes["l4t"] == "36.4.3"
    assert {"onnxruntime", "python", "cuda", "jetpack", "tensorrt"} <= set(found.runtimes)
