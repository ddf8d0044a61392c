"""How far a build is, from the phases that TensorRT tells, one within the other."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

from edge_agent.runtime.tensorrt.bindings import Bindings


@dataclasses.dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0
    # Inner phases that have ended since the last step.
    ended: int = 0


class Phases:
    """The phases under way. A phase may begin several times; TensorRT's threads are kept apart by the caller."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}  # by name, in the order in which they began
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, within one of its parent's."""
        self._phases.pop(name, None)
        self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, number: int) -> None:
        """A phase has done this step, counted from 0."""
        phase = self._phases.get(name)
        if phase is not None:
            phase.done, phase.ended = max(phase.done, min(number + 1, phase.steps)), 0

    def finish(self, name: str) -> None:
        """A phase has ended, whatever steps it left out."""
        phase = self._phases.pop(name, None)
        if phase is None:
            return
        if phase.parent is None:
            self._share = 1.0
        elif phase.parent in self._phases:
            self._phases[phase.parent].ended += 1

    @property
    def share(self) -> float:
        """How much is done, 0..1; never less than before. Steps count alike, though they do not last alike."""
        roots = [name for name, phase in self._phases.items() if phase.parent is None]
        if roots:
            self._share = max(self._share, min(self._done(roots[0]), 1.0))
        return self._share

    @property
    def current(self) -> str:
        """The phase that began last and has not ended: the innermost one."""
        return next(reversed(self._phases), "")

    def _done(self, name: str) -> float:
        phase = self._phases[name]
        within = sum(self._done(inner) for inner, each in self._phases.items() if each.parent == name)
        # Nobody says how many phases a step has: each takes a third of what its forerunners left.
        left = (2 / 3) ** phase.ended
        return min(phase.done + 1.0 - left + min(within, 1.0) * left / 3, phase.steps) / phase.steps


def new_monitor(bindings: Bindings, tell: Callable[[str, float], None], stop: threading.Event) -> Any:
    """An ``IProgressMonitor`` that tells phase and share, and has TensorRT give up once ``stop`` is set.

    Args:
        tell: Called from TensorRT's threads, one at a time, when a whole percent or another phase is reached.
    """
    trt = bindings.trt
    phases, lock = Phases(), threading.Lock()
    told: list[tuple[str, int]] = [("", -1)]

    def report() -> None:
        now = phases.current, int(phases.share * 100)
        if now != told[0] and now[0]:
            told[0] = now
            tell(phases.current, phases.share)

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # pybind11 asks for the very class, not for super()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                phases.start(phase_name, parent_phase or None, num_steps)
                report()

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                phases.step(phase_name, step)
                report()
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                phases.finish(phase_name)

    return _Monitor()
