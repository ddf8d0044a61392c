"""Runs that hang are broken off, and nothing else is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.runtime.backend import RunCancelled
from edge_agent.runtime.slots import LoadedModel, load
from edge_agent.runtime.watchdog import Watchdog
from tests.fakes.hanging_package import FOREVER, make_hanging_package
from tests.fakes.packages import INPUT, OUTPUT, PIXELS


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(tick_s=0.05)
    yield watchdog
    watchdog.close()


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[LoadedModel]:
    loaded = load(make_hanging_package(tmp_path / "sleeper", max_run_s=0.2))
    yield loaded
    loaded.backend.close()


def image(turns: float) -> dict[str, NDArray[np.float32]]:
    """One row for which the model turns so many times in its loop."""
    row = np.zeros((1, PIXELS), np.float32)
    row[0, 0] = turns
    return {INPUT: row}


def test_a_cancelled_run_ends_and_the_next_one_is_not_concerned(sleeper: LoadedModel) -> None:
    timer = threading.Timer(0.2, sleeper.backend.cancel)
    timer.start()
    with pytest.raises(RunCancelled):
        sleeper.backend.infer(image(FOREVER))
    timer.join()
    assert sleeper.backend.infer(image(0))[OUTPUT].shape == (1, 10)


def test_a_run_beyond_its_limit_is_broken_off_on_this_very_thread(watchdog: Watchdog, sleeper: LoadedModel) -> None:
    run = (time.perf_counter_ns(), sleeper)
    watchdog.running[threading.get_ident()] = run
    watchdog.wake()
    with pytest.raises(RunCancelled):
        sleeper.backend.infer(image(FOREVER))
    assert watchdog.has_hung(run)
    assert not watchdog.has_hung(run), "asked once"


def test_a_run_within_its_limit_is_left_alone(watchdog: Watchdog, tmp_path: Path) -> None:
    patient = load(make_hanging_package(tmp_path / "patient", max_run_s=600.0))
    run = (time.perf_counter_ns(), patient)
    watchdog.running[threading.get_ident()] = run
    watchdog.wake()
    time.sleep(0.15)  # it has looked by then
    patient.backend.infer(image(0))
    assert not watchdog.has_hung(run)
    patient.backend.close()


def test_it_sleeps_when_nothing_runs_and_wakes_for_the_next_run(watchdog: Watchdog, sleeper: LoadedModel) -> None:
    watchdog.wake()
    until = time.monotonic() + 20
    while not watchdog.asleep:
        assert time.monotonic() < until
        time.sleep(0.01)
    run = (time.perf_counter_ns(), sleeper)
    watchdog.running[threading.get_ident()] = run
    assert watchdog.asleep
    watchdog.wake()
    with pytest.raises(RunCancelled):
        sleeper.backend.infer(image(FOREVER))
    assert watchdog.has_hung(run)


def test_it_closes_asleep_awake_and_unborn() -> None:
    Watchdog().close()
    awake = Watchdog(tick_s=0.01)
    awake.wake()
    awake.close()
    asleep = Watchdog(tick_s=0.001)
    asleep.wake()
    until = time.monotonic() + 20
    while not asleep.asleep:
        assert time.monotonic() < until
        time.sleep(0.01)
    asleep.close()
    asleep.wake()  # a late run of an agent that stops
