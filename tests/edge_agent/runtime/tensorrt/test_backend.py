"""TensorRT's backend beyond what every runtime must do: memory, faults, profiles, streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.contract.errors import (
    AcceleratorUnavailable,
    EngineBuildFailed,
    GpuMemoryExhausted,
    ModelFailed,
    ModelUnavailable,
)
from edge_agent.contract.manifest import Batching
from edge_agent.runtime.backend import RunCancelled
from edge_agent.runtime.gpu.owner import GpuOwner
from edge_agent.runtime.package import Package
from edge_agent.runtime.tensorrt.backend import TensorRtBackend
from edge_agent.runtime.tensorrt.profiles import ShapeProfile
from tests.edge_agent.runtime.backend_contract import error_of, run_all
from tests.fakes.graph_packages import (
    make_dependent_package,
    make_finding_package,
    make_mixed_package,
    mixed_inputs,
    mixed_outputs,
)
from tests.fakes.hanging_package import FOREVER, make_hanging_package
from tests.fakes.host_memory import HostMemory
from tests.fakes.packages import INPUT, OUTPUT, PIXELS, answer, make_package, model_weights, reference_images
from tests.fakes.tensorrt_engines import build_plan, fake_bindings
from tests.fakes.tensorrt_module.running import stop_all_runs

BATCHES = Batching(max_rows=4, preferred_rows=(2,))


class Gpu:
    """A GPU that is none, and backends on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory = HostMemory()
        self.owner = GpuOwner(lambda: self.memory)
        self.opened: list[TensorRtBackend] = []

    def open(self, package: Package, plan: Path | None = None, **settings: Any) -> TensorRtBackend:
        plan = plan or build_plan(package, self.folder / f"{len(self.opened)}.plan")
        backend = TensorRtBackend(package, plan, bindings=fake_bindings(), owner=self.owner, **settings)
        self.opened.append(backend)
        return backend

    @property
    def is_empty(self) -> bool:
        return self.memory.is_empty(0)

    def close(self) -> None:
        stop_all_runs()
        for backend in self.opened:
            backend.close()
        assert self.memory.is_empty()
        self.owner.close()


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[Gpu]:
    gpu = Gpu(tmp_path)
    yield gpu
    gpu.close()


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return make_package(tmp_path / "package", batching=BATCHES)


def is_right(backend: TensorRtBackend, rows: int = 1) -> bool:
    images = reference_images(rows)
    return np.allclose(backend.infer({INPUT: images})[OUTPUT], answer(*model_weights(), images), atol=1e-5)


def test_a_request_allocates_nothing_on_the_gpu(gpu: Gpu, package: Package) -> None:
    backend = gpu.open(package)
    allocations = gpu.memory.allocations
    for rows in (1, 2, 3, 4, 9, 1):
        assert is_right(backend, rows)
    assert gpu.memory.allocations == allocations
    # The largest batch, in and out, and a mebibyte of scratch.
    assert gpu.memory.used_bytes == 4 * (PIXELS + 10) * 4 + (1 << 20)
    assert backend.gpu_bytes > gpu.memory.used_bytes


def test_closing_gives_everything_back_and_each_stream_has_its_own_memory(gpu: Gpu, package: Package) -> None:
    one = gpu.open(package)
    taken = gpu.memory.used_bytes
    two = gpu.open(package, streams=2, graphs=True)
    assert gpu.memory.used_bytes == 3 * taken
    for _ in range(4):
        assert is_right(two)
    two.close()
    assert gpu.memory.used_bytes == taken
    one.close()
    assert gpu.is_empty


def test_too_little_memory_is_told_and_nothing_stays_behind(gpu: Gpu, package: Package) -> None:
    plan = build_plan(package, gpu.folder / "plan")
    gpu.memory = HostMemory(limit_bytes=(5 << 20) // 2)
    with pytest.raises(GpuMemoryExhausted, match="left on Stand-in"):
        gpu.open(package, plan, streams=3)
    assert gpu.is_empty
    assert is_right(gpu.open(package, plan, streams=2))


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("DESERIALIZE=none", "refuses the engine.*not compatible with this device"),
        ("VERSION=10.13.4.1", "refuses the engine.*engine plan of version 10.13.3.9"),
        ("CONTEXT=none", "no execution context"),
        ("EXECUTE=false", "does not run: TensorRT could not run the model"),
        ("EXECUTE=error", "does not run: CUDA_ERROR_LAUNCH_FAILED"),
    ],
)
def test_an_engine_that_tensorrt_refuses_says_why(
    gpu: Gpu, package: Package, monkeypatch: pytest.MonkeyPatch, fault: str, text: str
) -> None:
    plan = build_plan(package, gpu.folder / "plan")
    name, _, value = fault.partition("=")
    monkeypatch.setenv(f"SHOAL_FAKE_TENSORRT_{name}", value)
    with pytest.raises(EngineBuildFailed, match=text) as caught:
        gpu.open(package, plan)
    assert not caught.value.is_final  # built again it may be accepted
    assert gpu.is_empty


