"""What deaths of the agent say of a package: only those count that it may have caused."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from edge_agent.config import UpdateSettings
from edge_agent.contract.messages import UpdateStep
from edge_agent.runtime.package import Package
from edge_agent.runtime.slots import LoadedModel, load
from edge_agent.update.slots_file import SlotsFile
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice

NIGHT = UpdateSettings(window="00:00-04:00")


class Clock:
    """Of the test; the window of ``NIGHT`` closes as soon as something was verified."""

    def __init__(self) -> None:
        self.now = dt.datetime.now(dt.UTC).replace(hour=1)

    def after_step(self, _model: str, step: UpdateStep) -> None:
        if step is UpdateStep.VERIFIED:
            self.now = self.now.replace(hour=12)

    def settings(self) -> dict[str, Any]:
        return {
            "settings": NIGHT, "utc_now": lambda: self.now, "zone": dt.UTC, "after_step": self.after_step,
        }  # fmt: skip


@pytest.mark.parametrize("boots", [[None] * 8, [str(number) for number in range(8)]], ids=["killed", "power cut"])
def test_a_package_that_waits_for_its_window_is_not_blamed_for_what_ends_the_agent_meanwhile(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package, boots: list[str | None]
) -> None:
    device.close()
    clock, desired = Clock(), server.assign(second)
    for boot in boots:
        killed = new_device(**clock.settings(), boot=boot)
        assert not killed.apply(desired)
        assert killed.reported().step is UpdateStep.STAGED, killed.reported().reason
        assert killed.version == "1"
    clock.now = clock.now.replace(hour=2)
    killed.update(desired)
    assert killed.version == "2"


class Killed(BaseException):
    """Ends an agent where it is."""


def kills(when: Callable[[Package], bool]) -> Callable[..., LoadedModel]:
    def loading(package: Package, **more: Any) -> LoadedModel:
        if when(package):
            raise Killed
        return load(package, **more)

    return loading


def test_a_package_that_takes_the_agent_down_whenever_it_is_tested_is_refused_though_it_waited_in_between(
    server: UpdateServer,
    device: UpdatingDevice,
    new_device: NewDevice,
    second: Package,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device.close()
    clock, desired = Clock(), server.assign(second)
    waiting = new_device(**clock.settings())
    assert not waiting.apply(desired)
    assert SlotsFile(waiting.state / "slots.json").get("digits").orderly
    clock.now = clock.now.replace(hour=2)
    monkeypatch.setattr("tests.fakes.updating_device.load", kills(lambda package: package.digest == second.digest))
    for _ in range(2):
        killed = new_device(**clock.settings())
        with pytest.raises(Killed):
            killed.apply(desired)
    third = new_device(**clock.settings())
    assert third.apply(desired)
    assert (third.version, third.reported().step) == ("1", UpdateStep.FAILED)
    assert "died 2 times" in third.reported().reason
