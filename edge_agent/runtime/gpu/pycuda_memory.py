"""GPU memory by pycuda: page-locked or mapped buffers, streams, asynchronous copies. It has no CUDA graphs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import AcceleratorUnavailable, DeviceError
from edge_agent.runtime.gpu.capacity import exhausted, left_bytes
from edge_agent.runtime.gpu.device_memory import Buffer, Gpu, Graph, Stream
from edge_agent.runtime.gpu.driver import CudaDriver
from edge_agent.runtime.gpu.events import DriverEvent, EventPool
from edge_agent.runtime.gpu.presence import LIBRARY

# A stream that does not wait for the default one.
_NON_BLOCKING = 1


def open_pycuda(gpu: Gpu, *, library: str = LIBRARY) -> PycudaMemory:
    """Open the GPU on this thread, which owns it from now on.

    Its primary context is used, which all libraries of this process share, as CUDA's runtime and TensorRT do.

    Raises:
        AcceleratorUnavailable: pycuda is not installed, or the driver refuses.
    """
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        raise AcceleratorUnavailable(f"pycuda cannot be imported: {error}; install shoal-agent[tensorrt]") from error
    driver = CudaDriver(library)
    try:
        cuda.init()
        context = cuda.Device(gpu.index).retain_primary_context()
        context.push()
    except cuda.Error as error:
        raise AcceleratorUnavailable(f"{gpu.name} cannot be opened: {error}") from error
    try:
        return PycudaMemory(gpu, cuda, driver, context)
    except BaseException:
        _let_go(driver, context)
        raise


class PycudaMemory:
    """See :class:`edge_agent.runtime.gpu.device_memory.DeviceMemory`.

    Args:
        cuda: The module ``pycuda.driver``.
        context: The GPU's primary context, current to this thread.
    """

    def __init__(self, gpu: Gpu, cuda: Any, driver: CudaDriver, context: Any) -> None:
        self.gpu = gpu
        self._cuda = cuda
        self._driver = driver
        self._context = context
        self._events = EventPool(driver)

    def allocate(self, size_bytes: int) -> Buffer:
        """Room on both sides; one and the same memory on an integrated GPU."""
        try:
            if self.gpu.integrated:
                flags = self._cuda.host_alloc_flags.DEVICEMAP
                host = self._cuda.pagelocked_empty(max(1, size_bytes), np.uint8, mem_flags=flags)
                return _PycudaBuffer(host, size_bytes, device=None)
            device = self._cuda.mem_alloc(max(1, size_bytes))
            try:
                host = self._cuda.pagelocked_empty(max(1, size_bytes), np.uint8)
            except self._cuda.Error:
                device.free()
                raise
        except self._cuda.Error as error:
            raise self._refused(size_bytes, error) from error
        return _PycudaBuffer(host, size_bytes, device=device)

    def allocate_device(self, size_bytes: int) -> Buffer:
        """Room on the GPU alone."""
        try:
            device = self._cuda.mem_alloc(max(1, size_bytes))
        except self._cuda.Error as error:
            raise self._refused(size_bytes, error) from error
        return _PycudaBuffer(None, size_bytes, device=device)

    def free_bytes(self) -> int:
        """What is left of the GPU's memory."""
        try:
            return left_bytes(self.gpu, int(self._cuda.mem_get_info()[0]))
        except self._cuda.Error as error:
            raise AcceleratorUnavailable(f"{self.gpu.name}: {error}") from error

    def new_stream(self) -> Stream:
        """A stream of its own."""
        try:
            stream = self._cuda.Stream(_NON_BLOCKING)
        except self._cuda.Error as error:
            raise AcceleratorUnavailable(f"{self.gpu.name}: {error}") from error
        return _PycudaStream(self._cuda, stream, self._events, is_shared=self.gpu.integrated)

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph | None:  # noqa: ARG002 - the protocol's
        """None: pycuda has no graphs."""
        return None

    def close(self) -> None:
        """Let go of the GPU; again is no harm."""
        if self._context is not None:
            self._events.close()
            context, self._context = self._context, None
            _let_go(self._driver, context)

    def _refused(self, size_bytes: int, error: Exception) -> DeviceError:
        if isinstance(error, self._cuda.MemoryError):
            return exhausted(self.gpu, size_bytes, int(self._cuda.mem_get_info()[0]))
        return AcceleratorUnavailable(f"{self.gpu.name}: no room for {size_bytes} bytes: {error}")


class _PycudaBuffer:
    """A buffer; ``device`` is None where host memory is mapped, ``host`` where there is none."""

    def __init__(self, host: NDArray[np.uint8] | None, size_bytes: int, *, device: Any) -> None:
        self.size_bytes = size_bytes
        self._allocations = [device] if device is not None else []
        self.device_address = int(device) if device is not None else 0
        if host is not None:
            self._allocations.append(host.base)
            if device is None:
                self.device_address = int(self._allocations[0].get_device_pointer())
        self.host = host[:size_bytes] if host is not None else np.empty(0, np.uint8)

    def close(self) -> None:
        self.host = np.empty(0, np.uint8)
        self.device_address = 0
        while self._allocations:
            self._allocations.pop().free()


class _PycudaStream:
    def __init__(self, cuda: Any, stream: Any, events: EventPool, *, is_shared: bool) -> None:
        self.handle = int(stream.handle)
        self._cuda = cuda
        self._stream = stream
        self._events = events
        self._is_shared = is_shared

    def upload(self, buffer: Buffer, size_bytes: int) -> None:
        if self._is_shared or not size_bytes:
            return
        try:
            self._cuda.memcpy_htod_async(buffer.device_address, buffer.host[:size_bytes], self._stream)
        except self._cuda.Error as error:
            raise RuntimeError(f"copy to the GPU: {error}") from error

    def download(self, buffer: Buffer, size_bytes: int) -> None:
        if self._is_shared or not size_bytes:
            return
        try:
            self._cuda.memcpy_dtoh_async(buffer.host[:size_bytes], buffer.device_address, self._stream)
        except self._cuda.Error as error:
            raise RuntimeError(f"copy from the GPU: {error}") from error

    def record(self, *, timed: bool = False) -> DriverEvent:
        return self._events.record(self.handle, timed=timed)

    def wait(self) -> None:
        # By an event that sleeps: the context of others may be set to ask all the time.
        self.record().wait()

    def close(self) -> None:
        # pycuda gives it back when nothing refers to it.
        self._stream = None
        self.handle = 0


def _let_go(driver: CudaDriver, context: Any) -> None:
    # Popped before this thread ends: pycuda aborts the process where a thread ends with a context on its stack.
    context.pop()
    context.detach()
    # pycuda makes it current again to detach it, and leaves it so.
    driver.call("cuCtxPopCurrent_v2", ctypes.pointer(ctypes.c_void_p()))
