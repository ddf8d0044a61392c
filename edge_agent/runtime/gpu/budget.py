"""What engines may take of the GPU's memory. What does not fit is refused before it is loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edge_agent.contract.errors import BudgetExceeded

_MIB = 1 << 20


class GpuHold:
    """What one engine takes of the budget, until it is released.

    Args:
        holder: Model and version, as a person reads it: ``digits 3``.
    """

    def __init__(self, budget: GpuBudget, holder: str, size_bytes: int) -> None:
        self.holder = holder
        self.size_bytes = size_bytes
        self._budget = budget

    def release(self) -> None:
        """It takes nothing any more; again is no harm."""
        self._budget.release(self)


class GpuBudget:
    """GPU memory that all engines together may take; safe from any thread.

    Args:
        limit_bytes: 0 sets no limit but what the GPU has.
        free: What is left on the GPU now, for all programs.
    """

    def __init__(self, limit_bytes: int, free: Callable[[], int]) -> None:
        self.limit_bytes = limit_bytes
        self._free = free
        self._holds: list[GpuHold] = []
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What engines take now."""
        with self._lock:
            return sum(hold.size_bytes for hold in self._holds)

    def hold(self, holder: str, size_bytes: int) -> GpuHold:
        """Count what an engine will take, before it takes it.

        One holder may hold twice: a new engine is tested beside the old one.

        Args:
            holder: Model and version, as a person reads it.
            size_bytes: Its weights, scratch memory and buffers on the GPU.
        Raises:
            BudgetExceeded: It would not fit; it says what is needed, who takes how much, and what to do.
        """
        # Asked outside the lock: it waits for the GPU's own thread.
        free_bytes = self._free()
        with self._lock:
            used = sum(hold.size_bytes for hold in self._holds)
            if self.limit_bytes and used + size_bytes > self.limit_bytes:
                raise BudgetExceeded(
                    f"'{holder}' needs {_mib(size_bytes)} of GPU memory; engines may take {_mib(self.limit_bytes)} "
                    f"(accelerator.gpu_memory_mib) and {_mib(used)} are taken: {self._takers()}; unload another model, "
                    "or raise accelerator.gpu_memory_mib"
                )
            if size_bytes > free_bytes:
                raise BudgetExceeded(
                    f"'{holder}' needs {_mib(size_bytes)} of GPU memory, of which {_mib(free_bytes)} are free; our "
                    f"engines take {_mib(used)}: {self._takers()}; unload another model, or end another program that "
                    "uses the GPU"
                )
            hold = GpuHold(self, holder, size_bytes)
            self._holds.append(hold)
            return hold

    def release(self, hold: GpuHold) -> None:
        """Count an engine no longer; again is no harm."""
        with self._lock:
            if hold in self._holds:
                self._holds.remove(hold)

    def _takers(self) -> str:
        largest_first = sorted(self._holds, key=lambda hold: -hold.size_bytes)
        return ", ".join(f"{hold.holder} ({_mib(hold.size_bytes)})" for hold in largest_first) or "by none"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB"
