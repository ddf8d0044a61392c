"""What models may take of this machine: memory, and processors. What does not fit is refused before it is loaded."""

from __future__ import annotations

import logging
import math
import threading
from typing import NamedTuple

from edge_agent.contract.errors import BudgetExceeded
from edge_agent.runtime.loaded import LoadedModel, weights_bytes
from edge_agent.runtime.package import Package

_MIB = 1 << 20
# Of a CNN with 26 MB of weights 36 MB were resident after its first batches: weights, their packed copies, activations.
MEMORY_PER_WEIGHT = 1.5
# Session, signature check, profile; a model without weights to speak of takes this much.
SMALLEST_BYTES = 1 * _MIB
# Beyond this multiple of the estimate something else has grown while the model was loaded.
_CREDIBLE = 4

_log = logging.getLogger(__name__)


def estimate_bytes(package: Package, variant: str = "fp32") -> int:
    """Memory that a model will take: what its manifest says, else a multiple of its weights."""
    said = package.manifest.resources.memory_bytes
    return said or SMALLEST_BYTES + round(weights_bytes(package, variant) * MEMORY_PER_WEIGHT)


class MemoryBudget:
    """Memory that all loaded models together may take; safe from any thread.

    Args:
        limit_bytes: 0 sets no limit.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self._holding: dict[LoadedModel, int] = {}
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What loaded models take, those included that close when their last request ends."""
        with self._lock:
            return sum(self._holding.values())

    def models(self) -> list[LoadedModel]:
        """What takes it: the models that serve, that are about to, and that close when their last request ends."""
        with self._lock:
            return list(self._holding)

    def check(self, package: Package, *, replaces: LoadedModel | None = None, variant: str = "fp32") -> None:
        """Refuse a package that will not fit.

        Args:
            replaces: The model whose place it will take; both are there until the new one has passed its tests.
        Raises:
            BudgetExceeded: It says what is needed, who takes how much, the limit, and what to do.
        """
        self._check(package, estimate_bytes(package, variant), "needs about", replaces)

    def hold(self, loaded: LoadedModel, *, replaces: LoadedModel | None = None, refuse: bool = True) -> None:
        """Count what a model was measured to take, until it is closed.

        Args:
            replaces: See :meth:`check`.
            refuse: Whether too much is an error.
        Raises:
            BudgetExceeded: It takes more than was estimated, and more than there is; the caller closes it.
        """
        estimate = estimate_bytes(loaded.package)
        loaded.memory_bytes = min(loaded.memory_bytes, max(_CREDIBLE * estimate, weights_bytes(loaded.package)))
        if refuse:
            self._check(loaded.package, loaded.memory_bytes, "was loaded and found to take", replaces)
        with self._lock:
            self._holding[loaded] = loaded.memory_bytes
        loaded.when_closed(lambda: self._release(loaded))

    def _check(self, package: Package, need_bytes: int, needs: str, replaces: LoadedModel | None) -> None:
        with self._lock:
            holding = dict(self._holding)
        used = sum(holding.values())
        if not self.limit_bytes or used + need_bytes <= self.limit_bytes:
            return
        takers = ", ".join(
            f"{each.name} {each.version} ({_mib(size)})"
            for each, size in sorted(holding.items(), key=lambda item: -item[1])
        )
        manifest = package.manifest
        text = (
            f"model '{manifest.name}' version '{manifest.version}' {needs} {_mib(need_bytes)} of memory; models may "
            f"take {_mib(self.limit_bytes)} (runtime.memory_mib) and {_mib(used)} are taken: {takers or 'by none'}; "
        )
        freed = holding.get(replaces, 0) if replaces is not None else 0
        if replaces is not None and used - freed + need_bytes <= self.limit_bytes:
            raise BudgetExceeded(
                f"{text}it would fit without version '{replaces.version}', which must stay until the new one has "
                "passed its tests: raise runtime.memory_mib, or unload the old one first and accept the gap"
            )
        if need_bytes > self.limit_bytes:  # it would not fit into an empty machine either
            error = BudgetExceeded(f"{text}raise runtime.memory_mib to {math.ceil(need_bytes / _MIB)} at least")
            error.waiting_helps = False
            raise error
        raise BudgetExceeded(f"{text}unload another model, or raise runtime.memory_mib")

    def _release(self, loaded: LoadedModel) -> None:
        with self._lock:
            self._holding.pop(loaded, None)


class ThreadBudget(NamedTuple):
    """Threads that compute.

    Args:
        total: Threads that all models together may keep busy.
        per_model: Threads within one inference.
    """

    total: int
    per_model: int

    @property
    def at_once(self) -> int:
        """Inferences that may run at the same time."""
        return max(1, self.total // self.per_model)


def thread_budget(total: int, per_model: int, *, available: int) -> ThreadBudget:
    """The threads to use.

    Args:
        total: The setting; 0 takes as many as there are processors for this process.
        per_model: The setting; one inference takes no more than all may.
        available: Processors that this process may keep busy.
    """
    threads = total or available
    if threads > available:
        _log.warning("runtime.threads is %d, but this process has %d processors: they will wait", threads, available)
    if per_model > threads:
        _log.warning("runtime.threads_per_model is %d, all models together may take %d: it is that", per_model, threads)
    return ThreadBudget(threads, min(per_model, threads))


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB"
