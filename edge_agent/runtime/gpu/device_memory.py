"""What a provider of GPU memory offers: buffers, streams, events, and graphs where it can.

Two providers implement it: pycuda, and cuda-python where CUDA graphs are asked for. All calls but those of
:class:`Event` are made on the one thread that owns the GPU (:class:`edge_agent.runtime.gpu.owner.GpuOwner`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU, as the driver describes it.

    Args:
        index: Its number for the driver.
        compute_capability: Major and minor: ``(8, 7)`` is Orin.
        integrated: Whether it shares the processors' memory, as on a Jetson.
        memory_bytes: Its memory, or the memory that it shares.
        driver_version: CUDA version of the driver: ``(12, 6)``.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    integrated: bool
    memory_bytes: int
    driver_version: tuple[int, int]


class Buffer(Protocol):
    """One tensor's room, on the host and on the GPU; on an integrated GPU both are the same memory.

    ``host`` is page-locked (discrete) or mapped (integrated): uint8[size_bytes]. It is not to be used after ``close``.
    """

    host: NDArray[np.uint8]
    device_address: int
    size_bytes: int

    def close(self) -> None:
        """Give both back. Again is no harm."""


class Event(Protocol):
    """A point in a stream. May be asked from any thread, which must not be taken for the owner: it changes nothing."""

    def is_done(self) -> bool:
        """Whether the GPU has passed it."""

    def wait(self) -> None:
        """Sleep until it has, without holding Python's lock.

        Raises:
            RuntimeError: What was enqueued before it failed on the GPU.
        """

    def elapsed_us(self, since: Event) -> float:
        """Microseconds of the GPU's own clock since an earlier event; both are done, and were made with ``timed``."""


class Graph(Protocol):
    """Work recorded once, which starts with a single call."""

    def launch(self, stream: Stream) -> None:
        """Enqueue it all."""

    def close(self) -> None:
        """Give its memory back."""


class Stream(Protocol):
    """Work that the GPU does in order. ``handle`` is the ``cudaStream_t`` as an integer."""

    handle: int

    def upload(self, buffer: Buffer, size_bytes: int) -> None:
        """Enqueue the copy of the first bytes to the GPU; nothing to do where the memory is shared."""

    def download(self, buffer: Buffer, size_bytes: int) -> None:
        """Enqueue the copy back."""

    def record(self, *, timed: bool = False) -> Event:
        """Mark what has been enqueued so far."""

    def wait(self) -> None:
        """Sleep until everything enqueued is done."""

    def close(self) -> None:
        """Give it back."""


class DeviceMemory(Protocol):
    """One GPU's memory."""

    gpu: Gpu

    def allocate(self, size_bytes: int) -> Buffer:
        """Room for a tensor on both sides.

        Raises:
            GpuMemoryExhausted: There is not so much left; it says how much there is.
        """

    def allocate_device(self, size_bytes: int) -> Buffer:
        """Room on the GPU alone, for a runtime's scratch memory: ``host`` is empty.

        Raises:
            GpuMemoryExhausted: As above.
        """

    def free_bytes(self) -> int:
        """What is left of the GPU's memory, for all programs."""

    def new_stream(self) -> Stream:
        """A stream of its own, which does not wait for the default one."""

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph | None:
        """Record what ``enqueue`` enqueues, without running it; None where provider or work cannot be captured."""

    def close(self) -> None:
        """Let go of the GPU; buffers and streams are closed before."""
