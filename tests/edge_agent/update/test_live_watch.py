"""An installer beside a real serving core and the real monitor: what live requests say of a version decides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.contract.manifest import Probation
from edge_agent.contract.messages import UpdateStep
from edge_agent.monitor.monitor import Monitor
from edge_agent.outbox.outbox import Outbox
from edge_agent.runtime.asked_inputs import AskedInputs
from edge_agent.runtime.package import Package
from edge_agent.serving.inference import Inference
from edge_agent.serving.request import InferenceRequest
from edge_agent.update.preparing import Device
from edge_agent.update.seen import Sight
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import INPUT, make_package, reference_images
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice


class Live:
    """A device that serves version 1, asked through the serving core."""

    def __init__(self, folder: Path, new_device: NewDevice) -> None:
        self.outbox = Outbox(folder / "outbox.db", fleet="fleet", device="camera-1")
        self.monitor = Monitor(self.outbox, folder)
        self.asked = AskedInputs()
        self.device: UpdatingDevice = new_device(
            seen=Sight(self.monitor.predicted), device=Device(still_fits=self.asked.refusals)
        )
        self.inference = Inference(self.monitor, threads=1, asked=self.asked)

    def ask(self, rows: int, *, at_once: int = 1) -> None:
        images = reference_images(rows, seed=3)
        for begin in range(0, rows, at_once):
            with self.device.slots.lease("digits") as loaded:
                self.inference.answer(loaded, InferenceRequest("", {INPUT: images[begin : begin + at_once]}))

    def close(self) -> None:
        self.inference.close()
        self.monitor.close()
        self.outbox.close()


@pytest.fixture
def live(tmp_path: Path, device: UpdatingDevice, new_device: NewDevice) -> Iterator[Live]:
    device.close()
    (tmp_path / "monitor").mkdir()
    live = Live(tmp_path / "monitor", new_device)
    yield live
    live.close()


def release(server: UpdateServer, folder: Path, **settings: Any) -> Package:
    package = make_package(folder / "built/12", version="12", **settings)
    server.publisher.publish(package)
    return package


RULE = Probation(seconds=600.0, min_requests=100, max_prediction_shift=0.1, max_latency_ratio=50.0)


def test_a_version_whose_predictions_have_shifted_is_rolled_back(
    server: UpdateServer, live: Live, tmp_path: Path
) -> None:
    live.ask(3000, at_once=10)
    live.device.apply(server.assign(release(server, tmp_path, seed=9, probation=RULE)))
    assert live.device.version == "12"
    live.ask(90)
    live.device.installer.watch()
    assert live.device.reported().step is UpdateStep.PROBATION, "too few requests decide nothing"
    live.ask(3000, at_once=10)
    live.device.installer.watch()
    assert (live.device.version, live.device.reported().step) == ("1", UpdateStep.FAILED)
    assert "its predictions have shifted by 0." in live.device.reported().reason


def test_a_version_that_predicts_as_the_one_before_it_did_stays(
    server: UpdateServer, live: Live, tmp_path: Path
) -> None:
    live.ask(3000, at_once=10)
    live.device.apply(server.assign(release(server, tmp_path, seed=1, probation=RULE)))
    live.ask(3000, at_once=10)
    live.device.now_s += 601
    live.device.installer.watch()
    assert (live.device.version, live.device.reported().step) == ("12", UpdateStep.COMMITTED)


def test_a_version_that_would_refuse_what_applications_send_is_not_downloaded(
    server: UpdateServer, live: Live, tmp_path: Path
) -> None:
    live.ask(64, at_once=32)
    package = make_package(tmp_path / "made", version="12")
    spec = msgspec.structs.replace(package.manifest.signature.inputs[0], shape=(1, 64))
    signature = msgspec.structs.replace(package.manifest.signature, inputs=(spec,))
    assert live.asked.refusals("digits", signature) == [
        "applications send input 'image' in shapes of [32, 64], it takes [1, 64]"
    ]
    assert live.asked.refusals("digits", package.manifest.signature) == []
