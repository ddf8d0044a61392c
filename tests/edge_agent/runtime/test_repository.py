"""The repository: packages of a folder, loaded, unloaded and put to sleep while requests go on."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.contract.errors import (
    BudgetExceeded,
    DigestMismatch,
    ManifestError,
    ModelUnavailable,
    SelfTestFailed,
    UnknownModel,
)
from edge_agent.runtime.budget import MemoryBudget
from edge_agent.runtime.catalogue import Known
from edge_agent.runtime.repository import Policy
from edge_agent.runtime.slots import LoadedModel, ModelState
from tests.edge_agent.runtime.conftest import Device, Fleet, NewDevice, put_to_sleep
from tests.fakes.large_package import MIB, make_large_package
from tests.fakes.packages import INPUT, make_package, reference_images


@pytest.mark.parametrize(
    ("policy", "loaded"),
    [("latest", ["digits 10", "other 3"]), ("none", []), ("all", ["digits 9", "digits 10", "other 3"])],
)
def test_the_policy_says_which_versions_are_loaded_at_the_start(
    new_device: NewDevice, policy: Policy, loaded: list[str]
) -> None:
    device = new_device(policy)
    for version in ("9", "10"):
        device.add(version)
    device.add("3", name="other")
    device.repository.start()
    assert [f"{each.name} {each.version}" for each in device.slots.models()] == loaded
    assert device.states().keys() == {"digits 9", "digits 10", "other 3"}
    assert device.entry("10").default
    if policy != "all":
        assert device.entry("9").state is ModelState.UNLOADED
        with pytest.raises(ModelUnavailable, match="version '9' is unloaded: not loaded yet; load it"):
            device.slots.get("digits", "9")


def test_a_folder_that_is_missing_or_empty_keeps_nothing_from_starting(new_device: NewDevice) -> None:
    device = new_device()
    device.repository.start()
    assert device.repository.index() == []
    device.add("1")
    assert device.states() == {"digits 1": "UNLOADED"}
    with pytest.raises(UnknownModel, match="model 'reader' is not on this device; there are: digits 1"):
        device.repository.load("reader")


def test_versions_are_loaded_beside_each_other_and_unloaded_one_by_one(device: Device) -> None:
    device.add("1")
    device.add("2")
    device.repository.start()
    device.repository.load("digits", "1")
    assert device.slots.versions("digits") == ["1", "2"]
    assert device.slots.get("digits").version == "2"
    device.repository.unload("digits", "2")
    assert device.slots.get("digits").version == "1"
    assert device.entry("2").reason == "unloaded on request"
    device.repository.load("digits")
    assert device.slots.get("digits").version == "2"
    assert device.slots.versions("digits") == ["1", "2"], "what was asked for by version stays"
    device.repository.unload("digits")
    assert device.slots.models() == []
    for version in (None, "7"):
        with pytest.raises(UnknownModel, match=r"there are: digits 1, digits 2"):
            device.repository.unload("reader" if version is None else "digits", version)


def test_the_log_tells_what_is_loaded_and_unloaded_and_what_serves_by_default(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="edge_agent.runtime.load_log")

    def told() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.name == "edge_agent.runtime.load_log"]
        caplog.clear()
        return lines

    device.add("1")
    device.repository.start()
    assert told() == ["model digits 1 loaded: at the start"]
    device.add("2")
    device.repository.load("digits")
    assert told() == [
        "model digits 2 loaded: on request",
        "model digits 1 unloaded: version 2 took its place",
        "model digits: version 2 serves by default now, before 1",
    ]
    device.repository.load("digits", "1")
    device.repository.load("digits", "1")
    assert told() == ["model digits 1 loaded: on request", "model digits 1 loaded again: on request"]
    device.repository.unload("digits", "2")
    device.repository.unload("digits", "2")
    assert told() == [
        "model digits 2 unloaded: on request",
        "model digits: version 1 serves by default now, before 2",
    ]
    for _ in range(3):
        with device.slots.lease("digits"):
            assert not told(), "a request leaves no line"
    put_to_sleep(device)
    device.repository.wake("digits")
    device.repository.wake("digits")
    assert told() == ["model digits 1 loaded: asked for after it was unloaded as idle"]


def test_a_newer_version_takes_the_place_of_the_one_that_was_loaded_as_the_latest(device: Device) -> None:
    device.add("1")
    device.repository.start()
    old = device.slots.get("digits")
    device.add("2")
    assert device.repository.load("digits").version == "2"
    assert [each.version for each in device.slots.models()] == ["2"]
    assert device.entry("1").reason == "version 2 took its place"
    assert old.retired


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_changed_folder_is_reloaded_with_no_gap(device: Device, tmp_path: Path, version: str) -> None:
    """Whether its package keeps its version or has a new one."""
    device.add("1", folder="digits")
    device.repository.start()
    old = device.slots.get("digits")
    new = make_package(tmp_path / "new", version=version, seed=5)
    device.exchange("digits", new)
    failures: list[Exception] = []
    seen: set[str] = set()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                with device.slots.lease("digits") as loaded:
                    loaded.backend.infer({INPUT: reference_images(1)})
                    seen.add(loaded.digest)
            except Exception as error:  # noqa: BLE001 - any failure is a gap
                failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        while not seen:
            time.sleep(0.001)
        loaded = device.repository.load("digits")
        while new.digest not in seen:
            time.sleep(0.001)
    finally:
        done.set()
        asking.join()
    assert failures == []
    assert seen == {old.digest, new.digest}
    assert (loaded.digest, device.slots.get("digits")) == (new.digest, loaded)
    assert device.states() == {f"digits {version}": "READY"}


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        ({"manifest.json": b"{"}, ManifestError, "manifest.json"),
        ({"model.onnx": b"rotten"}, DigestMismatch, "expected sha256"),
        ({"card.md": None}, Exception, "the file is missing"),
    ],
)
def test_a_package_that_breaks_while_it_serves_serves_on_and_the_index_says_why_it_was_not_reloaded(
    device: Device, damage: dict[str, bytes | None], error: type[Exception], reason: str
) -> None:
    package = device.add("1")
    device.repository.start()
    before = device.slots.get("digits")
    for name, data in damage.items():
        path = package.folder / name
        good = path.read_bytes()
        path.unlink()
        if data is not None:
            path.write_bytes(data)
    with pytest.raises(error, match=reason):
        device.repository.load("digits")
    assert device.slots.get("digits") is before
    entry = device.entry("1")
    assert (entry.state, entry.default) == (ModelState.READY, True)
    assert reason in entry.reason
    path.write_bytes(good)
    assert device.repository.load("digits") is not before
    assert device.entry("1").reason == ""


def test_a_new_version_that_fails_its_tests_leaves_the_old_one_serving(device: Device) -> None:
    device.add("1")
    device.repository.start()
    before = device.slots.get("digits")
    device.add("2", golden_is_wrong=True)
    with pytest.raises(SelfTestFailed):
        device.repository.load("digits")
    assert device.slots.get("digits") is before
    entry = device.entry("2")
    assert (entry.state, entry.default) == (ModelState.UNAVAILABLE, False)
    assert "output 'probabilities', row 3" in entry.reason
    with pytest.raises(ModelUnavailable, match="version '2' is unavailable: output"):
        device.slots.lease("digits", "2")


def test_one_broken_package_keeps_no_other_from_starting(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    device.add("1", golden_is_wrong=True)
    device.add("2", name="other")
    (device.models / "rotten").mkdir()
    (device.models / "rotten/manifest.json").write_text("{")
    device.add("2", folder="twin", name="other", seed=8)
    device.repository.start()
    assert device.states() == {
        "digits 1": "UNAVAILABLE", "other 2": "READY", "rotten ": "UNAVAILABLE",
    }  # fmt: skip
    assert "digits 1 is not loaded" in caplog.text
    assert f"rotten is not served: {device.models / 'rotten' / 'manifest.json'}: " in caplog.text
    assert device.repository.load("other").package.folder.name == "other-2"
    with pytest.raises(ManifestError):
        device.repository.load("rotten")
    shutil.rmtree(device.models / "rotten")
    shutil.rmtree(device.models / "twin")
    assert device.states() == {"digits 1": "UNAVAILABLE", "other 2": "READY"}


def test_a_broken_manifest_that_is_mended_is_a_package_again(device: Device) -> None:
    package = device.add("1")
    path = package.folder / "manifest.json"
    good = path.read_bytes()
    path.write_bytes(b"{")
    assert device.states() == {"digits-1 ": "UNAVAILABLE"}
    path.write_bytes(good)
    assert device.states() == {"digits 1": "UNLOADED"}
    path.write_bytes(b"[]")
    assert device.states() == {"digits 1": "UNAVAILABLE"}, "what it was is known by now"
    path.write_bytes(good)
    assert (device.entry("1").state, device.entry("1").reason) == (ModelState.UNLOADED, "not loaded yet")


def test_a_model_whose_package_breaks_and_mends_while_itput_to_sleepsput_to_sleeps_on(device: Device) -> None:
    """As when somebody copies a folder in place while somebody else looks at the index."""
    package = device.add("1")
    device.repository.start()
    put_to_sleep(device)
    manifest = (package.folder / "manifest.json").read_bytes()
    (package.folder / "manifest.json").write_bytes(manifest[:100])
    assert device.entry().state is ModelState.UNAVAILABLE
    with pytest.raises(ModelUnavailable, match="manifest") as caught:
        device.slots.get("digits")
    assert not caught.value.asleep
    (package.folder / "manifest.json").write_bytes(manifest)
    assert device.entry().state is ModelState.UNLOADED
    device.repository.wake("digits")
    assert device.entry().state is ModelState.READY


def test_many_who_wait_for_a_sleeping_model_wait_for_one_load(device: Device) -> None:
    device.add("1")
    device.repository.start()
    before = put_to_sleep(device)
    before.statistics.answered(1, 1, 1, 1)
    woken: list[LoadedModel] = []
    threads = [threading.Thread(target=lambda: woken.append(device.repository.wake("digits"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(woken) == 8
    assert set(woken) == {device.slots.get("digits")}
    assert woken[0] is not before
    assert woken[0].requests == 1, "its counts go on"


def test_a_model_that_cannot_be_woken_says_why_and_is_not_tried_again_until_it_is_loaded(device: Device) -> None:
    package = device.add("1")
    device.repository.start()
    put_to_sleep(device)
    good = package.path("model.onnx").read_bytes()
    package.path("model.onnx").write_bytes(b"rotten")
    with pytest.raises(DigestMismatch):
        device.repository.wake("digits")
    with pytest.raises(ModelUnavailable, match=r"is unavailable: .*expected sha256") as caught:
        device.repository.wake("digits")
    assert not caught.value.asleep
    package.path("model.onnx").write_bytes(good)
    device.repository.load("digits")
    assert device.repository.wake("digits") is device.slots.get("digits")
    with pytest.raises(UnknownModel):
        device.repository.wake("reader")


def test_what_a_person_unloaded_is_not_woken(device: Device) -> None:
    device.add("1")
    device.repository.start()
    put_to_sleep(device)
    device.repository.unload("digits")
    with pytest.raises(ModelUnavailable, match="unloaded on request"):
        device.repository.wake("digits")


def test_an_idle_model_is_unloaded_and_the_next_request_wakes_it(new_device: NewDevice) -> None:
    device = new_device(idle_unload_s=0.2)
    device.add("1")
    device.add("2", name="busy")
    device.add("3", name="held")
    device.repository.start()
    with device.slots.lease("held"):
        until = time.monotonic() + 60
        while device.entry("1").state is ModelState.READY:
            with device.slots.lease("busy"):
                time.sleep(0.02)
            assert time.monotonic() < until, "it never went to sleep"
        assert device.states() == {"busy 2": "READY", "digits 1": "UNLOADED", "held 3": "READY"}
    assert device.entry("1").reason == "idle"
    with pytest.raises(ModelUnavailable) as caught:
        device.slots.lease("digits")
    assert caught.value.asleep
    device.repository.wake("digits")
    with device.slots.lease("digits") as loaded:
        loaded.backend.infer({INPUT: reference_images(1)})


def test_nothing_goes_to_sleep_while_a_model_is_loaded(device: Device) -> None:
    device.add("1")
    device.repository.start()
    loaded, later = device.slots.get("digits"), time.monotonic() + 3600
    unloaded: list[bool] = []
    with device.repository._loading:  # as held by another thread that loads
        idle = threading.Thread(target=lambda: unloaded.append(device.repository._idle_out(loaded, later)))
        idle.start()
        idle.join(0.2)
        assert device.slots.get("digits") is loaded
    idle.join(30)
    assert unloaded == [True]


def test_what_cannot_be_loaded_is_unloaded_when_that_is_asked_for_and_goes_on_saying_why(device: Device) -> None:
    device.add("1", golden_is_wrong=True)
    device.repository.start()
    for _ in range(2):
        device.repository.unload("digits")
        assert device.entry().state is ModelState.UNLOADED
        assert device.entry().reason.startswith("unloaded on request; before, output 'probabilities'")


def test_what_does_not_fit_the_budget_is_refused_and_what_serves_goes_on(new_device: NewDevice, tmp_path: Path) -> None:
    device = new_device(memory=MemoryBudget(20 * MIB))
    make_large_package(device.models / "large", weights_mib=8)
    device.repository.start()
    before = device.slots.get("large")
    make_large_package(device.models / "other", name="other", weights_mib=8)
    with pytest.raises(BudgetExceeded, match=r"'other' version '1' needs about .* large 1 \("):
        device.repository.load("other")
    assert device.entry("1", "other").state is ModelState.UNAVAILABLE
    with pytest.raises(BudgetExceeded, match="it would fit without version '1'"):
        device.repository.load("large")
    assert device.slots.get("large") is before
    device.repository.unload("large")
    device.repository.load("other")
    make_large_package(device.models / "large-2", version="2", weights_mib=8)
    with pytest.raises(BudgetExceeded):
        device.repository.load("large")
    device.repository.unload("other")
    device.repository.load("large")


def test_a_sleeping_model_for_which_there_is_no_memory_now_may_be_woken_later(new_device: NewDevice) -> None:
    device = new_device(memory=MemoryBudget(20 * MIB))
    make_large_package(device.models / "large", weights_mib=8)
    device.repository.start()
    put_to_sleep(device, "large")
    make_large_package(device.models / "other", name="other", weights_mib=8)
    device.repository.load("other")
    with pytest.raises(BudgetExceeded):
        device.repository.wake("large")
    with pytest.raises(ModelUnavailable, match="needs about") as caught:
        device.slots.get("large")
    assert caught.value.asleep
    device.repository.unload("other")
    device.repository.wake("large")


def test_the_fleets_model_is_the_default_and_its_version_hides_the_folders(
    device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    active, kept = (make_package(tmp_path / name, version=name, seed=int(name)) for name in ("2", "1"))
    device.add("3")
    device.add("2", seed=9)
    fleet = Fleet(Known(kept, installed=True, active=False), Known(active, installed=True))
    device.repository.follow(fleet)
    device.repository.serve(device.repository.prepare(active))
    device.repository.start()
    assert device.slots.versions("digits") == ["2", "3"]
    assert (device.entry("2").digest, device.entry("2").default) == (active.digest, True)
    assert (device.entry("1").state, device.entry("1").reason) == (
        ModelState.UNLOADED, "an earlier package, kept to go back to",
    )  # fmt: skip
    device.repository.unload("digits", "2")
    with pytest.raises(ModelUnavailable, match="unloaded on request"):
        device.slots.get("digits")
    again = device.repository.load("digits")
    assert (again.digest, device.slots.get("digits")) == (active.digest, again)
    assert device.slots.versions("digits") == ["2", "3"]
    newer = make_package(tmp_path / "4", version="4", seed=4)
    device.repository.unload("digits", "2")
    fleet.packages = [Known(active, installed=True, active=False), Known(newer, installed=True)]
    caplog.set_level("INFO", logger="edge_agent.runtime.load_log")
    device.repository.serve(device.repository.prepare(newer))
    assert f"model digits {newer.manifest.version} loaded: installed by the fleet or by hand" in caplog.text
    assert device.slots.get("digits").version == "4", "an update serves, whatever was unloaded before"


def test_the_index_answers_while_a_model_is_loaded(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.add("1")
    device.repository.start()
    with device.repository._loading:  # as held by another thread that loads
        answers: list[dict[str, str]] = []
        asking = threading.Thread(target=lambda: answers.append(device.states()))
        asking.start()
        asking.join(30)
        assert answers == [{"digits 1": "READY"}]


def test_models_are_warmed_up_with_the_batches_that_they_prefer(tmp_path: Path) -> None:
    from edge_agent.contract.manifest import Batching
    from edge_agent.runtime import loaded
    from edge_agent.runtime.onnx import OnnxBackend

    rows: list[int] = []

    class Watched(OnnxBackend):
        def infer(self, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
            rows.append(len(inputs[INPUT]))
            return super().infer(inputs)

    package = make_package(tmp_path / "p", batching=Batching(max_rows=16, preferred_rows=(4, 8, 16)))
    model = LoadedModel(package=package, backend=Watched(package))
    loaded._warm_up(model, package.golden())
    assert rows == [1, 8, 4, 16]
