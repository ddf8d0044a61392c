"""Models move to the fastest runtime while they serve, and back where it fails; no request notices."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract.messages import EventKind
from edge_agent.runtime import acceleration, repository
from edge_agent.runtime.accelerator import ENGINES_FOLDER, AcceleratorRules
from edge_agent.runtime.choice import CPU, Measured
from edge_agent.runtime.gpu.survey import Survey
from edge_agent.runtime.guard import RunGuard
from edge_agent.runtime.loaded import LoadedModel, OtherRuntime
from edge_agent.runtime.package import Package
from edge_agent.runtime.runtimes import RuntimesFile
from edge_agent.runtime.selftest import prove
from edge_agent.runtime.slots import ModelState
from tests.fakes.accelerated_device import (
    PATIENCE_S,
    WITH_GPU,
    WITHOUT,
    AcceleratedDevice,
    accelerated,
    engines_are_fast,
    engines_are_slow,
    until,
)
from tests.fakes.packages import INPUT, OUTPUT, answer, make_package, model_weights, reference_images
from tests.fakes.pipeline_package import make_pipeline_package, make_scaler_package

REFITTING = AcceleratorRules(precisions=("fp32",))
# Without a look at each model's graph, which takes a process of its own.
FP32 = dataclasses.replace(REFITTING, refit=False)
FIGURES = "tensorrt fp32: 0.90 ms against 6.1 ms on onnxruntime-cpu"


def ask(device: AcceleratedDevice, version: str = "1") -> None:
    """The model answers what it should, wherever it runs."""
    images = reference_images(3)
    with device.slots.lease("digits", version) as loaded:
        outputs = loaded.backend.infer(loaded.check({INPUT: images}).inputs)
        loaded.statistics.answered(3, 1, 1, 1)
    expected = answer(*model_weights(int(version)), images)
    assert np.allclose(outputs[OUTPUT], expected, rtol=1e-2, atol=1e-2)


class Load:
    """A thread that asks without a pause."""

    def __init__(self, device: AcceleratedDevice) -> None:
        self.failures: list[str] = []
        self.answered = 0
        self._device, self._done = device, threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        while not self._done.wait(0.001):
            try:
                ask(self._device)
                self.answered += 1
            except Exception as error:  # noqa: BLE001 - any failure at all is what this looks for
                self.failures.append(repr(error))

    def stop(self) -> None:
        self._done.set()
        self._thread.join()


def test_a_model_serves_at_once_and_moves_to_its_engine_with_no_failed_request_and_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_BUILD_S", "2")
    with accelerated(tmp_path, rules=FP32) as device:
        device.add("1")
        device.repository.start()
        load = Load(device)
        seen: set[str] = set()

        def has_moved() -> bool:
            seen.add(device.entry().reason)
            return device.runs_on() == "tensorrt fp32"

        until(has_moved)
        until(lambda: device.events)  # told when it has been written down
        until(lambda: device.slots.get("digits").requests > load.answered // 2)
        load.stop()
        assert load.failures == []
        assert load.answered > 10
        assert device.slots.get("digits").requests == load.answered, "counts go on"
        assert device.entry()[3:5] == (ModelState.READY, FIGURES)
        assert any("building a TensorRT fp32 engine (" in text and text.endswith(" %") for text in seen), seen
        assert [(event.kind, event.reason) for event in device.events] == [(EventKind.RUNTIME_CHANGED, FIGURES)]
    assert device.memory.used_bytes == 0


def test_a_package_that_is_loaded_while_the_earlier_one_moves_to_its_engine_takes_the_place_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, is_tested = dict[str, str](), threading.Event()
    loads: list[threading.Thread] = []

    def prove_slowly(loaded: LoadedModel, *, guard: RunGuard) -> None:
        if loaded.digest == changed.get("digest") and not is_tested.is_set():
            is_tested.set()
            with contextlib.suppress(AssertionError):  # it must not: that is the point
                until(lambda: device.runs_on() != CPU, patience_s=0.5)
        prove(loaded, guard=guard)

    def measure(models: Sequence[LoadedModel]) -> list[Measured]:
        if not loads:
            shutil.rmtree(device.models / "digits-1")
            changed["digest"] = device.add("1", seed=2).digest
            loads.append(threading.Thread(target=device.repository.load, args=("digits",)))
            loads[0].start()
            assert is_tested.wait(PATIENCE_S)
        return engines_are_fast(models)

    monkeypatch.setattr(repository, "prove", prove_slowly)
    with accelerated(tmp_path, rules=FP32, measure=measure) as device:
        device.add("1")
        device.repository.start()
        until(lambda: device.slots.get("digits").digest == changed.get("digest") and device.runs_on() != CPU)
        loads[0].join()
        assert device.settled() == FIGURES
    assert device.memory.used_bytes == 0


def test_the_next_start_is_on_the_engine_at_once(tmp_path: Path) -> None:
    with accelerated(tmp_path, rules=FP32) as device:
        device.add("1")
        device.repository.start()
        assert device.settled() == FIGURES
    with accelerated(tmp_path, rules=FP32, measure=engines_are_slow) as device:
        device.repository.start()
        assert (device.runs_on(), device.entry().reason) == ("tensorrt fp32", FIGURES), "nothing is measured again"
        ask(device)
        assert (known := device.runtimes.of(device.slots.get("digits").digest)) is not None
        assert known.troubles == 0
        # Nor does sleep make it forget.
        loaded = device.slots.get("digits")
        device.slots.unload("digits", "1", reason="idle", idle_since=loaded.last_used)
        assert device.repository.wake("digits").runtime == loaded.runtime


def test_a_start_does_not_wait_for_a_driver_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with accelerated(tmp_path, rules=FP32) as device:
        for version in ("1", "2", "3"):
            device.add(version, name=f"digits-{version}")
        device.repository.start()
        assert [device.settled(version, f"digits-{version}") for version in ("1", "2", "3")] == [FIGURES] * 3
    monkeypatch.setattr(acceleration, "_SURVEY_S", 0.2)
    answers = threading.Event()

    def hangs() -> Survey:
        answers.wait()
        return WITH_GPU

    with accelerated(tmp_path, rules=FP32, look=hangs) as device:
        device.repository.start()
        assert {device.runs_on(version, f"digits-{version}") for version in ("1", "2", "3")} == {CPU}
        answers.set()
        for version in ("1", "2", "3"):
            assert device.settled(version, f"digits-{version}") == FIGURES
            assert device.runs_on(version, f"digits-{version}") == "tensorrt fp32"


def test_new_weights_are_refitted_and_an_engine_with_stale_ones_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="edge_agent.runtime")
    with accelerated(tmp_path, rules=REFITTING) as device:
        device.add("1")
        device.repository.start()
        device.settled()
        device.add("2")
        device.repository.load("digits", "2")
        assert device.settled("2") == FIGURES
        assert "digits 2: tensorrt fp32 engine refitted" in caplog.text
        ask(device, "2")
        monkeypatch.setenv("SHOAL_FAKE_TENSORRT_REFIT", "stale")
        device.add("3")
        device.repository.load("digits", "3")
        assert device.settled("3") == FIGURES
        assert "digits 3: its engine is built anew: refitted, it is off by" in caplog.text
        assert "digits 3: tensorrt fp32 engine built" in caplog.text
        ask(device, "3")
        ask(device, "1")


def test_an_update_of_a_model_on_an_engine_is_on_a_refitted_one_from_its_first_request_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with accelerated(tmp_path, rules=REFITTING) as device:
        first, second, third = (
            make_package(tmp_path / "fleet" / version, version=version, seed=int(version)) for version in "123"
        )
        loaded = device.repository.prepare(first)
        assert loaded.runtime.name == CPU
        device.repository.serve(loaded)
        assert device.settled() == FIGURES
        monkeypatch.setenv("SHOAL_FAKE_TENSORRT_BUILD", "fail")
        loaded = device.repository.prepare(second)
        prove(loaded)
        device.repository.serve(loaded)
        assert device.runs_on("2") == "tensorrt fp32"
        assert device.settled("2") == "tensorrt fp32, as version 1, whose engine was refitted"
        ask(device, "2")
        monkeypatch.setenv("SHOAL_FAKE_TENSORRT_REFIT", "fail")
        loaded = device.repository.prepare(third)
        device.repository.serve(loaded)
        assert loaded.runtime.name == CPU
        assert "is not used" in device.settled("3")
        ask(device, "3")
    assert device.memory.used_bytes == 0


def test_a_model_that_falls_asleep_while_its_engine_is_built_has_it_when_it_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_BUILD_S", "1.5")
    with accelerated(tmp_path, rules=FP32) as device:
        device.add("1")
        device.repository.start()
        until(lambda: "(" in device.entry().reason)
        loaded = device.slots.get("digits")
        device.slots.unload("digits", "1", reason="idle", idle_since=loaded.last_used + 1)
        until(lambda: list((tmp_path / ENGINES_FOLDER).glob("*/engine.plan")))
        monkeypatch.setenv("SHOAL_FAKE_TENSORRT_BUILD", "fail")
        device.repository.wake("digits")
        assert device.settled() == FIGURES


def test_an_engine_that_fails_while_it_serves_answers_by_onnx_runtime_and_leaves_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with accelerated(tmp_path, rules=FP32) as device:
        device.add("1")
        device.repository.start()
        device.settled()
        monkeypatch.setenv("SHOAL_FAKE_TENSORRT_EXECUTE", "error")
        ask(device)
        until(lambda: device.memory.used_bytes == 0, "for the engine to be closed")
        assert device.runs_on() == CPU
        reason = device.entry().reason
        assert reason.startswith("tensorrt fp32 failed while it served: ")
        assert reason.endswith("until it is loaded again it runs on onnxruntime-cpu")
        assert [event.reason for event in device.events][1:] == [reason]
        ask(device)
        loaded = device.slots.get("digits")
        assert loaded.failed == 0
        monkeypatch.delenv("SHOAL_FAKE_TENSORRT_EXECUTE")
        device.repository.load("digits")
        assert device.runs_on() == "tensorrt fp32", "once may be chance"
        monkeypatch.setenv("SHOAL_FAKE_TENSORRT_EXECUTE", "false")
        ask(device)
        until(lambda: device.memory.used_bytes == 0, "for the engine to be closed")
        monkeypatch.delenv("SHOAL_FAKE_TENSORRT_EXECUTE")
        device.repository.load("digits")
        assert "tensorrt fp32 has failed here 2 times and is not used any more" in device.settled()
        assert device.runs_on() == CPU


def test_an_engine_that_fails_before_its_model_serves_is_left_as_well_and_one_that_is_gone_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with accelerated(tmp_path, rules=FP32) as device:
        package = device.add("1")
        device.repository.start()
        until(lambda: device.events)
        again = device.repository.prepare(package)
        monkeypatch.setenv("SHOAL_FAKE_TENSORRT_EXECUTE", "error")
        prove(again)  # as an installer does: ONNX Runtime answers
        monkeypatch.delenv("SHOAL_FAKE_TENSORRT_EXECUTE")
        time.sleep(0.2)
        assert (device.runs_on(), len(device.events)) == ("tensorrt fp32", 1), "what serves has not failed"
        device.repository.serve(again)
        until(lambda: device.runs_on() == CPU)
        until(lambda: device.memory.used_bytes == 0, "for both engines to be closed")
        assert "failed while it served" in device.settled()
        assert (known := device.runtimes.of(package.digest)) is not None
        assert known.troubles == 1
        ask(device)


@pytest.mark.parametrize(
    ("fault", "value", "said"),
    [
        ("BUILD", "fail", "Could not find any implementation for node"),
        ("BUILD", "crash", "SIGSEGV"),
        ("REFUSED", "MatMul", "No importer registered for op: MatMul"),
        ("DESERIALIZE", "none", "refuses the engine"),
        ("EXECUTE", "wrong", "output 'probabilities', row 0"),
    ],
)
def test_what_fails_on_the_way_leaves_the_model_where_it_is_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"SHOAL_FAKE_TENSORRT_{fault}", value)
    with accelerated(tmp_path, rules=FP32) as device:
        device.add("1")
        device.repository.start()
        reason = device.settled()
        assert reason.startswith("tensorrt fp32 is not used: ")
        assert said in reason
        assert (device.entry().state, device.runs_on()) == (ModelState.READY, CPU)
        ask(device)
        assert device.events == []
    assert device.memory.used_bytes == 0


def test_a_build_that_failed_is_not_begun_anew_at_each_load_but_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_BUILD", "crash")
    with accelerated(tmp_path, rules=FP32) as device:
        device.add("1")
        device.repository.start()
        reason = device.settled()
        monkeypatch.delenv("SHOAL_FAKE_TENSORRT_BUILD")
        device.repository.load("digits")
        assert device.settled() == f"{reason}; it is tried again where the model is loaded after 10 more minutes"
        assert device.runs_on() == CPU
    with accelerated(tmp_path, rules=FP32) as device:
        device.repository.start()
        assert device.settled() == FIGURES


def test_a_remembered_engine_that_is_refused_is_replaced_and_the_model_serves_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with accelerated(tmp_path, rules=FP32) as device:
        device.add("1")
        device.repository.start()
        device.settled()
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_EXECUTE", "wrong")
    with accelerated(tmp_path, rules=FP32) as device:
        device.repository.start()
        assert device.runs_on() == CPU
        assert "tensorrt fp32 could not be used: output 'probabilities'" in device.events[0].reason
        ask(device)
        assert "is not used" in device.settled()
    monkeypatch.delenv("SHOAL_FAKE_TENSORRT_EXECUTE")
    (tmp_path / "runtimes.json").unlink()
    with accelerated(tmp_path, rules=FP32) as device:
        device.repository.start()
        assert device.settled() == FIGURES
    next((tmp_path / ENGINES_FOLDER).glob("*/engine.plan")).write_bytes(b"damaged")
    with accelerated(tmp_path, rules=FP32) as device:
        device.repository.start()
        assert device.settled() == FIGURES, "found damaged, and built again"


def test_an_engine_that_ends_the_process_when_it_is_first_loaded_is_tried_twice_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started() -> tuple[str, str, RuntimesFile]:
        """Where the model runs and why, and what a crash while the engine is loaded would have left."""
        with accelerated(tmp_path, rules=FP32) as device:
            load_on, left = device.repository.load_on, list[RuntimesFile]()

            def looked_on(package: Package, runtime: OtherRuntime | None, *, beside: LoadedModel) -> LoadedModel:
                left.append(RuntimesFile(tmp_path / "runtimes.json"))
                return load_on(package, runtime, beside=beside)

            monkeypatch.setattr(device.repository, "load_on", looked_on)
            device.repository.start()
            return device.settled(), device.runs_on(), (left or [device.runtimes])[0]

    digest = make_package(tmp_path / "models" / "digits-1", version="1", seed=1).digest
    reason, where, left = started()
    assert (reason, where) == (FIGURES, "tensorrt fp32")
    for _ in range(2):
        crashed = left.of(digest)
        assert crashed is not None
        RuntimesFile(tmp_path / "runtimes.json").put(digest, crashed)
        reason, where, left = started()
    assert where == CPU
    assert "tensorrt fp32 has failed here 2 times and is not used any more" in reason


def test_unloading_a_model_ends_its_build_and_so_does_the_end_of_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="edge_agent.runtime")
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_BUILD_S", "3600")
    with accelerated(tmp_path, rules=FP32) as device:
        device.add("1")
        device.repository.start()
        until(lambda: "(" in device.entry().reason)
        device.repository.unload("digits")
        until(lambda: "digits 1: looking for a faster runtime was broken off" in caplog.text)
        device.repository.load("digits")
        until(lambda: "(" in device.entry().reason)
    assert not list(tmp_path.glob("engine-builds/.*")), "nothing half made is left"


def test_without_a_gpu_the_reason_is_said_once_and_shown_with_each_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with accelerated(tmp_path, rules=FP32, survey=WITHOUT) as device:
        device.add("1")
        device.add("1", name="letters")
        device.repository.start()
        assert device.settled() == device.settled(name="letters") == WITHOUT.reasons[0]
        assert caplog.text.count(WITHOUT.reasons[0]) == 1


def test_a_gpu_without_room_leaves_models_on_the_cpu_until_the_next_start(tmp_path: Path) -> None:
    with accelerated(tmp_path, rules=FP32, gpu_bytes=1 << 10) as device:
        device.add("1")
        device.repository.start()
        assert "of GPU memory, of which" in device.settled()
        assert device.runs_on() == CPU
    with accelerated(tmp_path, rules=FP32) as device:
        device.repository.start()
        assert device.settled() == FIGURES


def test_engines_beyond_their_budget_stay_on_the_cpu(tmp_path: Path) -> None:
    with accelerated(tmp_path, rules=dataclasses.replace(FP32, gpu_memory_bytes=1 << 20)) as device:
        device.add("1")
        device.repository.start()
        assert "raise accelerator.gpu_memory_mib" in device.settled()
        assert (device.runs_on(), device.memory.used_bytes) == (CPU, 0)


def test_what_is_slower_is_not_taken_and_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with accelerated(tmp_path, rules=FP32, measure=engines_are_slow) as device:
        device.add("1")
        device.repository.start()
        reason = device.settled()
        assert (device.runs_on(), reason) == (CPU, "onnxruntime-cpu: 1.6 ms against 11 ms on tensorrt fp32")
        until(lambda: device.memory.used_bytes == 0)
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_BUILD", "fail")
    with accelerated(tmp_path, rules=FP32) as device:
        device.repository.start()
        assert device.settled() == reason
    with accelerated(tmp_path, rules=dataclasses.replace(FP32, use="tensorrt")) as device:
        device.repository.start()
        device.settled()
        assert device.runs_on() == "tensorrt fp32", "as asked for, with the engine that was kept"


def test_a_pipeline_runs_its_step_on_the_engine(tmp_path: Path) -> None:
    with accelerated(tmp_path, rules=FP32) as device:
        device.add("1", seed=0)
        make_scaler_package(device.models / "scaler")
        make_pipeline_package(device.models / "reader")
        device.repository.start()
        device.settled()
        loaded = device.slots.get("reader")
        golden = loaded.package.golden()
        prove(loaded)
        assert (loaded.runtime.name, device.entry(name="reader").reason) == ("pipeline", "")
        loaded.backend.infer(loaded.check(golden.inputs).inputs)
        assert device.slots.get("digits").requests > 0, "the step that was exchanged goes on counting"


def test_onnx_runtimes_cuda_provider_is_a_candidate_where_it_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: offered)
    alone = Survey(WITH_GPU.gpu, None, None, ("tensorrt cannot be imported",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the runtime's own, that it takes the CPU instead
        with accelerated(tmp_path, rules=FP32, survey=alone) as device:
            device.add("1")
            device.repository.start()
            reason = device.settled()
    assert reason.startswith("onnxruntime-cuda is not used: ONNX Runtime")
    assert "cannot use CUDAExecutionProvider here" in reason


def test_half_precision_is_tried_first_and_what_is_beyond_the_tolerance_is_not_used(tmp_path: Path) -> None:
    with accelerated(tmp_path) as device:
        device.add("1")
        device.repository.start()
        assert device.settled() == "tensorrt fp16: 0.90 ms against 6.1 ms on onnxruntime-cpu"
        ask(device)
