"""The swap, and the looks before and after it: at what shadows, and at what is on probation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec

from edge_agent.contract.errors import DeviceError
from edge_agent.contract.messages import EventKind, UpdateStep
from edge_agent.runtime.statistics import Statistics
from edge_agent.update import transitions
from edge_agent.update.candidates import Candidates
from edge_agent.update.going_back import GoingBack
from edge_agent.update.journal import Journal
from edge_agent.update.judgement import Bad, Good
from edge_agent.update.outcome import NotYet
from edge_agent.update.probation import Probations, Stopwatch, worst
from edge_agent.update.shadow_step import Group, ShadowStep
from edge_agent.update.slots_file import SlotRecord
from edge_agent.update.window import Waits

_log = logging.getLogger(__name__)
# After a disk has refused: each try wears it, and asks it the same.
_REFUSED_S = 60.0


class Watching:
    """Lets candidates serve, and judges models by what is seen of them."""

    def __init__(
        self,
        journal: Journal,
        back: GoingBack,
        *,
        probations: Probations,
        shadow: ShadowStep,
        stopwatch: Stopwatch,
        waits: Waits,
    ) -> None:
        self._journal, self._back = journal, back
        self._probations, self._shadow, self._stopwatch = probations, shadow, stopwatch
        self._waits = waits
        self._not_before: dict[Group, float] = {}

    def swap(self, group: Group, candidates: Candidates, now: float, reason: str = "") -> None:
        """Let tested candidates serve, all at once, on probation; written down in one piece before.

        Args:
            reason: What speaks for them.
        Raises:
            StorageFull, StorageNotWritable, DeviceError: It cannot be written down: they are closed, and nothing has
                changed.
        """
        tested = {model: self._journal.get(model) for model in group}
        try:
            swapped = {
                # What is gone back from is no measure.
                model: transitions.swapped(record, None if record.known else self._probations.before(model), group)
                for model, record in tested.items()
            }
            self._journal.step(swapped, reason)
        except BaseException:  # a full disk: else each try would hold the memory of one more
            candidates.close()
            raise
        for model in group:
            self._probations.begin(model, now)
        try:
            self._back.let_serve(*candidates.models.values(), again=candidates.again)
        except DeviceError as error:
            self._undo(tested, str(error))
            return
        finally:
            candidates.beside.forget()
        for model, loaded in candidates.models.items():
            if loaded.digest == tested[model].active:  # it has failed before, and is judged by what it does from now on
                loaded.statistics = Statistics()

    def _undo(self, tested: Mapping[str, SlotRecord], reason: str) -> None:
        """Write down that candidates do not serve after all: as with deaths of the agent, twice is the package."""
        for model, before in tested.items():
            self._stopwatch.end(model)
            record = msgspec.structs.replace(before, crashes=before.crashes + 1)
            refuse = record.crashes >= transitions.MAX_CRASHES
            self._journal.fail(model, record, EventKind.UPDATE_FAILED, reason, refuse=refuse)
            if refuse:
                self._back.collect()

    def watch(self, now: float) -> None:
        """One look at all.

        Args:
            now: Monotonic seconds.
        """
        for model in self._journal.models():
            if self._journal.get(model).step is UpdateStep.PROBATION:
                self._look(self._watch_probation, self._back.group(model), now)
        for group in self._shadow.groups():
            self._look(self._watch_shadow, group, now)

    def _look(self, watch: Callable[[Group, float], None], group: Group, now: float) -> None:
        try:
            watch(group, now)
        except Exception:  # noqa: BLE001 - whatever went wrong with one, the others must be watched
            _log.exception("%s: could not be judged; the next look tries again", ", ".join(group))

    def _watch_probation(self, group: Group, now: float) -> None:
        records = {model: self._journal.get(model) for model in group}
        verdicts = {model: self._probations.verdict(model, record, now) for model, record in records.items()}
        model, verdict = worst(verdicts)
        if isinstance(verdict, Bad):
            self._back.from_probation(model, verdict.reason)
        elif isinstance(verdict, Good) and now >= self._not_before.get(group, now):
            reasons = {each: found.reason for each, found in verdicts.items()}
            committed = {each: transitions.committed(record) for each, record in records.items()}
            try:
                self._journal.committed(committed, reasons)
            except DeviceError as error:  # a later look tries again; until then both packages stay
                self._not_before[group] = now + _REFUSED_S
                self._journal.tell(EventKind.STORAGE, model, records[model].active, str(error))
                return
            self._not_before.pop(group, None)
            self._back.collect()
        else:
            return
        for each in group:
            self._probations.end(each)

    def _watch_shadow(self, group: Group, now: float) -> None:
        found = self._shadow.verdict(group, now)
        if found is None:
            self._shadow.take(group).close()
            self._journal.note({each: transitions.stopped(self._journal.get(each)) for each in group})
            self._say(group, "its shadow was broken off: what it was compared with does not serve any more")
            return
        model, verdict = found
        if isinstance(verdict, Bad):
            self._shadow.take(group).close()
            self._give_up(group, model, verdict.reason)
        elif isinstance(verdict, Good) and self._may_go_on(group, verdict.reason):
            try:
                self.swap(group, self._shadow.take(group), now, verdict.reason)
            except DeviceError as error:
                for each in group:
                    record = self._journal.get(each)
                    self._journal.fail(each, record, EventKind.UPDATE_FAILED, str(error), refuse=False)

    def _may_go_on(self, group: Group, verdict: str) -> bool:
        """Whether the candidates may serve now; what they wait for is reported."""
        newer = [model for model in group if self._journal.get(model).announced > self._journal.get(model).release]
        try:
            self._waits.check_window()
        except NotYet as error:
            for each in group:
                self._waits.note(each, error)
            self._say(group, f"{verdict}; {error}")
            return False
        if newer:
            release = self._journal.get(newer[0]).announced
            self._say(group, f"{verdict}; waits, as release {release} of '{newer[0]}' is announced")
        return not newer

    def _give_up(self, group: Group, model: str, reason: str) -> None:
        for each in group:
            refuse = each == model
            said = reason if refuse else f"was to come with '{model}', which failed: {reason}"
            self._journal.fail(each, self._journal.get(each), EventKind.UPDATE_FAILED, said, refuse=refuse)
        self._back.collect()

    def _say(self, group: Group, reason: str) -> None:
        for each in group:
            self._journal.keep(each, msgspec.structs.replace(self._journal.get(each), reason=reason))
