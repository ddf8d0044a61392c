"""GPU memory by NVIDIA's own bindings (cuda-bindings, once cuda-python), which have CUDA graphs."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import AcceleratorUnavailable, DeviceError
from edge_agent.runtime.gpu.capacity import exhausted, left_bytes
from edge_agent.runtime.gpu.device_memory import Buffer, Gpu, Graph, Stream
from edge_agent.runtime.gpu.driver import CudaDriver, CudaFailure
from edge_agent.runtime.gpu.events import DriverEvent, EventPool
from edge_agent.runtime.gpu.presence import LIBRARY

_NON_BLOCKING = 1
_DEVICEMAP = 2
_OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"

_log = logging.getLogger(__name__)


def import_bindings() -> Any:
    """The module of the driver's functions, by its name of today or of before 12.6.1.

    Raises:
        ImportError: Neither is installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError:
        from cuda import cuda as driver
    return driver


def open_cuda_python(gpu: Gpu, *, library: str = LIBRARY) -> CudaPythonMemory:
    """Open the GPU on this thread, which owns it from now on; its primary context, as libraries do.

    Raises:
        AcceleratorUnavailable: The bindings are not installed, or the driver refuses.
    """
    try:
        api = import_bindings()
    except ImportError as error:
        raise AcceleratorUnavailable(
            f"cuda-bindings cannot be imported: {error}; install shoal-agent[cuda-graphs]"
        ) from error
    driver = CudaDriver(library)
    try:
        _check("cuInit", api.cuInit(0))
        device = _check("cuDeviceGet", api.cuDeviceGet(gpu.index))
        context = _check("cuDevicePrimaryCtxRetain", api.cuDevicePrimaryCtxRetain(device))
        try:
            _check("cuCtxPushCurrent", api.cuCtxPushCurrent(context))
        except CudaFailure:
            api.cuDevicePrimaryCtxRelease(device)
            raise
    except CudaFailure as error:
        raise AcceleratorUnavailable(f"{gpu.name} cannot be opened: {error}") from error
    try:
        return CudaPythonMemory(gpu, api, driver, device)
    except BaseException:
        _let_go(api, device)
        raise


class CudaPythonMemory:
    """See :class:`edge_agent.runtime.gpu.device_memory.DeviceMemory`.

    Args:
        api: The module of the driver's functions; each returns a tuple, its ``CUresult`` first.
        device: Whose primary context is current to this thread.
    """

    def __init__(self, gpu: Gpu, api: Any, driver: CudaDriver, device: Any) -> None:
        self.gpu = gpu
        self._api = api
        self._device = device
        self._events = EventPool(driver)

    def allocate(self, size_bytes: int) -> Buffer:
        """Room on both sides; one and the same memory on an integrated GPU."""
        buffer = _CudaPythonBuffer(self._api, size_bytes)
        try:
            buffer.allocate_host(is_mapped=self.gpu.integrated)
            if not self.gpu.integrated:
                buffer.allocate_device()
        except CudaFailure as error:
            buffer.close()
            raise self._refused(size_bytes, error) from error
        return buffer

    def allocate_device(self, size_bytes: int) -> Buffer:
        """Room on the GPU alone."""
        buffer = _CudaPythonBuffer(self._api, size_bytes)
        try:
            buffer.allocate_device()
        except CudaFailure as error:
            raise self._refused(size_bytes, error) from error
        return buffer

    def free_bytes(self) -> int:
        """What is left of the GPU's memory."""
        try:
            return left_bytes(self.gpu, self._driver_free_bytes())
        except CudaFailure as error:
            raise AcceleratorUnavailable(f"{self.gpu.name}: {error}") from error

    def new_stream(self) -> Stream:
        """A stream of its own."""
        try:
            stream = _check("cuStreamCreate", self._api.cuStreamCreate(_NON_BLOCKING))
        except CudaFailure as error:
            raise AcceleratorUnavailable(f"{self.gpu.name}: {error}") from error
        return _CudaPythonStream(self._api, stream, self._events, is_shared=self.gpu.integrated)

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph | None:
        """Record what ``enqueue`` enqueues; what other threads do meanwhile does not disturb it.

        Raises:
            Exception: Whatever ``enqueue`` raises; the stream captures no more.
        """
        api = self._api
        mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        try:
            _check("cuStreamBeginCapture", api.cuStreamBeginCapture(stream.handle, mode))
        except CudaFailure as error:
            _log.info("this GPU captures no CUDA graphs: %s", error)
            return None
        try:
            enqueue()
        except BaseException:
            code, graph = api.cuStreamEndCapture(stream.handle)
            if not int(code):
                api.cuGraphDestroy(graph)
            raise
        try:
            graph = _check("cuStreamEndCapture", api.cuStreamEndCapture(stream.handle))
            try:
                return _CudaPythonGraph(api, _check("cuGraphInstantiate", api.cuGraphInstantiate(graph, 0)))
            finally:
                api.cuGraphDestroy(graph)
        except CudaFailure as error:
            _log.info("this work cannot be captured as a CUDA graph: %s", error)
            return None

    def close(self) -> None:
        """Let go of the GPU; again is no harm."""
        if self._device is not None:
            self._events.close()
            device, self._device = self._device, None
            _let_go(self._api, device)

    def _driver_free_bytes(self) -> int:
        answer = self._api.cuMemGetInfo()
        _check("cuMemGetInfo", answer[:2])
        return int(answer[1])

    def _refused(self, size_bytes: int, error: CudaFailure) -> DeviceError:
        if error.name == _OUT_OF_MEMORY:
            return exhausted(self.gpu, size_bytes, self._driver_free_bytes())
        return AcceleratorUnavailable(f"{self.gpu.name}: no room for {size_bytes} bytes: {error}")


