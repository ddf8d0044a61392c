"""CUDA graphs: the copies and kernels of a shape recorded once, then started with a single call.

Each graph has an execution context of its own: what a context does for another shape later would change what the graph
reads. A shape runs once without a graph, once on its own context (TensorRT finishes its work for a shape when that
first runs), and is recorded the third time.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from edge_agent.contract.errors import EngineBuildFailed, ModelFailed
from edge_agent.runtime.gpu.device_memory import DeviceMemory, Graph, Stream
from edge_agent.runtime.tensorrt.engine import Engine

if TYPE_CHECKING:
    from edge_agent.runtime.tensorrt.execution import Lane, Shaped

# Each holds a context and a graph, megabytes for a large model.
_GRAPHS_KEPT = 4

_log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Recorded:
    """A shape's own context, and its graph once there is one."""

    context: Any
    graph: Graph | None = None


class ShapeGraphs:
    """The graphs of one lane, of the shapes used last.

    The first that cannot be recorded ends it: what keeps one shape from it (control flow, a provider that cannot) keeps
    all. Runs go on without.

    Attributes:
        captured: Graphs recorded so far.
        refused: 1 once one could not be.
    """

    def __init__(self, lane: Lane, engine: Engine) -> None:
        self._lane, self._engine = lane, engine
        self._recorded: collections.OrderedDict[Shaped, _Recorded] = collections.OrderedDict()
        self.captured = self.refused = 0

    def enqueue(self, memory: DeviceMemory, stream: Stream, shaped: Shaped) -> bool:
        """Run a shape by its graph, or on the way to one; False where it is to run as usual.

        Raises:
            ModelFailed: TensorRT refuses the run.
        """
        if self.refused or not shaped.has_run:
            return False
        recorded = self._recorded.get(shaped)
        if recorded is None:
            return self._run_first(shaped)
        self._recorded.move_to_end(shaped)
        if recorded.graph is None:
            recorded.graph = self._capture(memory, stream, shaped, recorded.context)
            if recorded.graph is None:
                return False
            self.captured += 1
        recorded.graph.launch(stream)
        return True

    def close(self) -> None:
        """Give them back; nothing of them runs."""
        while self._recorded:
            self._forget_oldest()

    def _run_first(self, shaped: Shaped) -> bool:
        lane = self._lane
        try:
            context = lane.new_context(shaped.profile)
            lane.set_addresses(context)
            lane.set_shapes(context, shaped.shapes)
        except (EngineBuildFailed, ModelFailed) as error:
            return self._refuse(str(error))
        # Its own lane runs one request at a time, and this is the next: nothing of the oldest is under way.
        if len(self._recorded) >= _GRAPHS_KEPT:
            self._forget_oldest()
        self._recorded[shaped] = _Recorded(context)
        lane.run(context, shaped)
        return True

    def _capture(self, memory: DeviceMemory, stream: Stream, shaped: Shaped, context: Any) -> Graph | None:
        if not self._engine.bindings.is_capturable(context, stream.handle):
            self._refuse("TensorRT says that the run cannot be captured")
            return None
        try:
            graph = memory.capture(stream, lambda: self._lane.run(context, shaped))
        except (RuntimeError, ModelFailed) as error:
            self._refuse(str(error))
            return None
        if graph is None:
            self._refuse("the provider of GPU memory cannot, or the run cannot be captured")
        return graph

    def _refuse(self, reason: str) -> bool:
        self.refused = 1
        _log.warning("no CUDA graphs for %s, which runs without: %s", self._engine.log.name, reason)
        return False

    def _forget_oldest(self) -> None:
        _, recorded = self._recorded.popitem(last=False)
        if recorded.graph is not None:
            recorded.graph.close()
