"""The providers of GPU memory by name. Each is imported when it is opened, and no earlier."""

from __future__ import annotations

from edge_agent.runtime.gpu.device_memory import DeviceMemory, Gpu
from edge_agent.runtime.gpu.presence import LIBRARY


def open_memory(provider: str, gpu: Gpu, *, library: str = LIBRARY) -> DeviceMemory:
    """Open the GPU on this thread, which owns it from now on.

    Args:
        provider: ``pycuda`` or ``cuda-python``.
        library: Name or path of the driver's library.
    Raises:
        AcceleratorUnavailable: The provider is not installed, or the driver refuses.
    """
    if provider == "pycuda":
        from edge_agent.runtime.gpu.pycuda_memory import open_pycuda

        return open_pycuda(gpu, library=library)
    if provider == "cuda-python":
        from edge_agent.runtime.gpu.cuda_python_memory import open_cuda_python

        return open_cuda_python(gpu, library=library)
    raise ValueError(f"no provider of GPU memory is called '{provider}': it is pycuda or cuda-python")
