from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_agent.runtime.gpu.presence import may_have_gpu
from edge_agent.runtime.gpu.survey import Flavour, Survey, TensorRtLibrary, survey
from tests.fakes.cuda_driver import StubDriver

_ABSENT = "libno-such-driver.so.1"
_MODULES = {
    "good_trt": "__version__ = '10.3.0.post1'\nclass Runtime: ...",
    "old_trt": "__version__ = '8.5.2'\nclass Runtime: ...",
    "other_trt": "__version__ = '10.3'",
    "loud_trt": "__version__ = '11.4.0.106'\nclass Runtime: ...\nimport os\nprint('hello'); os.write(1, b'hello')",
    "broken_trt": "import no_such_library_of_tensorrt",
    "odd_trt": "raise ValueError('an odd installation')",
    "crashing_trt": "import os, sys\nprint('corrupted heap', file=sys.stderr, flush=True)\nos.abort()",
    "hanging_trt": "import time\ntime.sleep(600)",
}


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """Device nodes as of a machine with a GPU."""
    folder = tmp_path / "dev"
    folder.mkdir()
    (folder / "nvidia0").touch()
    return folder


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for TensorRT that can be imported by name."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, text in _MODULES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def driver(stub_driver: StubDriver, monkeypatch: pytest.MonkeyPatch) -> StubDriver:
    for name, value in stub_driver.environment().items():
        monkeypatch.setenv(name, value)
    return stub_driver


def _survey(devices: Path, *modules: str, **arguments: Any) -> Survey:
    candidates: list[tuple[str, Flavour]] = [(module, "tensorrt") for module in modules]
    return survey(devices=devices, modules=candidates, **{"timeout_s": 60, **arguments})


def test_a_machine_without_nodes_and_driver_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "nvme0").touch()  # a disk
    assert not may_have_gpu(_ABSENT, devices=tmp_path)
    assert not may_have_gpu(_ABSENT, devices=tmp_path / "none")
    found = survey(devices=tmp_path, library=_ABSENT, timeout_s=0)  # a process would take longer
    assert found == Survey(None, None, None, ("no NVIDIA GPU: neither a device node nor a driver is here",))


@pytest.mark.parametrize("node", ["nvidia0", "nvidiactl", "nvhost-gpu", "nvhost-ctrl-gpu", "nvmap", "nvgpu"])
def test_a_node_of_a_gpu_is_worth_a_look(tmp_path: Path, node: str) -> None:
    (tmp_path / node).touch()
    assert may_have_gpu(_ABSENT, devices=tmp_path)


def test_nodes_without_a_driver_are_a_reason(devices: Path) -> None:
    found = _survey(devices, library=_ABSENT)
    assert found.gpu is None
    (reason,) = found.reasons
    assert "no NVIDIA driver" in reason
    assert _ABSENT in reason


@pytest.mark.usefixtures("driver", "modules")
def test_the_first_tensorrt_that_works_is_taken_and_the_others_are_reasons(devices: Path) -> None:
    found = _survey(
        devices, "no_such_trt", "broken_trt", "odd_trt", "other_trt", "old_trt", "crashing_trt", "good_trt", "loud_trt"
    )
    assert found.gpu is not None
    assert found.gpu.name == "Stub GPU"
    assert found.gpu.compute_capability == (9, 0)
    assert found.tensorrt == TensorRtLibrary("good_trt", "tensorrt", (10, 3, 0))
    for module, words in {
        "no_such_trt": "cannot be imported: No module named 'no_such_trt'",
        "broken_trt": "cannot be imported: No module named 'no_such_library_of_tensorrt'",
        "odd_trt": "cannot be imported: ValueError: an odd installation",
        "other_trt": "is no TensorRT",
        "old_trt": "8.5.2 is older than 10.3: update it",
        "crashing_trt": "crashed the process that tried it (SIGABRT: corrupted heap)",
    }.items():
        (reason,) = [reason for reason in found.reasons if module in reason]
        assert words in reason


@pytest.mark.usefixtures("driver", "modules")
def test_what_a_library_prints_is_no_answer(devices: Path) -> None:
    found = _survey(devices, "loud_trt")
    assert found.tensorrt == TensorRtLibrary("loud_trt", "tensorrt", (11, 4, 0, 106))


@pytest.mark.usefixtures("driver", "modules")
def test_a_library_that_hangs_is_given_up_and_the_next_one_tried(devices: Path) -> None:
    found = _survey(devices, "hanging_trt", "good_trt", timeout_s=5)
    assert found.tensorrt is not None
    assert found.tensorrt.module == "good_trt"
    assert found.reasons[0] == "importing hanging_trt took longer than 5 s: it hangs"


@pytest.mark.usefixtures("driver")
def test_a_process_with_very_many_files_open_finds_its_gpu_too(devices: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(1100):
                opened.enter_context(Path(os.devnull).open("rb"))
            assert _survey(devices).gpu is not None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_process_that_cannot_be_started_is_a_reason(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (reason,) = _survey(devices).reasons
    assert reason.startswith("looking for a GPU: no process could be started for it: ")
    assert "/no/such/python" in reason


@pytest.mark.usefixtures("driver")
def test_a_driver_that_hangs_is_given_up(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_STUB_CUDA_HANG", "cuInit")
    found = _survey(devices, "good_trt", timeout_s=3)
    assert found == Survey(None, None, None, ("looking for a GPU took longer than 3 s: it hangs",))


@pytest.mark.usefixtures("driver")
def test_a_driver_that_crashes_takes_only_the_survey_with_it(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_STUB_CUDA_CRASH", "cuInit")
    found = _survey(devices, "good_trt")
    assert found == Survey(None, None, None, found.reasons)
    assert "looking for a GPU crashed the process that tried it (SIGABRT" in found.reasons[0]


@pytest.mark.skipif(
    importlib.util.find_spec("pycuda") is None or importlib.util.find_spec("cuda") is None,
    reason="not installed: pycuda or cuda-python (`make gpu-parts` installs them)",
)
@pytest.mark.usefixtures("driver", "modules")
def test_pycuda_provides_memory_unless_graphs_are_asked_for(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _survey(devices, "good_trt").memory == "pycuda"
    assert _survey(devices, "good_trt", wants_graphs=True).memory == "cuda-python"
    monkeypatch.setenv("SHOAL_STUB_CUDA_FAIL", "cuMemHostAlloc=2")
    found = _survey(devices, "good_trt")
    assert found.memory is None
    assert found.tensorrt is not None
    assert len([reason for reason in found.reasons if "MiB are left" in reason]) == 2


def test_an_agent_without_a_gpu_imports_nothing_of_it(repository: Path) -> None:
    code = (
        "import sys, edge_agent.agent; "
        "print([name for name in sys.modules if name.startswith('edge_agent.runtime.gpu.')], "
        "[name for name in ('tensorrt', 'tensorrt_rtx', 'pycuda', 'cuda', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, env=os.environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['edge_agent.runtime.gpu.presence'] []"
