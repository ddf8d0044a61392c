"""One attempt at what the server wishes for: what is to be done now, for which models together, and how it ended."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from edge_agent.contract.errors import (
    BudgetExceeded,
    DeviceError,
    GpuMemoryExhausted,
    MetadataRefused,
    NetworkError,
    OutOfMemory,
    PackageError,
    ShoalError,
    StorageFull,
    StorageNotWritable,
)
from edge_agent.contract.manifest import Manifest
from edge_agent.contract.messages import Desired, DesiredModel, EventKind, UpdateStep
from edge_agent.runtime.slots import Slots
from edge_agent.update import groups, transitions
from edge_agent.update.candidates import CandidateLoader
from edge_agent.update.going_back import GoingBack
from edge_agent.update.journal import Journal
from edge_agent.update.outcome import MemberFailed, NotYet, Spoilt, Unfit
from edge_agent.update.preparing import Coming, Preparing, versions_here
from edge_agent.update.shadow_step import ShadowStep
from edge_agent.update.slots_file import SlotRecord
from edge_agent.update.watching import Watching
from edge_agent.update.window import Waits

_log = logging.getLogger(__name__)

# What passes without anybody's doing, or with a little of it: no fault of the package.
_SHORTAGES = (StorageFull, StorageNotWritable, BudgetExceeded, OutOfMemory, GpuMemoryExhausted, Spoilt)


class Stand(enum.Enum):
    """Where a wish for a model stands."""

    SETTLED = "settled"
    GOES_ON = "goes on"  # by itself: it shadows, or is on probation
    OPEN = "open"


class Updating:
    """Carries out what the server wishes for, as far as that goes now.

    Args:
        monotonic: Seconds that never go back.
    Attributes:
        fetching: Releases of the models that are brought to the disk right now.
        waits_s: Seconds after which another attempt is worth it; None where nothing says so.
    """

    def __init__(
        self,
        journal: Journal,
        slots: Slots,
        *,
        preparing: Preparing,
        loader: CandidateLoader,
        watching: Watching,
        shadow: ShadowStep,
        back: GoingBack,
        waits: Waits,
        monotonic: Callable[[], float],
    ) -> None:
        self._journal, self._slots = journal, slots
        self._preparing, self._loader, self._watching = preparing, loader, watching
        self._shadow, self._back, self._waits, self._monotonic = shadow, back, waits, monotonic
        self._unfit: dict[str, DesiredModel] = {}
        self._faulty: dict[str, DesiredModel | None] = {}  # what has failed last, and not for want of something
        self._spoilt: set[str] = set()
        self._waits_for: dict[str, tuple[int, UpdateStep, str]] = {}
        self.fetching: Mapping[str, int] = {}
        self.waits_s: float | None = None

    def attempt(self, desired: Desired) -> bool:
        """One attempt; whether nothing is left to do."""
        self.waits_s = None
        self._waits.begin()
        self._drop_unwanted(desired)
        stands = {model: self._stand(model, wanted) for model, wanted in desired.models.items()}
        todo = {model: desired.models[model] for model, stand in stands.items() if stand is Stand.OPEN}
        self._waits.announce({model: wanted.release for model, wanted in todo.items()})
        settled = Stand.GOES_ON not in stands.values()
        coming: dict[str, Coming] = {}
        for model, wanted in todo.items():
            try:
                one = self._coming(model, wanted)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one, the others must come
                settled = self._ended(model, wanted, _known(model, error)) and settled
                continue
            if one is not None:
                coming[model] = one
            else:
                settled = self._journal.get(model).step is not UpdateStep.PROBATION and settled
        plan = groups.plan(*self._situation(coming))
        for model, reason in plan.waiting.items():
            settled = self._ended(model, desired.models[model], self._lacking(model, coming, reason)) and settled
        for group in plan.groups:
            settled = self._bring([coming[model] for model in group]) and settled
        if settled:
            self._back.collect_what_was_lost()
        return settled

    def _stand(self, model: str, wanted: DesiredModel) -> Stand:
        record = self._journal.get(model)
        if record.step is UpdateStep.PROBATION and wanted.release <= record.release:
            return Stand.GOES_ON
        if self._shadow.is_running(model) and wanted.release <= record.release:
            return Stand.GOES_ON
        if transitions.is_settled(record, wanted.package, wanted.release) or self._unfit.get(model) == wanted:
            return Stand.SETTLED
        return Stand.OPEN

    def _drop_unwanted(self, desired: Desired) -> None:
        """Break shadows off that the server wishes for no more."""
        for model in [model for group in self._shadow.groups() for model in group]:
            record = self._journal.get(model)
            if model not in desired.models and record.step is UpdateStep.SHADOW:
                self._shadow.break_off(model)
                reason = "its shadow was broken off: the server does not name this model any more"
                self._journal.fail(model, record, EventKind.UPDATE_FAILED, reason, refuse=False)

    def _coming(self, model: str, wanted: DesiredModel) -> Coming | None:
        """What is to come in this model's place; None where nothing is, or what serves has to be judged first.

        Raises:
            NotYet: It has to wait.
            ShoalError: Of whoever is to blame.
        """
        record = self._journal.get(model)
        on_probation = record.step is UpdateStep.PROBATION
        if not (on_probation and wanted.package == record.last_known_good):  # going back waits for nothing
            self._waits.check()
        if (staged := self._preparing.from_disk(model, wanted)) is not None:
            return staged
        target = self._preparing.target(model, wanted)
        on_probation = self._journal.get(model).step is UpdateStep.PROBATION  # unless it was judged meanwhile
        if on_probation and not self._leave_probation(model, target.digest, target.release, target.rollout):
            return None
        record = msgspec.structs.replace(self._journal.get(model), announced=wanted.release)
        if not transitions.is_under_way(record, target.digest, target.release):
            self._shadow.break_off(model)
        if record.refused.get(target.digest, -1) >= target.release:
            self._journal.put({model: transitions.failed(record, record.reason, refuse=False)})
            return None
        if target.digest == record.active and transitions.is_proven(record):
            begun = transitions.begun(record, target.digest, release=target.release, rollout=target.rollout)
            self._journal.put({model: transitions.committed(begun)})
            return None
        return self._preparing.begin(model, wanted, target)

    def _leave_probation(self, model: str, digest: str, release: int, rollout: str) -> bool:
        """A newer release is signed while one is on probation: go back to what was before it, and then to the newer.

        Returns:
            Whether that was done; not where nothing was before, or the newer release is what is on probation.
        """
        record = self._journal.get(model)
        if digest == record.active:
            self._journal.put({model: msgspec.structs.replace(record, release=release, rollout=rollout)})
            return False
        if not self._back.can_go_back(model):
            return False
        self._back.from_probation(model, f"release {release} is wanted in its place", refuse=False)
        return self._journal.get(model).step is not UpdateStep.PROBATION

    def _situation(
        self, coming: Mapping[str, Coming]
    ) -> tuple[dict[str, Manifest], dict[str, Manifest], dict[str, groups.Versions]]:
        """What :func:`groups.plan` is to know."""
        pipelines = {one.name: one.manifest for one in self._slots.models() if one.manifest.pipeline}
        changing = {model: one.manifest for model, one in coming.items()}
        return changing, pipelines, versions_here(self._journal.models(), self._slots)

    def _lacking(self, model: str, coming: Mapping[str, Coming], reason: str) -> ShoalError:
        """What a model that cannot come alone waits for: its release, or for ever as that failed here."""
        for step in coming[model].manifest.pipeline:
            record = self._journal.get(step.model)
            if step.version is not None and record.step is UpdateStep.FAILED and record.refused:
                return DeviceError(f"{reason}; the last update of '{step.model}' failed: {record.reason}")
        return NotYet(reason)

    def _bring(self, group: Sequence[Coming]) -> bool:
        """Take a group through all steps up to its shadow, or to its swap; whether the matter is closed."""
        names = tuple(each.model for each in group)
        closed = self._attempt_at(group, names)
        # What waits now (for its window, say) does not run: no death of the agent until it is tested again is its own.
        resting = {model: record for model, record in self._records(names).items() if record.step in transitions.HERE}
        self._journal.note(
            {model: transitions.stopped(one) for model, one in resting.items() if not self._shadow.is_running(model)}
        )
        return closed

    def _attempt_at(self, group: Sequence[Coming], names: tuple[str, ...]) -> bool:
        try:
            self.fetching = {each.model: each.wanted.release for each in group}
            try:
                self._preparing.fetch(group)
            finally:
                self.fetching = {}
            self._waits.check_window()
            self._test(names, {each.model: each.digest for each in group})
        except MemberFailed as error:
            return self._ended_together(group, error.model, _known(error.model, error.cause))
        except Exception as error:  # noqa: BLE001 - it is written down, and tried again
            return self._ended_together(group, names[0], _known(names[0], error))
        return False

    def _test(self, names: tuple[str, ...], digests: Mapping[str, str]) -> None:
        """Load and test a group, then let it shadow, or serve."""
        waited = {model: transitions.running(one) for model, one in self._records(names).items() if one.orderly}
        if waited:
            self._journal.put(waited)
        candidates = self._loader.tested(digests)
        try:
            tested = {
                model: transitions.at(record, UpdateStep.SELF_TESTED)
                for model, record in self._records(names).items()
                if record.step is UpdateStep.STAGED  # else it goes on after a restart
            }
            if tested:
                self._journal.step(tested)
            champions = self._shadow.champions(candidates)
            if champions:
                shadowing = {
                    model: transitions.comes_with(transitions.at(record, UpdateStep.SHADOW), names)
                    for model, record in self._records(names).items()
                    if record.step is UpdateStep.SELF_TESTED
                }
                if shadowing:
                    self._journal.step(shadowing)
                self._shadow.begin(names, candidates, champions, self._monotonic())
        except BaseException:
            candidates.close()
            raise
        if not champions:
            self._watching.swap(names, candidates, self._monotonic())

    def has_given_up(self, model: str, record: SlotRecord) -> bool:
        """Whether it is not for want of room, memory or a sound disk that an update has failed."""
        faulty = self._faulty.get(model)
        is_it = faulty is not None and faulty.package == record.target and faulty.release >= record.announced
        return transitions.refuses(record) or is_it

    def _records(self, names: Sequence[str]) -> dict[str, SlotRecord]:
        return {model: self._journal.get(model) for model in names}

    def _ended_together(self, group: Sequence[Coming], blamed: str, error: ShoalError | OSError) -> bool:
        """Write down how an attempt at a group ended; whether the matter is closed for all."""
        closed = True
        for each in group:
            own = error
            if each.model != blamed and not isinstance(error, (NotYet, NetworkError)):
                own = DeviceError(f"was to come with '{blamed}', which failed: {error}")
            closed = self._ended(each.model, each.wanted, own) and closed
        return closed

    def _ended(self, model: str, wanted: DesiredModel, error: ShoalError | OSError) -> bool:
        """Write down how an attempt ended; whether the matter is closed."""
        record = msgspec.structs.replace(self._journal.get(model), announced=wanted.release)
        failed = EventKind.UPDATE_FAILED
        if isinstance(error, NotYet) and error.seconds is not None:
            self._waits.note(model, error)
            self.waits_s = error.seconds if self.waits_s is None else min(self.waits_s, error.seconds)
        if isinstance(error, (NotYet, NetworkError)):
            # Nothing was decided: not worth a write to flash.
            self._journal.keep(model, msgspec.structs.replace(record, reason=str(error)))
            if self._waits_for.get(model) != (said := (record.release, record.step, str(error))):
                self._waits_for[model] = said
                _log.info("%s: update waits: %s", model, error)
            return False
        self._waits_for.pop(model, None)
        self._faulty[model] = None if isinstance(error, _SHORTAGES) else wanted
        if record.step is UpdateStep.PROBATION or self._shadow.is_running(model):
            # It is about a newer release; what is watched is watched on.
            self._journal.keep(model, msgspec.structs.replace(record, reason=str(error)))
            refused = isinstance(error, MetadataRefused)
            self._journal.tell(EventKind.METADATA_REFUSED if refused else failed, model, wanted.package, str(error))
            return False
        if isinstance(error, MetadataRefused):
            self._journal.fail(model, record, EventKind.METADATA_REFUSED, str(error), refuse=False)
            return False
        if isinstance(error, StorageFull):
            self._back.collect_what_was_lost()
        if isinstance(error, Spoilt):
            error = self._spoilt_once_more(record.target, error)
        wrong = isinstance(error, PackageError)
        self._journal.fail(model, record, failed, str(error), refuse=wrong)
        if isinstance(error, Unfit):
            self._unfit[model] = self._faulty[model] = wanted
        if wrong or isinstance(error, Unfit):
            self._back.collect()
            return True
        return False

    def _spoilt_once_more(self, package: str, error: Spoilt) -> Spoilt | Unfit:
        """The error; after the first, one that ends it: such a disk would have all fetched again and again."""
        if package not in self._spoilt:
            self._spoilt.add(package)
            return error
        return Unfit(f"{error}; not for the first time: it comes after the agent's next start, or in a newer release")


def _known(model: str, error: BaseException) -> ShoalError | OSError:
    """The error, or one that tells of what nobody foresaw: a machine out of memory, or a fault of this program."""
    if isinstance(error, (ShoalError, OSError)):
        return error
    _log.warning("%s: an unexpected error", model, exc_info=error)
    return DeviceError(f"{type(error).__name__}: {error}")
