"""Requests that meet in one turn of the event loop are run as one: a check, a run, a note for the monitor.

What a small model costs is not its run but what is done around it, and that hardly grows with the rows. Only models
whose answers are the same to the bit in any company do so (see :func:`edge_agent.runtime.batchable.rows_together`), and
only requests of one row with nothing wrong: where anything is, each of them is answered by itself.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from time import perf_counter_ns
from typing import Any, Protocol, TypeVar, runtime_checkable

from numpy.typing import NDArray

from edge_agent.contract.errors import CallerError, ShoalError
from edge_agent.runtime.asked_inputs import AskedInputs
from edge_agent.runtime.slots import LoadedModel
from edge_agent.runtime.statistics import latency_buckets
from edge_agent.serving.request import InferenceRequest, SharedRun, check_outputs

R = TypeVar("R")
Tensors = Mapping[str, NDArray[Any]]
log = logging.getLogger(__name__)


@runtime_checkable
class ManyObserver(Protocol):
    """An observer that takes the requests of one run together."""

    def observe_together(
        self,
        loaded: LoadedModel,
        request_ids: Sequence[str],
        inputs: Tensors,
        outputs: Tensors,
        *,
        buckets: Mapping[int, int],
    ) -> Collection[int]:
        """Requests of one row each, without a group, were answered; the indices of those asked for a label.

        Args:
            inputs: Row by row, as the applications sent them.
            buckets: How many took how long, by the buckets of :mod:`edge_agent.contract.latency`.
        """


def runs_of(requests: Sequence[R], most: int) -> list[Sequence[R]]:
    """Requests that met, in as few runs as ``most`` for each allow, all about equally long: one alone gains nothing."""
    runs = -(-len(requests) // most)
    ends = [len(requests) * run // runs for run in range(runs + 1)]
    return [requests[begin:end] for begin, end in itertools.pairwise(ends)]


class Together:
    """Runs requests together; called in the event loop's thread.

    Args:
        run: One run of a model, under the watchdog's eyes, which began at a time of ``perf_counter_ns``.
        observer: Told of each request by itself where it takes them only so. Its methods are looked up for each call:
            what shadows a model stands between only while it does.
        new_ids: Makes the identifiers of so many requests of one run.
        asked: Remembers what applications send.
    """

    def __init__(
        self,
        run: Callable[[LoadedModel, Tensors, int], dict[str, NDArray[Any]]],
        observer: Any,
        new_ids: Callable[[int], Sequence[str]],
        asked: AskedInputs,
    ) -> None:
        self._run, self._new_ids, self._asked = run, new_ids, asked
        self._observer = observer
        self._takes_many = isinstance(observer, ManyObserver)

    def answer(
        self, loaded: LoadedModel, like: InferenceRequest, inputs: Tensors, came_ns: Sequence[int]
    ) -> SharedRun | None:
        """What the model says to all of them; None where they are to be asked one by one, nothing counted yet.

        Args:
            like: What they have in common: all but the inputs. It has no id and no group.
            inputs: Row by row, one of each request.
            came_ns: When each came, by ``perf_counter_ns``, in that order, the first one first.
        """
        start_ns = perf_counter_ns()
        if like.timeout_us and start_ns - came_ns[0] > like.timeout_us * 1000:
            return None
        try:
            checked = loaded.check(inputs)
            if like.outputs is not None:
                check_outputs(like, loaded.signature)
        except CallerError:
            return None
        if checked.violations or like.flagged:
            return None
        infer_ns = perf_counter_ns()
        try:
            outputs = self._run(loaded, checked.inputs, infer_ns)
        except ShoalError:
            return None  # has been logged; who is to blame shows when each runs by itself
        end_ns = perf_counter_ns()
        count = len(came_ns)
        if any(array.ndim == 0 or len(array) != count for array in outputs.values()):
            return None
        request_ids = self._new_ids(count)
        asked: Collection[int] = ()
        if like.monitored:
            latencies_ns = [end_ns - came for came in came_ns]
            buckets = latency_buckets(latencies_ns)
            try:
                self._note(loaded, like, inputs, count)
                if self._takes_many:
                    asked = self._observer.observe_together(loaded, request_ids, inputs, outputs, buckets=buckets)
                else:
                    asked = self._one_by_one(loaded, request_ids, inputs, outputs, latencies_ns)
            except Exception:
                # The applications have their answers coming, whatever is wrong with what is watched beside them.
                log.exception("requests of model %s %s could not be observed", loaded.name, loaded.version)
            loaded.statistics.answered_together(
                buckets,
                queue_ns=sum(latencies_ns) - count * (end_ns - start_ns),
                input_ns=infer_ns - start_ns,
                infer_ns=end_ns - infer_ns,
                output_ns=perf_counter_ns() - end_ns,
            )
        return SharedRun(loaded.name, loaded.version, loaded.digest, request_ids, outputs, asked)

    def _note(self, loaded: LoadedModel, like: InferenceRequest, inputs: Tensors, count: int) -> None:
        """Requests of one row each were answered."""
        sent = self._asked
        sent.left -= count
        if sent.left < 0:
            sent.note(loaded, {name: array[:1] for name, array in inputs.items()}, like.outputs)

    def _one_by_one(
        self,
        loaded: LoadedModel,
        request_ids: Sequence[str],
        inputs: Tensors,
        outputs: Tensors,
        latencies_ns: Sequence[int],
    ) -> Collection[int]:
        asked: set[int] = set()
        for index, (request_id, ns) in enumerate(zip(request_ids, latencies_ns, strict=True)):
            given, found = (
                {name: array[index : index + 1] for name, array in side.items()} for side in (inputs, outputs)
            )
            if self._observer.observe(loaded, request_id, given, found, latency_us=ns / 1000, group=""):
                asked.add(index)
        return asked
