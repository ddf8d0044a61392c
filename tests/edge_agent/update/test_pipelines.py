"""Models of one pipeline: they swap together, fail together, and go back together."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.contract.errors import ShoalError
from edge_agent.contract.manifest import PipelineStep, Probation, Shadow
from edge_agent.contract.messages import Desired, EventKind, UpdateStep
from edge_agent.runtime.package import Package
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import INPUT, OUTPUT, make_package, reference_images
from tests.fakes.pipeline_package import RAW, SCALED, make_pipeline_package, make_scaler_package
from tests.fakes.update_server import UpdateServer, update_server
from tests.fakes.updating_device import UpdatingDevice

NAMES = ("digits", "reader", "scaler")
LONG = Probation(seconds=100.0)


def pinned(scaler: str, digits: str) -> tuple[PipelineStep, ...]:
    return (
        PipelineStep(model="scaler", version=scaler),
        PipelineStep(model="digits", version=digits, inputs={INPUT: SCALED}),
    )


@dataclasses.dataclass
class Built:
    """Two generations of three packages; the pipelines are pinned to the steps of their generation."""

    first: dict[str, Package]
    second: dict[str, Package]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("pipelines")
    generations = [
        {
            "digits": make_package(folder / f"digits{version}", version=version, seed=seed, probation=LONG),
            "scaler": make_scaler_package(folder / f"scaler{version}", version=version, factor=(1 + seed * 1e-6) / 255),
            "reader": make_pipeline_package(
                folder / f"reader{version}", version=version, steps=pinned(version, version), seed=seed, probation=LONG
            ),
        }
        for version, seed in (("1", 1), ("2", 2))
    ]
    return Built(*generations)


@pytest.fixture
def server(tmp_path: Path, built: Built) -> Iterator[UpdateServer]:
    with update_server(tmp_path / "server", models=NAMES) as running:
        for package in (*built.first.values(), *built.second.values()):
            running.publisher.publish(package)
        yield running


def wish(server: UpdateServer, *packages: Package) -> Desired:
    """All of them in one wish, as the server sends it."""
    each = [server.assign(package) for package in packages]
    models = {name: wanted for one in each for name, wanted in one.models.items()}
    return Desired(revision=max(one.revision for one in each), models=models)


@pytest.fixture
def device(server: UpdateServer, new_device: NewDevice, built: Built) -> UpdatingDevice:
    made = new_device()
    desired = wish(server, *built.first.values())
    made.apply(desired)
    made.pass_probation()
    assert made.apply(desired), made.installer.reported()
    made.events.clear()
    return made


def versions(device: UpdatingDevice) -> dict[str, str]:
    return {name: device.slots.get(name).version for name in NAMES}


def steps(device: UpdatingDevice) -> set[UpdateStep]:
    return {one.step for one in device.installer.reported().values()}


def read(device: UpdatingDevice) -> np.ndarray:
    """What the pipeline answers to four images."""
    with device.slots.lease("reader") as loaded:
        return loaded.backend.infer({RAW: reference_images(4) * np.float32(255)})[OUTPUT]


def expected(package: Package) -> np.ndarray:
    return package.golden().outputs[OUTPUT][:4]


ALL = {"digits": "2", "reader": "2", "scaler": "2"}
OLD = {"digits": "1", "reader": "1", "scaler": "1"}


def test_a_pipeline_and_its_steps_are_tested_and_swapped_as_one(
    server: UpdateServer, device: UpdatingDevice, built: Built
) -> None:
    desired = wish(server, *built.second.values())
    assert not device.apply(desired)
    assert versions(device) == ALL
    assert steps(device) == {UpdateStep.PROBATION}
    np.testing.assert_allclose(read(device), expected(built.second["reader"]), rtol=1e-4)
    records = device.installer._journal.models()
    assert {record.group for record in records.values()} == {NAMES}
    device.now_s += 99
    device.installer.watch()
    assert steps(device) == {UpdateStep.PROBATION}, "the scaler's ten seconds are over, and it waits for the others"
    device.now_s += 2
    device.installer.watch()
    assert steps(device) == {UpdateStep.COMMITTED}
    assert device.apply(desired)
    both = [*built.first.values(), *built.second.values()]
    assert device.packages() == {package.digest for package in both}, "those before stay as spares"


def test_the_journal_never_has_some_of_them_swapped_and_others_not(
    server: UpdateServer, device: UpdatingDevice, built: Built, new_device: NewDevice
) -> None:
    device.close()
    seen = []

    def look(_model: str, _step: UpdateStep) -> None:
        text = (device.state / "slots.json").read_bytes()
        models = msgspec.json.decode(text)["models"]
        seen.append({models[name]["active"] == built.second[name].digest for name in NAMES})

    looking = new_device(after_step=look)
    looking.apply(wish(server, *built.second.values()))
    assert all(len(swapped) == 1 for swapped in seen)
    assert seen[-1] == {True}


def test_no_request_to_the_pipeline_fails_or_meets_old_and_new_while_they_swap(
    server: UpdateServer, device: UpdatingDevice, built: Built
) -> None:
    known = [expected(built.first["reader"]), expected(built.second["reader"])]
    wrong: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = read(device)
            except ShoalError as error:
                wrong.append(error)
                return
            if not any(np.allclose(answer, one, rtol=1e-3, atol=1e-4) for one in known):
                wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    first, second = list(built.first.values()), list(built.second.values())
    for packages in (second, first, second, first):
        desired = wish(server, *packages)
        device.apply(desired)
        device.pass_probation()
        assert device.apply(desired), device.installer.reported()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_one_that_fails_on_probation_takes_all_back_with_it(
    server: UpdateServer, device: UpdatingDevice, built: Built, new_device: NewDevice
) -> None:
    desired = wish(server, *built.second.values())
    device.apply(desired)
    device.slots.get("digits").statistics.failed(1000)
    device.installer.watch()
    assert versions(device) == OLD
    assert steps(device) == {UpdateStep.FAILED}
    np.testing.assert_allclose(read(device), expected(built.first["reader"]), rtol=1e-4)
    reported = device.installer.reported()
    assert "1 of 1 requests failed" in reported["digits"].reason
    assert reported["scaler"].reason.startswith("came with 'digits': ")
    assert len(device.told(EventKind.ROLLED_BACK)) == 3
    assert device.apply(desired), "none of them is tried again for that release"
    device.close()
    restarted = new_device()
    assert versions(restarted) == OLD


def test_a_step_that_fails_its_self_test_keeps_the_others_from_coming(
    server: UpdateServer, device: UpdatingDevice, built: Built, tmp_path: Path
) -> None:
    bad = make_package(tmp_path / "bad", version="3", seed=3, golden_is_wrong=True)
    reader = make_pipeline_package(tmp_path / "reader", version="3", steps=pinned("2", "3"), seed=3)
    for package in (bad, reader):
        server.publisher.publish(package)
    desired = wish(server, bad, reader, built.second["scaler"])
    device.apply(desired)
    assert versions(device) == OLD
    reported = device.installer.reported()
    assert reported["digits"].step is UpdateStep.FAILED
    assert "was to come with 'digits', which failed" in reported["reader"].reason
    assert not device.apply(desired)
    reported = device.installer.reported()
    assert "waits for its step 'digits' 3; here there is: 1; the last update of 'digits' failed" in (
        reported["reader"].reason
    )
    assert "is pinned to 'scaler' 1" in reported["scaler"].reason
    assert versions(device) == OLD
    good = make_package(tmp_path / "good", version="4", seed=4)
    again = make_pipeline_package(tmp_path / "again", version="4", steps=pinned("2", "4"), seed=4)
    for package in (good, again):
        server.publisher.publish(package)
    desired = msgspec.structs.replace(desired, models=desired.models | wish(server, good, again).models)
    device.apply(desired)
    assert versions(device) == {"digits": "4", "reader": "4", "scaler": "2"}


def test_a_pipeline_whose_golden_answers_do_not_come_out_is_refused_and_its_steps_stay(
    server: UpdateServer, device: UpdatingDevice, built: Built, tmp_path: Path
) -> None:
    wrong = make_pipeline_package(tmp_path / "wrong", version="3", steps=pinned("2", "2"), seed=7)
    server.publisher.publish(wrong)
    device.apply(wish(server, wrong, built.second["digits"], built.second["scaler"]))
    assert versions(device) == OLD
    reported = device.installer.reported()
    assert reported["reader"].target == wrong.digest
    assert "output 'probabilities'" in reported["reader"].reason
    np.testing.assert_allclose(read(device), expected(built.first["reader"]), rtol=1e-4)


def test_a_pipeline_that_is_announced_before_its_steps_waits_for_them_and_they_for_it(
    server: UpdateServer, device: UpdatingDevice, built: Built
) -> None:
    scaler = wish(server, built.second["scaler"])
    assert not device.apply(scaler)
    assert "is pinned to 'scaler' 1: waits for a version of 'reader'" in device.installer.reported()["scaler"].reason
    two = msgspec.structs.replace(scaler, models=scaler.models | wish(server, built.second["reader"]).models)
    assert not device.apply(two)
    assert "waits for its step 'digits' 2" in device.installer.reported()["reader"].reason
    assert steps(device) & {UpdateStep.FAILED} == set(), "waiting is no failure"
    assert versions(device) == OLD
    device.apply(msgspec.structs.replace(two, models=two.models | wish(server, built.second["digits"]).models))
    assert versions(device) == ALL


def test_an_agent_that_dies_twice_on_probation_takes_the_whole_group_back(
    server: UpdateServer, device: UpdatingDevice, built: Built, new_device: NewDevice
) -> None:
    device.apply(wish(server, *built.second.values()))
    assert versions(new_device()) == ALL
    third = new_device()
    assert versions(third) == OLD
    np.testing.assert_allclose(read(third), expected(built.first["reader"]), rtol=1e-4)


def test_one_that_the_disk_has_spoilt_on_probation_takes_the_group_back_at_the_start(
    server: UpdateServer, device: UpdatingDevice, built: Built, new_device: NewDevice
) -> None:
    device.apply(wish(server, *built.second.values()))
    device.close()
    (device.state / "packages" / built.second["scaler"].digest / "model.onnx").write_bytes(b"rotten")
    restarted = new_device()
    assert versions(restarted) == OLD
    np.testing.assert_allclose(read(restarted), expected(built.first["reader"]), rtol=1e-4)


def test_a_step_with_which_an_installed_pipeline_would_not_run_is_refused(
    server: UpdateServer, device: UpdatingDevice, built: Built, tmp_path: Path
) -> None:
    loose = make_pipeline_package(tmp_path / "loose", version="5", seed=1)
    server.publisher.publish(loose)
    desired = wish(server, loose)
    device.apply(desired)
    device.pass_probation()
    other = make_scaler_package(tmp_path / "other", version="6", output="something-else")
    server.publisher.publish(other)
    assert device.apply(wish(server, other))
    reason = device.installer.reported()["scaler"].reason
    assert "with it pipeline 'reader' 5, which serves here, fails" in reason
    assert device.slots.get("scaler").version == "1"
    device.apply(wish(server, built.second["digits"]))
    assert device.slots.get("digits").version == "2", "with the new digits it runs"
    assert device.slots.get("reader").version == "5"
    read(device)


def test_a_group_shadows_swaps_and_is_resumed_as_one(
    server: UpdateServer, device: UpdatingDevice, built: Built, new_device: NewDevice, tmp_path: Path
) -> None:
    device.close()
    shadow = Shadow(seconds=3600.0, rows=20, min_agreement=0.9)
    digits = make_package(tmp_path / "digits", version="3", seed=1, shadow=shadow)
    reader = make_pipeline_package(tmp_path / "reader", version="3", steps=pinned("2", "3"), seed=1, shadow=shadow)
    for package in (digits, reader):
        server.publisher.publish(package)
    desired = wish(server, digits, reader, built.second["scaler"])
    first = new_device(with_shadows=True)
    first.apply(desired)
    assert (versions(first), steps(first)) == (OLD, {UpdateStep.SHADOW})
    first.close()
    device = new_device(with_shadows=True)
    assert not device.apply(desired)
    assert (versions(device), steps(device)) == (OLD, {UpdateStep.SHADOW})
    images, until = reference_images(8), time.monotonic() + 60
    while steps(device) == {UpdateStep.SHADOW}:
        assert time.monotonic() < until, device.installer.reported()
        device.ask(images)
        if device.installer.reported()["reader"].reason.startswith("no rows"):
            assert versions(device) == OLD, "the pipeline has yet to be compared, though its step has proved itself"
        device.ask(images * np.float32(255), "reader", RAW)
        device.installer.watch()
    assert steps(device) == {UpdateStep.PROBATION}
    assert versions(device) == {"digits": "3", "reader": "3", "scaler": "2"}
    read(device)


def test_a_group_of_which_one_disagrees_in_its_shadow_stays_away_as_one(
    server: UpdateServer, device: UpdatingDevice, built: Built, new_device: NewDevice, tmp_path: Path
) -> None:
    device.close()
    shadow = Shadow(seconds=3600.0, rows=20, min_agreement=0.9)
    digits = make_package(tmp_path / "digits", version="3", seed=8, shadow=shadow)
    reader = make_pipeline_package(tmp_path / "reader", version="3", steps=pinned("2", "3"), seed=8)
    for package in (digits, reader):
        server.publisher.publish(package)
    device = new_device(with_shadows=True)
    device.apply(wish(server, digits, reader, built.second["scaler"]))
    device.ask_until(lambda: steps(device) == {UpdateStep.FAILED}, reference_images(16))
    assert versions(device) == OLD
    reported = device.installer.reported()
    assert "90.0% are asked for" in reported["digits"].reason
    assert reported["reader"].reason.startswith("was to come with 'digits', which failed")
    np.testing.assert_allclose(read(device), expected(built.first["reader"]), rtol=1e-4)