def test_damaged_and_missing_plans_are_refused(gpu: Gpu, package: Package) -> None:
    plan = build_plan(package, gpu.folder / "plan")
    data = bytearray(plan.read_bytes())
    data[-1] ^= 1
    plan.write_bytes(data)
    with pytest.raises(EngineBuildFailed, match="damaged"):
        gpu.open(package, plan)
    with pytest.raises(EngineBuildFailed, match="No such file"):
        gpu.open(package, gpu.folder / "none")


def test_another_models_engine_is_refused(gpu: Gpu, package: Package, tmp_path: Path) -> None:
    other = make_mixed_package(tmp_path / "other")
    with pytest.raises(EngineBuildFailed, match="the engine's inputs are"):
        gpu.open(package, build_plan(other, tmp_path / "plan"))
    assert gpu.is_empty


def test_an_output_whose_size_depends_on_values_is_refused_for_good(gpu: Gpu, tmp_path: Path) -> None:
    with pytest.raises(EngineBuildFailed, match="size of output 'found' depends on the values") as caught:
        gpu.open(make_finding_package(tmp_path / "p"))
    assert caught.value.is_final
    assert gpu.is_empty


def test_a_refused_run_fails_with_tensorrts_reason_and_the_next_is_answered(
    gpu: Gpu, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = gpu.open(package)
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_EXECUTE", "false")
    with pytest.raises(ModelFailed, match=r"could not run the model.*Error Code 7"):
        is_right(backend)
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_EXECUTE", "error")
    with pytest.raises(RuntimeError, match="LAUNCH_FAILED"):
        is_right(backend)
    monkeypatch.delenv("SHOAL_FAKE_TENSORRT_EXECUTE")
    assert is_right(backend)


def test_engines_of_narrower_types_take_what_fits(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_INT64", "narrow")
    backend = gpu.open(make_mixed_package(tmp_path / "p"))
    inputs = mixed_inputs(2)
    outputs = backend.infer(inputs)
    assert outputs["next"].dtype == np.int64
    np.testing.assert_array_equal(outputs["next"], mixed_outputs(inputs)["next"])
    inputs["count"][1, 2] = 1 << 31
    with pytest.raises(ModelFailed, match="input 'count': the engine takes int32 in place of int64"):
        backend.infer(inputs)


def test_a_shape_outside_of_every_profile_says_which_there_are(gpu: Gpu, tmp_path: Path) -> None:
    backend = gpu.open(make_mixed_package(tmp_path / "p"))
    with pytest.raises(ModelFailed, match=r"x \[2, 17\].*x \[1, 1\] to \[16, 16\]"):
        backend.infer(mixed_inputs(2, length=17))


def test_each_shape_runs_on_the_smallest_profile_that_takes_it(gpu: Gpu, package: Package) -> None:
    profiles = [(ShapeProfile(INPUT, (1, 64), (rows, 64), (rows, 64)),) for rows in (16, 1, 4)]
    backend = gpu.open(package, build_plan(package, gpu.folder / "plan", profiles=profiles))
    engine = backend._engine
    assert [engine.profile_for({INPUT: (rows, 64)}) for rows in (1, 2, 4, 5, 16, 17)] == [1, 2, 2, 0, 0, None]
    for rows in (1, 16, 2, 1, 5, 40):
        assert is_right(backend, rows)


@pytest.mark.parametrize(
    ("dependent", "golden_rows", "served"), [(False, 4, True), (True, 4, False), (False, 1, False)]
)
def test_a_request_is_cut_up_only_where_rows_are_proven_independent(
    gpu: Gpu, tmp_path: Path, dependent: bool, golden_rows: int, served: bool
) -> None:
    backend = gpu.open(make_dependent_package(tmp_path / "p", dependent=dependent, golden_rows=golden_rows))
    x = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    if served:
        outputs = backend.infer({"x": x})
        np.testing.assert_allclose(outputs["centred"], x - x.mean(axis=1, keepdims=True), atol=1e-6)
    else:
        with pytest.raises(ModelFailed, match=r"20 rows at once: the engine takes 16"):
            backend.infer({"x": x})
    assert backend.infer({"x": x[:16]})["centred"].shape == (16, 4)


def test_graphs_are_captured_for_each_shape_the_third_time(gpu: Gpu, package: Package) -> None:
    backend = gpu.open(package, graphs=True)
    assert is_right(backend)
    assert backend.graph_counts == (0, 0)
    for _ in range(2):
        for rows in (1, 2, 1, 3, 4):  # shapes in turn: a graph must not see what another shape has set
            images = reference_images(rows, seed=rows)
            outputs = backend.infer({INPUT: images})[OUTPUT]
            np.testing.assert_allclose(outputs, answer(*model_weights(), images), atol=1e-5)
    assert backend.graph_counts.captured == 2  # of 1 row and of 4, which have run when it was opened too
    for rows in (2, 3, 4, 1):
        assert is_right(backend, rows)
    assert backend.graph_counts == (4, 0)


def test_only_a_few_graphs_are_kept(gpu: Gpu, tmp_path: Path) -> None:
    backend = gpu.open(make_mixed_package(tmp_path / "p"), graphs=True)
    for length in (*range(1, 8), *range(1, 8)):
        for _ in range(3):
            inputs = mixed_inputs(2, length=length)
            np.testing.assert_array_equal(backend.infer(inputs)["halved"], inputs["x"] / 2)
    graphs = backend._lanes[0]._graphs
    assert graphs is not None
    assert (len(graphs._recorded), graphs.refused) == (4, 0)


@pytest.mark.parametrize("fault", ["provider", "driver"])
def test_where_graphs_cannot_be_captured_it_runs_without(gpu: Gpu, package: Package, fault: str) -> None:
    gpu.memory.captures = fault != "provider"
    gpu.memory.capture_fails = fault == "driver"
    backend = gpu.open(package, graphs=True)
    for _ in range(6):
        assert is_right(backend)
    assert backend.graph_counts == (0, 1)


def test_a_request_that_waits_for_a_stream_is_broken_off_too(gpu: Gpu, tmp_path: Path) -> None:
    backend = gpu.open(make_hanging_package(tmp_path / "p"))
    images = reference_images(1)
    hanging = images.copy()
    hanging[0, 0] = FOREVER
    outcomes: list[BaseException] = []

    def ask() -> None:
        outcomes.append(error_of(backend, hanging))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        backend.cancel()
        time.sleep(0.02)
        if not any(thread.is_alive() for thread in threads):
            break
    assert [type(each) for each in outcomes] == [RunCancelled] * 3
    stop_all_runs()


def test_what_a_run_given_up_on_uses_is_given_back_when_it_is_done(gpu: Gpu, tmp_path: Path) -> None:
    backend = gpu.open(make_hanging_package(tmp_path / "p"))
    hanging = reference_images(1)
    hanging[0, 0] = FOREVER
    outcomes: list[BaseException] = []
    thread = threading.Thread(target=lambda: outcomes.append(error_of(backend, hanging)))
    thread.start()
    while thread.is_alive():
        backend.cancel()
        thread.join(0.02)
    backend.close()  # does not wait
    if not gpu.is_empty:  # the GPU still writes there
        stop_all_runs()
    assert gpu.memory.is_empty()


def test_to_close_while_it_runs_lets_the_run_end(gpu: Gpu, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = gpu.open(package)
    assert is_right(backend)
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_EXECUTE_S", "0.3")
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(is_right(backend)))
    thread.start()
    while backend._pool._free:
        pass
    backend.close()
    with pytest.raises(ModelUnavailable):
        is_right(backend)
    thread.join()
    assert answers == [True]
    assert gpu.is_empty


def test_several_models_share_one_gpu(gpu: Gpu, package: Package, tmp_path: Path) -> None:
    digits, mixed = gpu.open(package, streams=2), gpu.open(make_mixed_package(tmp_path / "mixed"))
    wrong: list[int] = []

    def ask_digits() -> None:
        wrong.extend(turn for turn in range(30) if not is_right(digits, 1 + turn % 5))

    def ask_mixed() -> None:
        for turn in range(30):
            inputs = mixed_inputs(1 + turn % 3, seed=turn)
            if not np.array_equal(mixed.infer(inputs)["next"], inputs["count"] + 1):
                wrong.append(turn)

    run_all([ask_digits, ask_mixed, ask_digits, ask_mixed])
    assert wrong == []


def test_a_loader_of_its_own_keeps_the_gpus_thread_free(gpu: Gpu, package: Package) -> None:
    loader_memory = HostMemory()
    loader = GpuOwner(lambda: loader_memory)
    backend = gpu.open(package, loader=loader, graphs=True)
    for _ in range(4):
        assert is_right(backend)
    assert gpu.memory.allocations == 0
    backend.close()
    assert loader_memory.used_bytes == 0
    loader.close()


def test_a_gpu_that_was_let_go_of_is_told_and_closing_is_no_harm(gpu: Gpu, package: Package) -> None:
    memory = HostMemory()
    memory.close = lambda: None  # type: ignore[method-assign]
    owner = GpuOwner(lambda: memory)
    plan = build_plan(package, gpu.folder / "plan")
    backend = TensorRtBackend(package, plan, bindings=fake_bindings(), owner=owner)
    assert is_right(backend)
    owner.close()
    with pytest.raises(AcceleratorUnavailable):
        is_right(backend)
    backend.close()


def test_a_gpu_that_cannot_be_opened_is_told(package: Package, tmp_path: Path) -> None:
    def refuse() -> HostMemory:
        raise AcceleratorUnavailable("cuInit: CUDA_ERROR_NO_DEVICE")

    owner = GpuOwner(refuse)
    with pytest.raises(AcceleratorUnavailable, match="NO_DEVICE"):
        TensorRtBackend(package, build_plan(package, tmp_path / "plan"), bindings=fake_bindings(), owner=owner)
    owner.close()


def test_the_gpus_own_time_can_be_asked_for(gpu: Gpu, package: Package) -> None:
    backend = gpu.open(package, graphs=True)
    images = reference_images(2)
    assert 0 < backend.execute_us({INPUT: images}) < 60e6
    assert is_right(backend, 2)
