"""Models that hang while they are loaded hold nobody, and what the agent's own end breaks off is no package's fault."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract.errors import ManifestError, ModelUnavailable, SelfTestFailed
from edge_agent.contract.manifest import Batching
from edge_agent.runtime.batchable import check_batchable
from edge_agent.runtime.guard import RunGuard
from edge_agent.runtime.package import Golden
from edge_agent.runtime.selftest import self_test
from edge_agent.runtime.slots import LoadedModel, load
from tests.fakes.hanging_package import FOREVER, make_hanging_package
from tests.fakes.packages import CLASSES, INPUT, OUTPUT, PIXELS


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    return load(make_hanging_package(tmp_path / "sleeper", batching=Batching()))


def golden_that_hangs() -> Golden:
    images = np.zeros((4, PIXELS), np.float32)
    images[:, 0] = FOREVER
    return Golden(inputs={INPUT: images}, outputs={OUTPUT: np.zeros((4, CLASSES), np.float32)})


def test_a_model_that_hangs_on_its_golden_samples_fails_the_self_test(loaded: LoadedModel) -> None:
    with pytest.raises(SelfTestFailed, match=r"hangs on its golden samples: broken off, its limit is 0\.2 s"):
        self_test(loaded.backend, golden_that_hangs(), max_run_s=0.2)


def test_what_is_broken_off_because_the_agent_stops_is_not_the_package_s_fault(loaded: LoadedModel) -> None:
    guard = RunGuard()
    stopping = threading.Timer(0.2, guard.close)
    stopping.start()
    with pytest.raises(ModelUnavailable, match="the agent stops"):
        self_test(loaded.backend, golden_that_hangs(), max_run_s=600.0, guard=guard)
    stopping.join()


def test_batching_that_could_not_be_proven_is_refused(loaded: LoadedModel) -> None:
    with (
        pytest.raises(ManifestError, match="could not be seen within max_run_s, 30 s"),
        RunGuard().within(loaded.backend, 0.2),
    ):
        check_batchable(loaded.backend, loaded.check, loaded.manifest, golden_that_hangs())


def test_no_thread_is_left_behind(loaded: LoadedModel) -> None:
    before = threading.active_count()
    begin = time.monotonic()
    with RunGuard().within(loaded.backend, 600.0):
        pass
    assert threading.active_count() == before
    assert time.monotonic() - begin < 300
