"""What engines may take of the GPU's memory. What does not fit is refused before it is loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

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

    def takes(self, size_bytes: int) -> None:
        """Count it for what it was found to take.

        Raises:
            BudgetExceeded: That is more than is left of the limit; the caller closes it, and releases this.
        """
        self._budget.recount(self, size_bytes)

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
            return _sum(self._holds)

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
            self._check_limit(self._holds, f"'{holder}' needs", size_bytes)
            if size_bytes > free_bytes:
                raise BudgetExceeded(
                    f"'{holder}' needs {_mib(size_bytes)} of GPU memory, of which {_mib(free_bytes)} are free; our "
                    f"engines take {_mib(_sum(self._holds))}: {_takers(self._holds)}; unload another model, or end "
                    "another program that uses the GPU"
                )
            hold = GpuHold(self, holder, size_bytes)
            self._holds.append(hold)
            return hold

    def recount(self, hold: GpuHold, size_bytes: int) -> None:
        """Count an engine for what it was found to take; see :meth:`GpuHold.takes`."""
        with self._lock:
            others = [each for each in self._holds if each is not hold]
            self._check_limit(others, f"'{hold.holder}' was loaded and found to take", size_bytes)
            hold.size_bytes = size_bytes

    def release(self, hold: GpuHold) -> None:
        """Count an engine no longer; again is no harm."""
        with self._lock:
            if hold in self._holds:
                self._holds.remove(hold)

    def _check_limit(self, others: Sequence[GpuHold], says: str, size_bytes: int) -> None:
        used = _sum(others)
        if self.limit_bytes and used + size_bytes > self.limit_bytes:
            raise BudgetExceeded(
                f"{says} {_mib(size_bytes)} of GPU memory; engines may take {_mib(self.limit_bytes)} "
                f"(accelerator.gpu_memory_mib) and {_mib(used)} are taken: {_takers(others)}; unload another model, "
                "or raise accelerator.gpu_memory_mib"
            )


def _sum(holds: Sequence[GpuHold]) -> int:
    return sum(hold.size_bytes for hold in holds)


def _takers(holds: Sequence[GpuHold]) -> str:
    largest_first = sorted(holds, key=lambda hold: -hold.size_bytes)
    return ", ".join(f"{hold.holder} ({_mib(hold.size_bytes)})" for hold in largest_first) or "by none"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB"
