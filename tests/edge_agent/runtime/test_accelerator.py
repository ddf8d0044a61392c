"""Why nothing but the processors is used, where the settings are the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.runtime.accelerator import Accelerator, AcceleratorRules
from edge_agent.runtime.gpu.survey import Survey
from edge_agent.runtime.package import Package
from tests.fakes.accelerated_device import WITH_GPU, WITHOUT
from tests.fakes.packages import make_package

_NO_TENSORRT = Survey(WITH_GPU.gpu, None, None, ("tensorrt cannot be imported",))


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return make_package(tmp_path / "digits")


@pytest.mark.parametrize("found", [WITH_GPU, _NO_TENSORRT])
def test_cuda_asked_for_of_an_onnx_runtime_without_it_is_the_reason(
    tmp_path: Path, package: Package, found: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    why_not = Accelerator(tmp_path, AcceleratorRules(use="onnxruntime-cuda"), look=lambda: found).why_not(package)
    assert why_not.startswith("accelerator.use is onnxruntime-cuda, and the onnxruntime here has no CUDA")


def test_int8_alone_for_a_package_without_it_is_the_reason(tmp_path: Path, package: Package) -> None:
    rules = AcceleratorRules(use="tensorrt", precisions=("int8",))
    why_not = Accelerator(tmp_path, rules, look=lambda: WITH_GPU).why_not(package)
    assert why_not.startswith("accelerator.precisions names int8 alone")


@pytest.mark.parametrize(("found", "reason"), [(WITH_GPU, ""), (_NO_TENSORRT, "tensorrt cannot"), (WITHOUT, "the")])
def test_else_it_is_what_the_machine_lacks(tmp_path: Path, package: Package, found: Survey, reason: str) -> None:
    why_not = Accelerator(tmp_path, AcceleratorRules(use="tensorrt"), look=lambda: found).why_not(package)
    assert bool(why_not) == bool(reason)
    assert why_not.startswith(reason)
