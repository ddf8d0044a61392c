"""GPU memory for tests: numpy arrays stand for the GPU's, a thread for each of its streams.

As on a discrete GPU the two sides of a buffer are different memory, so that a forgotten copy shows; work is done later
than it is enqueued, so that a forgotten wait shows; and memory that was given back is not there any more.
"""

from __future__ import annotations

import ctypes
import itertools
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import GpuMemoryExhausted
from edge_agent.runtime.gpu.device_memory import Buffer, Event, Gpu, Graph, Stream

_handles = itertools.count(0x1000)
# Of all memories of this process: TensorRT is given nothing but integers.
_streams: weakref.WeakValueDictionary[int, HostStream] = weakref.WeakValueDictionary()
_live: dict[int, NDArray[np.uint8]] = {}
_freed: set[int] = set()


def stream_of(handle: int) -> HostStream | None:
    """The stream with this ``cudaStream_t``, or None where it is not of this module."""
    return _streams.get(handle)


def memory_at(address: int, size_bytes: int) -> NDArray[np.uint8]:
    """The GPU's memory at an address; that of others (a stub driver's) is taken at its word.

    Raises:
        RuntimeError: It was given back, or is smaller.
    """
    array = _live.get(address)
    if array is not None and len(array) >= size_bytes:
        return array[:size_bytes]
    if array is not None or address in _freed or not address:
        raise RuntimeError(f"an illegal memory access was encountered: {size_bytes} bytes at {address:#x}")
    raw: Any = (ctypes.c_uint8 * size_bytes).from_address(address)
    return np.asarray(np.frombuffer(raw, dtype=np.uint8))


def a_gpu(*, integrated: bool = False, memory_bytes: int = 1 << 30) -> Gpu:
    """A GPU as a driver would describe it."""
    return Gpu(
        index=0,
        name="Orin (stand-in)" if integrated else "Stand-in",
        compute_capability=(8, 7),
        integrated=integrated,
        memory_bytes=memory_bytes,
        driver_version=(12, 6),
    )


class HostMemory:
    """A ``DeviceMemory`` that needs no GPU.

    Args:
        limit_bytes: What it has; beyond it, allocations fail.
        captures: Whether graphs can be recorded.
    Attributes:
        allocations: Buffers allocated so far.
        used_bytes: Of the buffers that are open.
        open_streams: Streams that were not closed.
    """

    def __init__(self, *, integrated: bool = False, limit_bytes: int = 1 << 30, captures: bool = True) -> None:
        self.gpu = a_gpu(integrated=integrated, memory_bytes=limit_bytes)
        self.captures, self.capture_fails = captures, False
        self.allocations = self.used_bytes = self.open_streams = 0
        self._lock = threading.Lock()

    def allocate(self, size_bytes: int) -> Buffer:
        return HostBuffer(self, size_bytes, has_host=True)

    def allocate_device(self, size_bytes: int) -> Buffer:
        return HostBuffer(self, size_bytes, has_host=False)

    def free_bytes(self) -> int:
        return self.gpu.memory_bytes - self.used_bytes

    def new_stream(self) -> Stream:
        return HostStream(self)

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph | None:
        assert isinstance(stream, HostStream)
        if not self.captures:
            return None
        recorded = stream.record_work(enqueue)
        if self.capture_fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        return HostGraph(recorded)

    def close(self) -> None:
        assert not self.open_streams, "a stream is still open"

    def is_empty(self, timeout_s: float = 30.0) -> bool:
        """Whether everything was given back, or is within a while: what a run was given up on uses comes later."""
        deadline = time.monotonic() + timeout_s
        while self.used_bytes or self.open_streams:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def take(self, size_bytes: int) -> None:
        with self._lock:
            if self.used_bytes + size_bytes > self.gpu.memory_bytes:
                raise GpuMemoryExhausted(f"{size_bytes} bytes asked for, {self.free_bytes()} left on {self.gpu.name}")
            self.used_bytes += size_bytes
            self.allocations += 1

    def give(self, size_bytes: int) -> None:
        with self._lock:
            self.used_bytes -= size_bytes

    def count_stream(self, change: int) -> None:
        with self._lock:
            self.open_streams += change


