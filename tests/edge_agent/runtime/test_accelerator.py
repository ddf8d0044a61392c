"""Why nothing but the processors is used, where the settings are the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.runtime.accelerator import Accelerator, AcceleratorRules
from edge_agent.runtime.gpu.survey import Survey
from tests.fakes.accelerated_device import WITH_GPU, WITHOUT

_NO_TENSORRT = Survey(WITH_GPU.gpu, None, None, ("tensorrt cannot be imported",))


@pytest.mark.parametrize("found", [WITH_GPU, _NO_TENSORRT])
def test_cuda_asked_for_of_an_onnx_runtime_without_it_is_the_reason(
    tmp_path: Path, found: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    accelerator = Accelerator(tmp_path, AcceleratorRules(use="onnxruntime-cuda"), look=lambda: found)
    assert accelerator.why_not().startswith("accelerator.use is onnxruntime-cuda, and the onnxruntime here has no CUDA")


@pytest.mark.parametrize(("found", "reason"), [(WITH_GPU, ""), (_NO_TENSORRT, "tensorrt cannot"), (WITHOUT, "the")])
def test_else_it_is_what_the_machine_lacks(tmp_path: Path, found: Survey, reason: str) -> None:
    why_not = Accelerator(tmp_path, AcceleratorRules(use="tensorrt"), look=lambda: found).why_not()
    assert bool(why_not) == bool(reason)
    assert why_not.startswith(reason)
