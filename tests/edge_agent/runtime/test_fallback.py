"""What becomes of requests when an accelerator fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.contract.errors import GpuMemoryExhausted, ModelUnavailable, SignatureMismatch
from edge_agent.contract.signature import Signature
from edge_agent.runtime.backend import BeyondRuntime, InferenceBackend, RunCancelled
from edge_agent.runtime.fallback import FallbackBackend
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from tests.fakes.packages import INPUT, OUTPUT, make_package, reference_images


class BrokenEngine:
    """A backend that answers until it is told what to raise."""

    platform = "tensorrt_plan"

    def __init__(self, package: Package) -> None:
        self._on_cpu = OnnxBackend(package)
        self.signature: Signature = package.manifest.signature
        self.raises: Exception | None = None
        self.closed = False

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self.raises is not None:
            raise self.raises
        return self._on_cpu.infer(inputs)

    def cancel(self) -> None:
        self._on_cpu.cancel()

    def close(self) -> None:
        self.closed = True
        self._on_cpu.close()


class Parts:
    """A backend over an engine, and what it did."""

    def __init__(self, package: Package, open_spare: Callable[[], InferenceBackend]) -> None:
        self.engine = BrokenEngine(package)
        self.failures: list[Exception] = []
        self.backend = FallbackBackend(self.engine, open_spare=open_spare, on_failure=self.failures.append)

    def ask(self, images: NDArray[np.float32] | None = None) -> NDArray[Any]:
        return self.backend.infer({INPUT: reference_images(2) if images is None else images})[OUTPUT]


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return make_package(tmp_path / "digits", fails_above=0.95)


@pytest.fixture
def parts(package: Package) -> Iterator[Parts]:
    made = Parts(package, lambda: OnnxBackend(package))
    made.backend.arm()
    yield made
    made.backend.close()


def test_the_request_on_which_an_engine_fails_is_answered_by_onnx_runtime_and_so_are_all_after_it(parts: Parts) -> None:
    expected = parts.ask()
    assert parts.backend.platform == "tensorrt_plan"
    parts.engine.raises = GpuMemoryExhausted("no GPU memory left")
    assert np.array_equal(parts.ask(), expected)
    parts.engine.raises = None
    assert np.array_equal(parts.ask(), expected)
    assert parts.backend.platform == "onnx_onnxv1"
    assert [str(failure) for failure in parts.failures] == ["no GPU memory left"], "told once"


def test_a_request_that_fails_on_both_is_its_own_fault_and_the_engine_goes_on(parts: Parts) -> None:
    parts.engine.raises = RuntimeError("engine failed")
    with pytest.raises(Exception, match="indices element out of data bounds"):
        parts.ask(np.ones((1, 64), np.float32))
    assert (parts.backend.platform, parts.failures) == ("tensorrt_plan", [])


@pytest.mark.parametrize(
    "error",
    [RunCancelled("broken off"), ModelUnavailable("closed"), SignatureMismatch(INPUT, rule="shape", detail="long")],
)
def test_what_is_not_the_engines_fault_does_not_end_it(parts: Parts, error: Exception) -> None:
    parts.engine.raises = error
    with pytest.raises(type(error)):
        parts.ask()
    assert parts.failures == []


def test_a_request_that_is_more_than_the_engine_takes_is_answered_and_the_engine_goes_on(parts: Parts) -> None:
    expected = parts.ask()
    parts.engine.raises = BeyondRuntime("17 rows at once: the engine takes 16")
    assert np.array_equal(parts.ask(), expected)
    assert (parts.backend.platform, parts.failures, parts.backend.failure) == ("tensorrt_plan", [], None)
    parts.engine.raises = error = RuntimeError("an illegal memory access was encountered")
    assert np.array_equal(parts.ask(), expected)
    assert (parts.backend.platform, parts.failures, parts.backend.failure) == ("onnx_onnxv1", [error], error)


def test_where_the_spare_cannot_be_opened_the_engines_own_error_is_said(package: Package) -> None:
    def refuse() -> InferenceBackend:
        raise MemoryError("nothing left")

    parts = Parts(package, refuse)
    parts.backend.arm()
    parts.engine.raises = GpuMemoryExhausted("no GPU memory left")
    with pytest.raises(GpuMemoryExhausted, match="no GPU memory left"):
        parts.ask()
    parts.backend.close()


def test_an_engine_that_is_being_tested_has_no_spare_to_hide_behind(package: Package) -> None:
    parts = Parts(package, lambda: OnnxBackend(package))
    parts.engine.raises = RuntimeError("the engine failed")
    with pytest.raises(RuntimeError, match="the engine failed"):
        parts.ask()
    parts.backend.close()


def test_many_who_fail_at_once_open_one_spare(package: Package) -> None:
    opened: list[OnnxBackend] = []

    def open_spare() -> OnnxBackend:
        opened.append(OnnxBackend(package))
        return opened[-1]

    parts = Parts(package, open_spare)
    parts.backend.arm()
    parts.engine.raises = RuntimeError("an illegal memory access was encountered")
    answers: list[NDArray[Any]] = []
    threads = [threading.Thread(target=lambda: answers.append(parts.ask())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(answers), len(opened), len(parts.failures)) == (8, 1, 1)
    parts.backend.close()
    assert parts.engine.closed
    with pytest.raises(ModelUnavailable):
        opened[0].infer({INPUT: reference_images(1)})
