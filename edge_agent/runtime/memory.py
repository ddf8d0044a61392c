"""What this process holds of the machine's memory, and how it gives back what it no longer needs."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

import psutil


def resident_bytes() -> int:
    """Memory of this process that lies in RAM (RSS), pages of mapped files included."""
    return int(psutil.Process().memory_info().rss)


def give_back() -> None:
    """Hand freed memory back to the system, where the C library can (glibc); takes 1-4 ms after a large model.

    Without it the C library keeps what a model's load and end have freed: of a CNN with 26 MB of weights that was
    closed again, 98 MB stayed.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """``malloc_trim`` (GNU extension), or None where the C library has none, as musl."""
    if os.name != "posix":
        return None
    function: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return function
