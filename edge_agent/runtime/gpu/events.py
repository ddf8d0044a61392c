"""Events of the driver, which any thread may wait for.

Both providers use these and not their own: pycuda's events can be freed only on the thread that made them, and leak
elsewhere; earlier releases of cuda-python keep Python's lock while they wait. An event that nobody holds any more is
used again, so that a request creates none.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from typing import Any

from edge_agent.runtime.gpu.device_memory import Event
from edge_agent.runtime.gpu.driver import NOT_READY, SUCCESS, CudaDriver

# The one who waits sleeps instead of asking all the time: processors are few where a GPU is small.
_BLOCKING_SYNC = 1
_DISABLE_TIMING = 2


class DriverEvent:
    """One recorded event; see :class:`edge_agent.runtime.gpu.device_memory.Event`."""

    __slots__ = ("_pool", "handle", "is_timed")

    def __init__(self, pool: EventPool, handle: int, *, is_timed: bool) -> None:
        self._pool = pool
        self.handle = handle
        self.is_timed = is_timed

    def is_done(self) -> bool:
        """Whether the GPU has passed it."""
        return self._pool.is_done(self.handle)

    def wait(self) -> None:
        """Sleep until it has; other threads of Python run meanwhile."""
        self._pool.wait(self.handle)

    def elapsed_us(self, since: Event) -> float:
        """Microseconds since an earlier timed event of the same GPU."""
        if not (isinstance(since, DriverEvent) and since.is_timed and self.is_timed):
            raise ValueError("both events must have been recorded with timed=True, by the same provider")
        return self._pool.elapsed_us(since.handle, self.handle)

    def __del__(self) -> None:
        # On whichever thread: it only goes back into the pool.
        self._pool.take_back(self)


class EventPool:
    """Makes and remembers events.

    Made and closed on the owner's thread, while the GPU's context is current there.
    """

    def __init__(self, driver: CudaDriver) -> None:
        handle, flags, handle_pointer = ctypes.c_void_p, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p)
        self._driver = driver
        self._create = driver.function("cuEventCreate", handle_pointer, flags)
        self._destroy = driver.function("cuEventDestroy_v2", handle)
        self._record = driver.function("cuEventRecord", handle, handle)
        self._query = driver.function("cuEventQuery", handle)
        self._synchronize = driver.function("cuEventSynchronize", handle)
        self._elapsed = driver.function("cuEventElapsedTime", ctypes.POINTER(ctypes.c_float), handle, handle)
        self._push = driver.function("cuCtxPushCurrent_v2", handle)
        self._pop = driver.function("cuCtxPopCurrent_v2", handle_pointer)
        self._owner = threading.get_ident()
        context = ctypes.c_void_p()
        driver.call("cuCtxGetCurrent", ctypes.pointer(context))
        self._context = context.value
        self._all: list[int] = []
        self._plain: deque[int] = deque()
        self._timed: deque[int] = deque()

    def record(self, stream: int, *, timed: bool = False) -> DriverEvent:
        """Mark what has been enqueued on a stream so far; on a thread to which the GPU's context is current.

        Args:
            stream: Its handle.
        """
        try:
            handle = (self._timed if timed else self._plain).popleft()
        except IndexError:
            handle = self._make(timed=timed)
        event = DriverEvent(self, handle, is_timed=timed)
        self._driver.check("cuEventRecord", self._record(handle, stream))
        return event

    def is_done(self, handle: int) -> bool:
        """Whether the GPU has passed it."""
        code = self._ask(self._query, handle)
        if code == NOT_READY:
            return False
        self._driver.check("cuEventQuery", code)
        return True

    def wait(self, handle: int) -> None:
        """Sleep until the GPU has passed it."""
        self._driver.check("cuEventSynchronize", self._ask(self._synchronize, handle))

    def elapsed_us(self, start: int, end: int) -> float:
        """Microseconds between two."""
        milliseconds = ctypes.c_float()
        self._driver.check("cuEventElapsedTime", self._ask(self._elapsed, ctypes.byref(milliseconds), start, end))
        return milliseconds.value * 1000

    def take_back(self, event: DriverEvent) -> None:
        """Use it again for another; from any thread."""
        (self._timed if event.is_timed else self._plain).append(event.handle)

    def close(self) -> None:
        """Give all of them back; nobody waits for one any more."""
        while self._all:
            self._destroy(self._all.pop())
        self._context = None

    def _make(self, *, timed: bool) -> int:
        handle = ctypes.c_void_p()
        flags = _BLOCKING_SYNC if timed else _BLOCKING_SYNC | _DISABLE_TIMING
        self._driver.check("cuEventCreate", self._create(ctypes.byref(handle), flags))
        if handle.value is None:
            raise RuntimeError("cuEventCreate gave no event")
        self._all.append(handle.value)
        return handle.value

    def _ask(self, function: Any, *arguments: Any) -> int:
        """Call with the GPU's context current, and leave the thread as it was: it may use another GPU's."""
        if self._context is None:
            raise RuntimeError("the GPU has been let go of: its events cannot be asked any more")
        if threading.get_ident() == self._owner:
            return int(function(*arguments))
        code = int(self._push(self._context))
        if code != SUCCESS:
            return code
        try:
            return int(function(*arguments))
        finally:
            self._pop(None)
