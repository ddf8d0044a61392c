"""Engines built, refitted and run by the real TensorRT; without a GPU: tests/edge_agent/runtime/tensorrt."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.contract.errors import SelfTestFailed
from edge_agent.contract.manifest import GOLDEN_FILE
from edge_agent.runtime.gpu.owner import GpuOwner
from edge_agent.runtime.gpu.providers import open_memory
from edge_agent.runtime.gpu.survey import Survey, survey
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import self_test
from edge_agent.runtime.tensorrt.backend import TensorRtBackend
from edge_agent.runtime.tensorrt.bindings import Bindings, load_bindings
from edge_agent.runtime.tensorrt.builder import BuildRequest, BuiltEngine, EngineBuilder
from edge_agent.runtime.tensorrt.engine_cache import KeptEngine
from edge_agent.runtime.tensorrt.engine_key import conditions_here
from edge_agent.runtime.tensorrt.job import Precision
from edge_agent.runtime.tensorrt.profiles import profiles_for
from edge_agent.runtime.tensorrt.worker_process import WorkerLimits
from tests.fakes.packages import make_package

# float16 has 11 bits of mantissa; the model's outputs are probabilities.
_TOLERANCE = {"as-is": (1e-2, 1e-3), "fp16": (2e-2, 2e-2)}


@dataclasses.dataclass(frozen=True)
class Workshop:
    """All that turns a package into answers on the GPU."""

    builder: EngineBuilder
    bindings: Bindings
    owner: GpuOwner

    def build(self, package: Package, precision: Precision) -> BuiltEngine:
        manifest = package.manifest
        golden = {name: array.shape for name, array in package.golden().inputs.items()}
        request = BuildRequest(
            model=model(package),
            profiles=profiles_for(manifest.signature, manifest.batching, golden),
            precision=precision,
            golden=package.path(GOLDEN_FILE),
        )
        return self.builder.build(request, lambda _: None, threading.Event())

    def prove(self, package: Package, plan: Path, precision: Precision) -> None:
        """Whether an engine answers the golden samples of a package."""
        rtol, atol = _TOLERANCE[precision]
        backend = TensorRtBackend(package, plan, bindings=self.bindings, owner=self.owner)
        try:
            self_test(backend, package.golden(), rtol=rtol, atol=atol)
        finally:
            backend.close()


def model(package: Package) -> Path:
    return package.path(package.manifest.variants["fp32"].model)


@pytest.fixture(scope="module")
def found() -> Survey:
    found = survey(timeout_s=120)
    if found.gpu is None or found.tensorrt is None or found.memory is None:
        pytest.skip("no TensorRT that could run here: " + "; ".join(found.reasons))
    return found


@pytest.fixture
def workshop(found: Survey, tmp_path: Path) -> Iterator[Workshop]:
    gpu, library, memory = found.gpu, found.tensorrt, found.memory
    assert gpu is not None
    assert library is not None
    assert memory is not None
    conditions = conditions_here(gpu, library).digest()
    builder = EngineBuilder(library, tmp_path / "builds", conditions=conditions, limits=WorkerLimits())
    owner = GpuOwner(lambda: open_memory(memory, gpu))
    yield Workshop(builder, load_bindings(library), owner)
    owner.close()


@pytest.mark.parametrize("precision", ["as-is", "fp16"])
def test_an_engine_answers_the_golden_samples(workshop: Workshop, precision: Precision, tmp_path: Path) -> None:
    package = make_package(tmp_path / "digits")

    workshop.prove(package, workshop.build(package, precision).plan, precision)


@pytest.mark.parametrize("precision", ["as-is", "fp16"])
def test_a_refitted_engine_answers_as_the_model_whose_weights_it_was_given(
    workshop: Workshop, precision: Precision, tmp_path: Path
) -> None:
    old, new = (make_package(tmp_path / f"digits-{seed}", version=str(seed), seed=seed) for seed in (1, 2))
    built = workshop.build(old, precision)
    kept = KeptEngine("old", built.plan, built.facts)

    refitted = workshop.builder.refit(kept, model(new), lambda _: None, threading.Event())

    workshop.prove(new, refitted.plan, precision)
    with pytest.raises(SelfTestFailed):
        workshop.prove(new, built.plan, precision)
    again = workshop.builder.refit(
        KeptEngine("new", refitted.plan, refitted.facts), model(old), lambda _: None, threading.Event()
    )
    workshop.prove(old, again.plan, precision)


def test_a_second_build_finds_the_timings_of_the_first(workshop: Workshop, tmp_path: Path) -> None:
    package = make_package(tmp_path / "digits")
    first = workshop.build(package, "as-is")
    second = workshop.build(package, "as-is")

    workshop.prove(package, second.plan, "as-is")
    if workshop.bindings.has_timing_cache:
        assert list((tmp_path / "builds").glob("timings-*"))
    print(f"built in {first.facts.seconds:.1f} s, then in {second.facts.seconds:.1f} s")  # noqa: T201 - for the record