class HostBuffer:
    """See :class:`edge_agent.runtime.gpu.device_memory.Buffer`."""

    def __init__(self, memory: HostMemory, size_bytes: int, *, has_host: bool) -> None:
        memory.take(size_bytes)
        self._memory, self.size_bytes = memory, size_bytes
        # Not zero: what nobody wrote is no answer.
        self.device = np.full(max(size_bytes, 1), 0xA5, dtype=np.uint8)
        self.host: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        if has_host:
            shared = memory.gpu.integrated
            self.host = self.device[:size_bytes] if shared else np.full(size_bytes, 0x5A, dtype=np.uint8)
        self.device_address = int(self.device.ctypes.data)
        self._open = True
        _freed.discard(self.device_address)
        _live[self.device_address] = self.device

    def close(self) -> None:
        if self._open:
            self._open = False
            self._memory.give(self.size_bytes)
            _freed.add(self.device_address)
            del _live[self.device_address]


class HostStream:
    """A thread that does in order what it is given."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory, self.handle = memory, next(_handles)
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._recording: list[Callable[[], None]] | None = None
        self.error: BaseException | None = None
        self._open = True
        _streams[self.handle] = self
        memory.count_stream(+1)
        threading.Thread(target=self._run, name=f"gpu-stream-{self.handle:#x}", daemon=True).start()

    def enqueue(self, work: Callable[[], None]) -> None:
        """Do it later, or write it down while a graph is recorded."""
        if self._recording is not None:
            self._recording.append(work)
        else:
            self._work.put(work)

    def record_work(self, enqueue: Callable[[], None]) -> list[Callable[[], None]]:
        """What ``enqueue`` enqueues, without doing it."""
        recorded = self._recording = []
        try:
            enqueue()
        finally:
            self._recording = None
        return recorded

    def upload(self, buffer: Buffer, size_bytes: int) -> None:
        self._copy(buffer, size_bytes, to_device=True)

    def download(self, buffer: Buffer, size_bytes: int) -> None:
        self._copy(buffer, size_bytes, to_device=False)

    def record(self, *, timed: bool = False) -> Event:
        event = HostEvent(self, timed=timed)
        self.enqueue(event.pass_by)
        return event

    def wait(self) -> None:
        self.record().wait()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._work.put(None)
            self._memory.count_stream(-1)

    def _copy(self, buffer: Buffer, size_bytes: int, *, to_device: bool) -> None:
        assert isinstance(buffer, HostBuffer)
        assert size_bytes <= buffer.size_bytes, "a copy beyond the buffer's end"
        if self._memory.gpu.integrated:
            return
        sides = (buffer.device, buffer.host) if to_device else (buffer.host, buffer.device)
        self.enqueue(lambda: np.copyto(sides[0][:size_bytes], sides[1][:size_bytes]))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - told to whoever waits, as a GPU does
                self.error = error


class HostEvent:
    """See :class:`edge_agent.runtime.gpu.device_memory.Event`."""

    def __init__(self, stream: HostStream, *, timed: bool) -> None:
        self._stream, self.timed = stream, timed
        self._passed = threading.Event()
        self._error: BaseException | None = None
        self.at_ns = 0

    def pass_by(self) -> None:
        self.at_ns = time.perf_counter_ns()
        self._error, self._stream.error = self._stream.error, None
        self._passed.set()

    def is_done(self) -> bool:
        return self._passed.is_set()

    def wait(self) -> None:
        self._passed.wait()
        if self._error is not None:
            raise RuntimeError(str(self._error)) from self._error

    def elapsed_us(self, since: Event) -> float:
        assert isinstance(since, HostEvent)
        assert self.timed
        assert since.timed
        return (self.at_ns - since.at_ns) / 1e3


class HostGraph:
    """Work written down."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        self._work: list[Callable[[], None]] | None = work

    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, HostStream)
        assert self._work is not None, "the graph was closed"
        for work in self._work:
            stream.enqueue(work)

    def close(self) -> None:
        self._work = None
