"""The one thread that owns the GPU: it alone opens it, allocates, enqueues and lets go.

A CUDA context is current to a thread, and pycuda's objects can be freed only by the thread that made them. So every
call goes to that thread. Waiting for the GPU does not: it is done on the thread of the one who waits, and many
inferences may be in flight while the owner enqueues the next.

Two owners may share a GPU, of which one loads and the other runs: what one has allocated both may use, and only that
one closes.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from edge_agent.contract.errors import AcceleratorUnavailable
from edge_agent.runtime.gpu.device_memory import DeviceMemory, Event

T = TypeVar("T")

# A call that hangs in the driver must not keep the program from ending.
CLOSE_TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pending(Generic[T]):
    """Work that was enqueued and is not done.

    Args:
        event: Recorded behind the work.
        finish: Called once when the event has passed, on the thread of the one who waits; it returns the answer.
    """

    event: Event
    finish: Callable[[], T]


class GpuOwner:
    """Runs calls on the GPU's thread, one after the other; safe from any thread.

    The GPU is opened by the first call, and by no other: if that fails, every call fails with the same reason.

    Args:
        open: Opens the GPU, on the owner's thread.
    """

    def __init__(self, open: Callable[[], DeviceMemory]) -> None:  # noqa: A002 - the verb that says it
        self._open = open
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._memory: DeviceMemory | None = None
        self._running: _Task | None = None
        self._closed = False

    def call(self, fn: Callable[[DeviceMemory], T]) -> T:
        """Run ``fn`` on the owner's thread and wait for it; on that thread itself, at once.

        Raises:
            AcceleratorUnavailable: The GPU could not be opened, or the owner is closed.
            Exception: Whatever ``fn`` raises.
        """
        if self._memory is not None and threading.current_thread() is self._thread:
            return fn(self._memory)
        task = _Task(fn)
        self._put(task)
        return cast("T", task.wait())

    def submit(self, start: Callable[[DeviceMemory], Pending[T]]) -> T:
        """Enqueue work on the owner's thread, then wait for the GPU on this one.

        ``finish`` is not called where ``start`` or the GPU has failed.

        Raises:
            AcceleratorUnavailable: The GPU could not be opened, or the owner is closed.
            RuntimeError: The work failed on the GPU.
            Exception: Whatever ``start`` or ``finish`` raises.
        """
        pending = self.call(start)
        pending.event.wait()
        return pending.finish()

    def close(self) -> None:
        """Let go of the GPU once the calls before this one are done; again is no harm. Not from the owner's thread."""
        with self._lock:
            thread = None if self._closed else self._thread
            self._closed = True
            if thread is not None:
                self._tasks.put(None)
        atexit.unregister(self.close)
        if thread is not None:
            thread.join(CLOSE_TIMEOUT_S)
            if thread.is_alive():
                _log.error("a call on the GPU's thread still runs after %.0f s: it is left alone", CLOSE_TIMEOUT_S)
                self._give_up()

    def _put(self, task: _Task) -> None:
        with self._lock:
            if self._closed:
                raise AcceleratorUnavailable("the GPU has been let go of: the agent stops, or its runtime was changed")
            if self._thread is None:
                # Ended by atexit rather than by the interpreter: pycuda aborts the process if a thread ends while its
                # context is current.
                atexit.register(self.close)
                self._thread = threading.Thread(target=self._run, name="gpu-owner", daemon=True)
                self._thread.start()
            self._tasks.put(task)

    def _run(self) -> None:
        try:
            memory = self._memory = self._open()
        except AcceleratorUnavailable as error:
            self._refuse(str(error))
            return
        except Exception as error:  # noqa: BLE001 - every caller is told
            _log.exception("the GPU could not be opened")
            self._refuse(f"the GPU could not be opened: {type(error).__name__}: {error}")
            return
        while (task := self._tasks.get()) is not None:
            self._running = task
            task.run(memory)
            self._running = None
            del task  # what it holds, such as buffers, must not live until the next one comes
        self._memory = None
        try:
            memory.close()
        except Exception:  # noqa: BLE001 - a driver that has failed before fails here as well
            _log.exception("the GPU was not let go of in order; it is when this process ends")

    def _give_up(self) -> None:
        """Nobody waits for a thread that hangs: the interpreter would wait for them when it ends."""
        waiting = [self._running]
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._tasks.get_nowait())
        for task in waiting:
            if task is not None:
                task.fail(AcceleratorUnavailable("the GPU's thread hangs in a call, and was given up on"))
        self._tasks.put(None)

    def _refuse(self, reason: str) -> None:
        while (task := self._tasks.get()) is not None:
            task.fail(AcceleratorUnavailable(reason))


class _Task:
    """One call. A lock that is released once it is done is the cheapest thing to wait for: 1 us less than an Event."""

    __slots__ = ("_done", "_error", "_fn", "_value")

    def __init__(self, fn: Callable[[DeviceMemory], Any]) -> None:
        self._fn = fn
        self._value: Any = None
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def run(self, memory: DeviceMemory) -> None:
        try:
            self._value = self._fn(memory)
        except BaseException as error:  # noqa: BLE001 - the caller gets it; nothing may end the owner
            self._error = error
        finally:
            self._end()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(RuntimeError):  # ended before: it was given up on
            self._done.release()

    def wait(self) -> Any:
        self._done.acquire()
        error = self._error
        if error is None:
            return self._value
        try:
            raise error
        finally:
            # Its traceback holds this frame: without this the two would keep each other, and GPU buffers, alive.
            self._error = error = None
