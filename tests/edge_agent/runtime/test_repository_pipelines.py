"""The repository: pipelines, and the models that are their steps."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edge_agent.contract.errors import (
    ModelUnavailable,
)
from edge_agent.contract.manifest import PipelineStep
from edge_agent.runtime.catalogue import Known
from edge_agent.runtime.slots import ModelState
from tests.edge_agent.runtime.conftest import Device, Fleet, NewDevice, put_to_sleep
from tests.fakes.packages import INPUT, make_package, reference_images
from tests.fakes.pipeline_package import RAW, SCALED, make_pipeline_package, make_scaler_package


def test_neither_steps_of_a_pipeline_nor_a_model_on_probation_go_to_sleep(
    new_device: NewDevice, tmp_path: Path
) -> None:
    device = new_device(idle_unload_s=3600.0)
    make_scaler_package(device.models / "scaler")
    device.add("1", seed=0)
    make_pipeline_package(device.models / "a-pipeline-comes-first-by-name")
    watched = make_package(tmp_path / "watched", version="1", name="watched")
    device.repository.follow(Fleet(Known(watched, installed=True, watched=True)))
    device.repository.start()
    device.repository.load("watched")
    assert set(device.states().values()) == {"READY"}
    later = time.monotonic() + 1

    def sleeps(name: str) -> bool:
        return device.repository._idle_out(device.slots.get(name), later)

    assert [name for name in ("scaler", "digits", "watched", "reader") if sleeps(name)] == ["reader"]
    assert sleeps("scaler"), "nothing needs it any more"
    assert sleeps("digits")
    device.repository.wake("reader")
    with device.slots.lease("reader") as reader:
        reader.backend.infer({RAW: reference_images(2)})
    assert set(device.states().values()) == {"READY"}


def test_a_pipeline_whose_step_was_updated_is_woken_and_survives_a_restart(new_device: NewDevice) -> None:
    device = new_device()
    make_scaler_package(device.models / "scaler")
    device.add("1", seed=0)
    make_pipeline_package(device.models / "reader")
    device.repository.start()
    device.add("2", seed=2)
    device.repository.load("digits")
    put_to_sleep(device, "reader")
    device.repository.wake("reader")
    restarted = new_device()
    restarted.repository.start()
    assert restarted.slots.get("digits").version == "2"
    assert restarted.entry("1", "reader").state is ModelState.READY


def test_steps_stay_awake_while_their_pipeline_is_prepared_and_does_not_serve_yet(
    new_device: NewDevice, tmp_path: Path
) -> None:
    device = new_device(idle_unload_s=3600.0)
    make_scaler_package(device.models / "scaler")
    device.add("1", seed=0)
    device.repository.start()
    reader = device.repository.prepare(make_pipeline_package(tmp_path / "reader"))
    later = time.monotonic() + 1
    assert not device.repository._idle_out(device.slots.get("scaler"), later)
    reader.close()
    assert device.repository._idle_out(device.slots.get("scaler"), later)


def test_a_pipeline_is_not_blamed_for_a_step_that_cannot_be_woken(new_device: NewDevice, tmp_path: Path) -> None:
    device = new_device()
    make_scaler_package(device.models / "scaler")
    device.add("1", seed=0)
    device.repository.start()
    put_to_sleep(device, "scaler")
    (device.models / "scaler" / "model.onnx").write_bytes(b"rotten")
    with pytest.raises(ModelUnavailable, match=r"pipeline 'reader' needs its step 'scaler': .*expected sha256"):
        device.repository.prepare(make_pipeline_package(tmp_path / "reader"))


def test_a_pipeline_that_waits_for_its_steps_waits_no_longer_when_it_is_unloaded(device: Device) -> None:
    make_pipeline_package(device.models / "reader")
    make_scaler_package(device.models / "scaler")
    device.repository.start()
    device.repository.unload("reader")
    device.add("1", seed=0)
    device.repository.load("digits")
    assert (device.entry("1", "reader").state, device.entry("1", "reader").reason) == (
        ModelState.UNLOADED, "unloaded on request",
    )  # fmt: skip


@pytest.mark.parametrize("at_start", [True, False])
def test_a_pipeline_is_loaded_with_its_steps_those_of_an_older_version_too(device: Device, at_start: bool) -> None:
    if not at_start:
        device.repository.start()
    make_scaler_package(device.models / "scaler")
    device.add("1", seed=0)
    device.add("2")
    steps = (PipelineStep(model="scaler"), PipelineStep(model="digits", version="1", inputs={INPUT: SCALED}))
    make_pipeline_package(device.models / "reader", steps=steps)
    if at_start:
        device.repository.start()
    else:
        device.repository.load("reader")
    assert {name for name, state in device.states().items() if state == "READY"} == {
        "digits 1", "reader 1", "scaler 1", *(["digits 2"] if at_start else []),
    }  # fmt: skip
    assert device.repository.load("digits").version == "2"
    assert device.slots.versions("digits") == ["1", "2"], "a loaded pipeline needs the older one"
    device.repository.unload("digits", "1")
    device.repository.load("reader")
    with device.slots.lease("reader") as reader:
        reader.backend.infer({RAW: reference_images(2)})


def test_a_pipeline_with_a_broken_step_says_so_once_with_one_advice(device: Device) -> None:
    make_scaler_package(device.models / "scaler")
    device.add("1", golden_is_wrong=True)
    make_pipeline_package(device.models / "reader")
    for name, other in (("hen", "egg"), ("egg", "hen")):
        make_pipeline_package(device.models / name, name=name, steps=(PipelineStep(model=other),))
    device.repository.start()
    assert device.states()["scaler 1"] == "READY"
    assert device.states()["hen 1"] == device.states()["egg 1"] == "UNAVAILABLE"
    with pytest.raises(ModelUnavailable) as caught:
        device.slots.get("reader")
    assert "needs its step 'digits'" in str(caught.value)
    assert "output 'probabilities', row 3" in str(caught.value)
    assert str(caught.value).count("load it") == 1


def test_a_pipeline_whose_steps_are_missing_is_loaded_when_they_appear(device: Device) -> None:
    make_pipeline_package(device.models / "reader")
    make_scaler_package(device.models / "scaler")
    device.repository.start()
    entry = device.entry("1", "reader")
    assert entry.state is ModelState.UNAVAILABLE
    assert "needs its step 'digits'" in entry.reason
    device.add("1", seed=0)
    device.repository.load("digits")
    assert device.entry("1", "reader").state is ModelState.READY
