"""The suite of every runtime on the real TensorRT; over its stand-in: tests/edge_agent/runtime."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.gpu.owner import GpuOwner
from edge_agent.runtime.gpu.providers import open_memory
from edge_agent.runtime.gpu.survey import Survey, survey
from edge_agent.runtime.package import Package
from edge_agent.runtime.tensorrt.backend import TensorRtBackend
from edge_agent.runtime.tensorrt.bindings import load_bindings
from edge_agent.runtime.tensorrt.builder import BuildRequest, EngineBuilder
from edge_agent.runtime.tensorrt.engine_key import conditions_here
from edge_agent.runtime.tensorrt.profiles import profiles_for
from edge_agent.runtime.tensorrt.worker_process import WorkerLimits
from tests.edge_agent.runtime.backend_contract import BackendContract, OpenBackend


@pytest.fixture(scope="module")
def found() -> Survey:
    found = survey(timeout_s=120)
    if found.gpu is None or found.tensorrt is None or found.memory is None:
        pytest.skip("no TensorRT that could run here: " + "; ".join(found.reasons))
    return found


class TestTensorRt(BackendContract):
    atol = 2e-3  # products of matrices may be computed in TF32, with 10 bits of mantissa
    hangs_for = 3e5  # nothing ends a kernel: it must end by itself, after seconds

    @pytest.fixture(params=[(1, False), (3, True)], ids=["one stream", "several streams, graphs"])
    def open_backend(self, found: Survey, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OpenBackend]:
        gpu, library, memory = found.gpu, found.tensorrt, found.memory
        assert gpu is not None
        assert library is not None
        assert memory is not None
        streams, graphs = request.param
        conditions = conditions_here(gpu, library).digest()
        builder = EngineBuilder(library, tmp_path / "builds", conditions=conditions, limits=WorkerLimits())
        owner = GpuOwner(lambda: open_memory(memory, gpu))
        bindings = load_bindings(library)
        opened: list[TensorRtBackend] = []

        def open_(package: Package) -> InferenceBackend:
            manifest = package.manifest
            golden = {name: array.shape for name, array in package.golden().inputs.items()}
            build = BuildRequest(
                model=package.path(manifest.variants["fp32"].model),
                profiles=profiles_for(manifest.signature, manifest.batching, golden),
            )
            plan = builder.build(build, lambda _: None, threading.Event()).plan
            opened.append(
                TensorRtBackend(package, plan, bindings=bindings, owner=owner, streams=streams, graphs=graphs)
            )
            return opened[-1]

        yield open_
        for backend in opened:
            backend.close()
        owner.close()
