"""What this machine has to run TensorRT with: looked up in a process of its own, which may crash or hang."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path
from typing import Literal

from edge_agent.runtime.gpu.device_memory import Gpu
from edge_agent.runtime.gpu.driver import LIBRARY

Flavour = Literal["tensorrt", "tensorrt-rtx"]
MemoryProvider = Literal["pycuda", "cuda-python"]

# A Jetson's GPU is no PCI device: its nodes have other names. The last is the Linux inside Windows.
_NODES = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "dxg")


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


def may_have_gpu(library: str = LIBRARY, *, devices: Path = Path("/dev")) -> bool:
    """Whether it is worth a process to look: there are nodes of a GPU, or the driver's library. Microseconds."""
    if any(True for pattern in _NODES for _ in devices.glob(pattern)):
        return True
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
