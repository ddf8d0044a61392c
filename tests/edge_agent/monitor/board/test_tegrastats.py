"""tegrastats: every form of its line that a board has been seen to print, and the process that prints them."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.monitor.board.jetson import hottest_c
from edge_agent.monitor.board.rails import gpu_w, whole_w
from edge_agent.monitor.board.tegrastats import TegrastatsProcess, parse
from tests.edge_agent.monitor.conftest import HERE


def recorded(name: str) -> str:
    lines = (HERE / "tegrastats" / f"{name}.txt").read_text().splitlines()
    return next(line for line in lines if not line.startswith("#"))


# Board: RAM in MB, busy percent, MHz, GPU and hottest in degrees, whole and GPU in watts.
EXPECTED = {
    "tx1": (1179, 0, 76, 39, 42.75, 2.532, 0.019),
    "nano": (534, 0, 76, 36, 39.5, 1.022, 0.0),
    "tx2": (3276, 0, 114, 39.5, 42.5, 5.297, 0.182),
    "tx2-jetpack3": (1685, 36, 140, 39, 41, 1.776, 0.154),
    "xavier-nx": (4412, 62, 306, 43, 43.5, 4.067, None),
    "agx-xavier": (14700, 0, None, 30.5, 32, 0.463 + 0.618 + 2.936 + 0.309 + 3.306, 0.463),
    "orin-nx-jetpack5": (6334, 0, 611, 45.875, 48.875, 5.299, None),
    "agx-orin-jetpack5": (4321, 0, 0, None, 44.562, 2.340 + 0.390 + 4.025, None),
    "agx-orin-jetpack6": (29114, 0, 305, 47.812, 53.062, 3.205 + 4.405 + 4.767, None),
    "agx-orin-jetpack7": (8207, 0, None, None, 47.906, 3.034 + 1.137 + 4.939, None),
    "orin-nano-jetpack6": (6185, 63, 621, 53.343, 53.968, 12.479, None),
    "orin-nano-jetpack7": (974, 12, None, 50.875, 50.875, 4.548, None),
    "thor-idle": (86905, None, None, 39.906, 39.906, 26.686, 3.561),
    "thor-loaded": (8353, 87, 1574, 56.937, 66.625, 124.486, 37.939),
}


@pytest.mark.parametrize("board", EXPECTED)
def test_a_recorded_line_is_understood(board: str) -> None:
    ram_mb, busy, mhz, gpu_c, hottest, whole, gpu = EXPECTED[board]
    found = parse(recorded(board))
    assert found is not None
    assert found.ram_used_bytes == ram_mb << 20
    assert (found.gpu_busy_percent, found.gpu_clock_mhz) == (busy, mhz)
    degrees = {name.lower(): value for name, value in found.temperatures_c.items()}
    assert degrees.get("gpu") == gpu_c
    assert hottest_c(found.temperatures_c) == hottest  # never the PMIC's 100
    assert whole_w(found.rails_w) == pytest.approx(whole)
    assert gpu_w(found.rails_w) == (None if gpu is None else pytest.approx(gpu))


def test_every_recorded_line_is_expected_and_names_its_source() -> None:
    files = sorted((HERE / "tegrastats").glob("*.txt"))
    assert {file.stem for file in files} == set(EXPECTED)
    assert all(file.read_text().startswith("# ") for file in files)


def test_a_load_that_is_not_told_is_unknown() -> None:
    found = parse("RAM 3429/125749MB (lfb 120x4MB) CPU [0%,5%,off]@2601 EMC_FREQ @4266 GR3D_FREQ @[1574,1574,1574]")
    assert found is not None
    assert (found.gpu_busy_percent, found.gpu_clock_mhz) == (None, 1574)


@given(st.text(max_size=300))
def test_any_text_is_a_line_or_none(text: str) -> None:
    parse(text)
    parse(f"RAM 1/2MB {text}")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A tegrastats that prints a recorded line, then waits like the real one."""
    file = tmp_path / "tegrastats"
    file.write_text(f"#!/bin/sh\necho '{recorded('orin-nano-jetpack6')}'\nexec sleep 60\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def process(program: Path) -> Iterator[TegrastatsProcess]:
    started = TegrastatsProcess(str(program))
    yield started
    started.close()


def test_the_newest_line_is_read_from_a_running_process(process: TegrastatsProcess) -> None:
    deadline = time.monotonic() + 20
    while (found := process.latest()) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found is not None
    assert found.rails_w["VDD_IN"] == 12.479


def test_an_old_line_is_no_reading_of_now(program: Path) -> None:
    now = [0.0]
    process = TegrastatsProcess(str(program), clock=lambda: now[0])
    try:
        deadline = time.monotonic() + 20
        while process.latest() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        now[0] = 6.0
        assert process.latest() is None
    finally:
        process.close()


def test_a_program_that_is_not_there_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    process = TegrastatsProcess(str(tmp_path / "none"), clock=lambda: now[0])
    for _ in range(5):
        assert process.latest() is None
        now[0] += 100
    process.close()
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING


def test_a_program_that_ends_is_started_again_after_a_minute(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\necho x >> {starts}\n")
    program.chmod(0o755)
    now = [0.0]
    process = TegrastatsProcess(str(program), clock=lambda: now[0])
    try:
        for now[0] in (0.0, 30.0, 61.0):
            process.latest()
            deadline = time.monotonic() + 20
            wanted = 2 if now[0] > 60 else 1
            while time.monotonic() < deadline and not _count(starts) >= wanted:
                time.sleep(0.02)
            assert process._process is not None
            process._process.wait(20)
            assert _count(starts) == wanted
    finally:
        process.close()


def test_a_program_whose_child_holds_its_output_does_not_hold_up_its_end(tmp_path: Path) -> None:
    program, child = tmp_path / "tegrastats", tmp_path / "child"
    program.write_text(f"#!/bin/sh\nsleep 30 &\necho $! > {child}\necho 'RAM 1/2MB'\nexec sleep 30\n")
    program.chmod(0o755)
    process = TegrastatsProcess(str(program))
    deadline = time.monotonic() + 20
    while process.latest() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    closing = threading.Thread(target=process.close, daemon=True)
    closing.start()
    closing.join(20)
    os.kill(int(child.read_text()), signal.SIGKILL)
    assert not closing.is_alive()


def _count(file: Path) -> int:
    return file.read_text().count("x") if file.exists() else 0
