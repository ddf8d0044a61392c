"""What this process holds of the machine's memory, and how it gives back what it no longer needs."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable

import psutil

from edge_agent.runtime.code_pages import CodeWatch

_M_ARENA_MAX = -8  # as glibc's malloc.h numbers it; other C libraries ignore what they do not know
_NO_MEMORY = ("std::bad_alloc", "Failed to allocate memory")
_TIDY_EVERY_S = 10.0
_FIRST_AFTER_S = 2.0  # what starting took is over then


def resident_bytes() -> int:
    """Memory of this process that lies in RAM (RSS), pages of mapped files included."""
    return int(psutil.Process().memory_info().rss)


def is_short_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory; ONNX Runtime says so in the text of its errors alone."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY)


def give_back() -> None:
    """Hand freed memory back to the system, where the C library can (glibc); takes 1-4 ms after a large model.

    Without it the C library keeps what a model's load and end have freed: of a CNN with 26 MB of weights that was
    closed again, 98 MB stayed.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


class Tidying:
    """A thread that gives memory back now and then: what bursts of requests have freed, and code no longer needed.

    After a load from 16 connections it gave back 5 of 93 MB with a CNN, and 23 of 108 MB with inputs of 600 KB; of all
    that were timed the longest took 1.4 ms, and 0.1 ms those that found nothing. Thresholds beyond which the C library
    gives memory back by itself are no way to the same: with them a request met 9 to 350 page faults.
    """

    def __init__(self, *, every_s: float = _TIDY_EVERY_S) -> None:
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, where it was started."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        code = CodeWatch()
        pause_s = min(_FIRST_AFTER_S, self._every_s)
        while not self._stopping.wait(pause_s):
            give_back()
            code.look()
            pause_s = self._every_s


def share_heap() -> None:
    """Let all threads of this program share one heap, where the C library (glibc) would give each its own.

    Each heap keeps what was freed in it for its own threads: with one, a CNN's agent held 95 MB after much JSON, and
    100 with two or more. What it costs was not to be told from noise with two threads that ran a small model at once
    (7.4 to 9.4 us of processor time a run, 7.2 to 8.0 with a heap each, on a busy machine); more threads were not
    measured. To be called by a program, before it has threads; MALLOC_ARENA_MAX or GLIBC_TUNABLES in the environment
    prevail.
    """
    if os.name == "posix" and "MALLOC_ARENA_MAX" not in os.environ and "GLIBC_TUNABLES" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 1)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """``malloc_trim`` (GNU extension), or None where the C library has none, as musl."""
    if os.name != "posix":
        return None
    function: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return function
