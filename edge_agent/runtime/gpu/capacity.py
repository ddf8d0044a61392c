"""How much memory of a GPU is left, and the error where it is not enough."""

from __future__ import annotations

import psutil

from edge_agent.contract.errors import GpuMemoryExhausted
from edge_agent.runtime.gpu.device_memory import Gpu

_MIB = 1 << 20


def left_bytes(gpu: Gpu, free_bytes: int) -> int:
    """What can be allocated, given what the driver calls free.

    Where the memory is shared, the driver does not count what the system would give back at once, such as its cache
    of files (NVIDIA, "CUDA for Tegra", 4.1: Estimating Total Allocatable Device Memory on an Integrated GPU Device).
    """
    return max(free_bytes, int(psutil.virtual_memory().available)) if gpu.integrated else free_bytes


def exhausted(gpu: Gpu, need_bytes: int, free_bytes: int) -> GpuMemoryExhausted:
    """The error for an allocation that the driver has refused."""
    left = left_bytes(gpu, free_bytes)
    shares = ", which it shares with all programs," if gpu.integrated else ""
    return GpuMemoryExhausted(
        f"{gpu.name}: {need_bytes / _MIB:.1f} MiB were asked for; of {gpu.memory_bytes / _MIB:.0f} MiB{shares} "
        f"{left / _MIB:.1f} MiB are left: unload a model, or end another program that uses the GPU"
    )
