"""The suite of every runtime, for ONNX Runtime and for TensorRT over its stand-in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.gpu.owner import GpuOwner
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from edge_agent.runtime.tensorrt.backend import TensorRtBackend
from tests.edge_agent.runtime.backend_contract import BackendContract, OpenBackend
from tests.fakes.host_memory import HostMemory
from tests.fakes.tensorrt_engines import build_plan, fake_bindings
from tests.fakes.tensorrt_module.running import stop_all_runs


class TestOnnxRuntime(BackendContract):
    @pytest.fixture
    def open_backend(self) -> Iterator[OpenBackend]:
        opened: list[OnnxBackend] = []

        def open_(package: Package) -> InferenceBackend:
            opened.append(OnnxBackend(package))
            return opened[-1]

        yield open_
        for backend in opened:
            backend.close()


@dataclasses.dataclass(frozen=True)
class Form:
    """How TensorRT is run."""

    integrated: bool = False
    streams: int = 1
    graphs: bool = False


class TestTensorRt(BackendContract):
    @pytest.fixture(
        params=[Form(), Form(integrated=True), Form(streams=3, graphs=True)],
        ids=["discrete", "integrated", "several streams, graphs"],
    )
    def open_backend(self, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OpenBackend]:
        form: Form = request.param
        memory = HostMemory(integrated=form.integrated)
        owner = GpuOwner(lambda: memory)
        opened: list[TensorRtBackend] = []

        def open_(package: Package) -> InferenceBackend:
            plan = build_plan(package, tmp_path / f"{len(opened)}.plan")
            backend = TensorRtBackend(
                package, plan, bindings=fake_bindings(), owner=owner, streams=form.streams, graphs=form.graphs
            )
            opened.append(backend)
            return backend

        yield open_
        for backend in opened:
            backend.close()
        assert memory.is_empty()
        owner.close()

    def let_go_of_hung_runs(self) -> None:
        stop_all_runs()
