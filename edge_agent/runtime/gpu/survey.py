"""What this machine has to run TensorRT with: looked up in a process of its own, which may crash or hang.

Importing the wrong library for a driver has crashed processes before. So the looking is done by
:mod:`edge_agent.runtime.gpu.survey_steps` in a child, one step after the other; whatever happens to it is a reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from edge_agent.runtime.gpu.device_memory import Gpu
from edge_agent.runtime.gpu.presence import LIBRARY, may_have_gpu
from edge_agent.runtime.gpu.survey_process import StepFailed, SurveyProcess

Flavour = Literal["tensorrt", "tensorrt-rtx"]
MemoryProvider = Literal["pycuda", "cuda-python"]

# Modules to try, the first that works is taken. The full TensorRT knows every GPU of a Jetson, RTX does not.
MODULES: tuple[tuple[str, Flavour], ...] = (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx"))
OLDEST: dict[Flavour, tuple[int, ...]] = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 0)}


@dataclasses.dataclass(frozen=True)
class TensorRtLibrary:
    """A TensorRT that can be imported here.

    Args:
        module: Its Python module: ``tensorrt`` or ``tensorrt_rtx``.
        version: ``(10, 3, 0)``; all parts of the version that are numbers.
    """

    module: str
    flavour: Flavour
    version: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was found.

    Args:
        gpu: None where none can be used; the rest is None then.
        memory: The provider of GPU memory.
        reasons: Why something is None, or a second choice: sentences for a person, in the order of the looking.
    """

    gpu: Gpu | None
    tensorrt: TensorRtLibrary | None
    memory: MemoryProvider | None
    reasons: tuple[str, ...]


def survey(
    *,
    timeout_s: float = 20,
    wants_graphs: bool = False,
    library: str = LIBRARY,
    modules: Sequence[tuple[str, Flavour]] = MODULES,
    devices: Path = Path("/dev"),
) -> Survey:
    """Look for a GPU, a TensorRT and a provider of GPU memory, seconds at most where all is well.

    Args:
        timeout_s: How long one step may take; a first import from a slow disk takes several seconds.
        wants_graphs: Whether CUDA graphs are asked for: cuda-python is preferred then, which has them.
        library: Name or path of the driver's library.
        modules: TensorRT modules to try, by preference.
        devices: The folder of device nodes.
    Returns:
        Never an error: what is missing is None, and ``reasons`` says why.
    """
    if not may_have_gpu(library, devices=devices):
        return Survey(None, None, None, ("no NVIDIA GPU: neither a device node nor a driver is here",))
    reasons: list[str] = []
    with contextlib.closing(SurveyProcess(timeout_s=timeout_s, library=library)) as process:
        gpu = _find_gpu(process, reasons)
        if gpu is None:
            return Survey(None, None, None, tuple(reasons))
        tensorrt = _find_tensorrt(process, modules, reasons)
        memory = _find_memory(process, gpu, wants_graphs, reasons)
    return Survey(gpu, tensorrt, memory, tuple(reasons))


def _find_gpu(process: SurveyProcess, reasons: list[str]) -> Gpu | None:
    try:
        answer = process.ask("gpu")
    except StepFailed as error:
        reasons.append(str(error))
        return None
    return Gpu(
        index=answer["index"],
        name=answer["name"],
        compute_capability=_pair(answer["compute_capability"]),
        integrated=answer["integrated"],
        memory_bytes=answer["memory_bytes"],
        driver_version=_pair(answer["driver_version"]),
    )


def _find_tensorrt(
    process: SurveyProcess, modules: Sequence[tuple[str, Flavour]], reasons: list[str]
) -> TensorRtLibrary | None:
    for module, flavour in modules:
        try:
            answer = process.ask("module", module=module)
        except StepFailed as error:
            reasons.append(str(error))
            continue
        version = tuple(answer["version"])
        if version >= OLDEST[flavour]:
            return TensorRtLibrary(module, flavour, version)
        reasons.append(f"{module} {_dotted(version)} is older than {_dotted(OLDEST[flavour])}: update it")
    return None


def _find_memory(process: SurveyProcess, gpu: Gpu, wants_graphs: bool, reasons: list[str]) -> MemoryProvider | None:
    providers: list[MemoryProvider] = ["cuda-python", "pycuda"] if wants_graphs else ["pycuda", "cuda-python"]
    for provider in providers:
        try:
            process.ask("memory", provider=provider, gpu=dataclasses.asdict(gpu))
        except StepFailed as error:
            reasons.append(str(error))
            continue
        return provider
    return None


def _pair(values: Any) -> tuple[int, int]:
    major, minor = values
    return int(major), int(minor)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