class _CudaPythonBuffer:
    def __init__(self, api: Any, size_bytes: int) -> None:
        self.host: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.device_address = 0
        self.host_address = 0
        self.size_bytes = size_bytes
        self._api = api
        self._device: Any = None

    def allocate_host(self, *, is_mapped: bool) -> None:
        size = max(1, self.size_bytes)
        flags = _DEVICEMAP if is_mapped else 0
        self.host_address = int(_check("cuMemHostAlloc", self._api.cuMemHostAlloc(size, flags)))
        memory = (ctypes.c_uint8 * size).from_address(self.host_address)
        self.host = np.ctypeslib.as_array(memory)[: self.size_bytes]
        if is_mapped:
            address = _check("cuMemHostGetDevicePointer", self._api.cuMemHostGetDevicePointer(self.host_address, 0))
            self.device_address = int(address)

    def allocate_device(self) -> None:
        self._device = _check("cuMemAlloc", self._api.cuMemAlloc(max(1, self.size_bytes)))
        self.device_address = int(self._device)

    def close(self) -> None:
        self.host = np.empty(0, np.uint8)
        host_address, self.host_address, self.device_address = self.host_address, 0, 0
        device, self._device = self._device, None
        # What is not freed is logged and not raised: the other must be freed as well.
        if device is not None:
            _log_failure("cuMemFree", self._api.cuMemFree(device))
        if host_address:
            _log_failure("cuMemFreeHost", self._api.cuMemFreeHost(host_address))


class _CudaPythonStream:
    def __init__(self, api: Any, stream: Any, events: EventPool, *, is_shared: bool) -> None:
        self.handle = int(stream)
        self._api = api
        self._stream = stream
        self._events = events
        self._is_shared = is_shared

    def upload(self, buffer: Buffer, size_bytes: int) -> None:
        if not self._is_shared and size_bytes:
            host = cast("_CudaPythonBuffer", buffer).host_address
            _check(
                "cuMemcpyHtoDAsync",
                self._api.cuMemcpyHtoDAsync(buffer.device_address, host, size_bytes, self._stream),
            )

    def download(self, buffer: Buffer, size_bytes: int) -> None:
        if not self._is_shared and size_bytes:
            host = cast("_CudaPythonBuffer", buffer).host_address
            _check(
                "cuMemcpyDtoHAsync",
                self._api.cuMemcpyDtoHAsync(host, buffer.device_address, size_bytes, self._stream),
            )

    def record(self, *, timed: bool = False) -> DriverEvent:
        return self._events.record(self.handle, timed=timed)

    def wait(self) -> None:
        self.record().wait()

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            _log_failure("cuStreamDestroy", self._api.cuStreamDestroy(stream))
        self.handle = 0


class _CudaPythonGraph:
    def __init__(self, api: Any, executable: Any) -> None:
        self._api = api
        self._executable = executable

    def launch(self, stream: Stream) -> None:
        _check("cuGraphLaunch", self._api.cuGraphLaunch(self._executable, stream.handle))

    def close(self) -> None:
        executable, self._executable = self._executable, None
        if executable is not None:
            _log_failure("cuGraphExecDestroy", self._api.cuGraphExecDestroy(executable))


def _check(call: str, answer: tuple[Any, ...]) -> Any:
    """The value of an answer of the bindings, None where it has none."""
    if int(answer[0]):
        raise CudaFailure(call, code=int(answer[0]), name=answer[0].name)
    return answer[1] if len(answer) > 1 else None


def _log_failure(call: str, answer: tuple[Any, ...]) -> None:
    if int(answer[0]):
        _log.warning("%s: %s; what it should have freed is lost until this process ends", call, answer[0].name)


def _let_go(api: Any, device: Any) -> None:
    _log_failure("cuCtxPopCurrent", api.cuCtxPopCurrent())
    _log_failure("cuDevicePrimaryCtxRelease", api.cuDevicePrimaryCtxRelease(device))
