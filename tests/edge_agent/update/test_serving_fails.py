"""Models that are loaded and tested, and then cannot be let serve: what was before serves on, and says why."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.contract.errors import ModelLoadFailed
from edge_agent.contract.messages import EventKind, UpdateStep
from edge_agent.runtime.beside import swap_together
from edge_agent.runtime.package import Package
from edge_agent.runtime.slots import LoadedModel, load
from edge_agent.update.candidates import CandidateLoader
from edge_agent.update.outcome import MemberFailed
from edge_agent.update.slots_file import SlotsFile
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import make_package
from tests.fakes.pipeline_package import make_pipeline_package, make_scaler_package
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice


class Refusing:
    """Lets models serve, but so often not.

    Args:
        serves: Whether they do all the same, and what fails comes after.
    """

    def __init__(self, device: UpdatingDevice, *, times: int, serves: bool = False) -> None:
        self.left, self._serves = times, serves
        self._swap = functools.partial(swap_together, device.slots)
        device.installer._back._serve = self

    def __call__(self, *models: LoadedModel, again: Any = ()) -> None:
        self.left -= 1
        if self.left < 0 or self._serves:
            self._swap(*models, again=again)
        if self.left >= 0:
            raise RuntimeError("the slots are broken")


def test_a_candidate_that_cannot_be_let_serve_is_closed_and_tried_once_more_and_then_refused(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, first: Package, second: Package
) -> None:
    desired, before = server.assign(second), device.infer()
    Refusing(device, times=2)
    assert not device.apply(desired)
    np.testing.assert_array_equal(device.infer(), before)
    assert device.reported().step is UpdateStep.FAILED
    assert "could not be let serve: RuntimeError: the slots are broken" in device.reported().reason
    record = SlotsFile(device.state / "slots.json").get("digits")
    assert (record.active, record.last_known_good) == (first.digest, first.digest)
    device.apply(desired)
    assert (device.version, device.reported().step) == ("1", UpdateStep.FAILED)
    assert device.packages() == {first.digest}, "an update that has ended leaves nothing"
    assert device.apply(desired), "refused"
    assert new_device().version == "1"


def test_a_candidate_that_could_not_be_let_serve_once_comes_at_the_next_attempt(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    desired = server.assign(second)
    Refusing(device, times=1)
    assert not device.apply(desired)
    device.update(desired)
    assert device.version == "2"


def test_what_fails_once_a_candidate_serves_does_not_end_its_probation(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    Refusing(device, times=1, serves=True)
    device.apply(server.assign(second))
    assert (device.version, device.reported().step) == ("2", UpdateStep.PROBATION)
    device.pass_probation()
    assert device.reported().step is UpdateStep.COMMITTED


def test_a_roll_back_whose_earlier_package_cannot_be_let_serve_serves_after_the_next_start(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    device.apply(server.assign(second))
    Refusing(device, times=1)
    device.slots.get("digits").statistics.failed(1000)
    device.installer.watch()
    assert device.version == "2", "answers that sometimes fail beat none"
    assert "is tried at the agent's next start" in device.told(EventKind.ROLLED_BACK)[0].reason
    device.close()
    assert new_device().version == "1"


def test_an_agent_starts_though_nothing_can_be_let_serve_and_serves_after_the_next_start(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    device.update(server.assign(second))
    device.close()

    def refuse(*_models: LoadedModel, again: Any = ()) -> None:
        raise ModelLoadFailed("the slots are broken")

    broken = new_device(serve=refuse)
    assert broken.slots.models() == []
    assert "the slots are broken" in broken.reported().reason
    broken.close()
    assert new_device().version == "1", "the spare, until the server names version 2 again"


def test_a_pipeline_that_fails_in_an_unforeseen_way_keeps_no_step_from_going_back(tmp_path: Path) -> None:
    device = UpdatingDevice(tmp_path / "by-hand", None)
    for package in (
        make_scaler_package(tmp_path / "scaler", version="1"),
        make_package(tmp_path / "digits", version="1", seed=1),
        make_pipeline_package(tmp_path / "reader", version="1", seed=1),
    ):
        device.installer.preinstall(package.folder)

    def fails(package: Package, **more: Any) -> LoadedModel:
        if package.manifest.pipeline:
            raise RuntimeError("no more threads")
        return load(package, **more)

    loader = CandidateLoader(device.installer._store, device.slots, fails)
    digests = {"digits": device.slots.get("digits").digest}
    with pytest.raises(MemberFailed, match="no more threads"):
        loader.tested(digests)
    found = loader.earlier(digests)
    assert (list(found.models), found.again) == (["digits"], [])
    found.close()
    device.close()


def test_an_error_that_nobody_foresaw_is_written_down_and_the_update_tried_again(
    server: UpdateServer, device: UpdatingDevice, second: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    desired = server.assign(second)
    with monkeypatch.context() as patch:
        patch.setattr(device.installer._preparing, "target", lambda *_: 1 / 0)
        assert not device.apply(desired)
    assert device.reported().reason == "ZeroDivisionError: division by zero"
    device.update(desired)
    assert device.version == "2"
