"""What a version has done on this device, put together from what is counted anyway."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edge_agent.runtime.slots import LoadedModel
from edge_agent.update.evidence import most_frequent
from edge_agent.update.judgement import Seen

# A model with more classes tells its most frequent ones: what was seen is written to the disk with every step.
_MOST_CLASSES = 1000


def nothing_predicted(_package: str) -> Mapping[str, int]:
    """Nobody counts classes."""
    return {}


class Sight:
    """Tells what was seen of a model; from any thread.

    Args:
        predicted: Rows by predicted class of a package, by its digest;
            :meth:`edge_agent.monitor.monitor.Monitor.predicted`.
    """

    def __init__(self, predicted: Callable[[str], Mapping[str, int]] = nothing_predicted) -> None:
        self._predicted = predicted

    def __call__(self, loaded: LoadedModel) -> Seen:
        """Since the agent has first loaded its package; counts outlive a reload, a sleep and another runtime."""
        now = loaded.statistics.snapshot()
        classes = sorted(self._predicted(loaded.digest).items(), key=lambda item: (-item[1], item[0]))
        return Seen(
            requests=loaded.requests,
            failed=loaded.failed,
            latency=now.latency,
            runs=most_frequent(now.batches),
            classes=dict(sorted(classes[:_MOST_CLASSES])),
        )
