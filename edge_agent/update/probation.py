"""Models that serve on probation: how long already, what was seen of them, and what follows."""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.contract.messages import UpdateStep
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.update import transitions
from edge_agent.update.journal import Journal
from edge_agent.update.judgement import Bad, Good, Seen, Undecided, Verdict, judge_probation
from edge_agent.update.slots_file import SlotRecord

# Time that is over is written down in tenths of the whole, within these bounds: flash wears.
_LEAST_S, _MOST_S = 30.0, 600.0


class Stopwatch:
    """Seconds that an update has been watched, the agent's restarts left out: the clock on the wall may jump.

    Args:
        journal: Where they are written down now and then.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._since: dict[str, tuple[float, float]] = {}

    def begin(self, model: str, now: float) -> None:
        """Go on from what is written down."""
        self._since[model] = (now, self._journal.get(model).watched_s)

    def end(self, model: str) -> None:
        """Forget it."""
        self._since.pop(model, None)

    def elapsed_s(self, model: str, now: float) -> float:
        """So far; begins where nobody has yet."""
        if model not in self._since:
            self.begin(model, now)
        since, before = self._since[model]
        return before + max(0.0, now - since)

    def note(self, model: str, now: float, whole_s: float) -> None:
        """Write down what is over, where that is worth a write.

        Args:
            whole_s: How long it is to be watched.
        """
        elapsed, record = self.elapsed_s(model, now), self._journal.get(model)
        if elapsed - record.watched_s >= max(_LEAST_S, min(_MOST_S, whole_s / 10)):
            self._journal.note({model: transitions.watched(record, elapsed)})

    def running(self, now: float) -> dict[str, float]:
        """Seconds so far, by model."""
        return {model: self.elapsed_s(model, now) for model in self._since}


class Probations:
    """Judges the models on probation by what their manifests ask.

    Args:
        seen: What a loaded model did since it serves.
    """

    def __init__(
        self, journal: Journal, slots: Slots, stopwatch: Stopwatch, seen: Callable[[LoadedModel], Seen]
    ) -> None:
        self._journal, self._slots, self._stopwatch, self._seen = journal, slots, stopwatch, seen
        #: What each model that is not judged yet has done so far, in words.
        self.so_far: dict[str, str] = {}

    def begin(self, model: str, now: float) -> None:
        """A model serves, and is on probation."""
        if self._journal.get(model).step is UpdateStep.PROBATION:
            self._stopwatch.begin(model, now)
            self.so_far.pop(model, None)

    def end(self, model: str) -> None:
        """A model is on probation no more."""
        self._stopwatch.end(model)
        self.so_far.pop(model, None)

    def verdict(self, model: str, record: SlotRecord, now: float) -> Verdict:
        """What follows from what was seen so far."""
        loaded = self._slots.last_served(model)  # its counts hold, whether somebody has unloaded it meanwhile or not
        if loaded is None or loaded.digest != record.active:
            return Undecided("another version of it serves")
        rule = loaded.manifest.probation
        elapsed_s = self._stopwatch.elapsed_s(model, now)
        verdict = judge_probation(rule, self._seen(loaded), record.before, elapsed_s=elapsed_s)
        if isinstance(verdict, Undecided):
            self.so_far[model] = verdict.reason
            self._stopwatch.note(model, now, rule.seconds)
        return verdict

    def before(self, model: str) -> Seen | None:
        """What the model that serves now has done here; None where there is none."""
        loaded = self._slots.last_served(model)
        return None if loaded is None else self._seen(loaded)


def worst(verdicts: dict[str, Verdict]) -> tuple[str, Verdict]:
    """The verdict on models that came together, and whose it is: one bad is bad for all, and all must be good."""
    for kind in (Bad, Undecided, Good):
        for model, verdict in verdicts.items():
            if isinstance(verdict, kind):
                return model, verdict
    raise ValueError("nothing was judged")
