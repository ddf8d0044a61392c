"""Starting what is active, and going back to what is known to be good. Needs no network and no fresh metadata."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from edge_agent.contract.errors import BudgetExceeded, DeviceError, ModelUnavailable, ShoalError, UnknownModel
from edge_agent.contract.messages import EventKind, UpdateStep
from edge_agent.runtime.slots import LoadedModel, ModelState, Slots
from edge_agent.update import transitions
from edge_agent.update.candidates import CandidateLoader, Candidates, Loading, told_from_rot
from edge_agent.update.journal import Journal
from edge_agent.update.outcome import MemberFailed
from edge_agent.update.package_store import PackageStore
from edge_agent.update.slots_file import SlotRecord

_log = logging.getLogger(__name__)
_NOTHING_EARLIER = "there is no earlier package to go back to"


class Serving(Protocol):
    """Lets models serve; :func:`edge_agent.runtime.beside.swap_together`, or a repository's ``serve``."""

    def __call__(self, *models: LoadedModel, again: Sequence[LoadedModel] = ()) -> None:
        """Let them serve from now on, all at once.

        Args:
            again: Pipelines that serve already, loaded once more.
        """


class GoingBack:
    """Starts models, and rolls them back, those together that came together.

    Args:
        on_probation: Told of models that are on probation and serve now.
    """

    def __init__(
        self,
        journal: Journal,
        store: PackageStore,
        slots: Slots,
        load: Loading,
        serve: Serving,
        *,
        on_probation: Callable[[str], None],
    ) -> None:
        self._journal, self._store, self._slots, self._load, self._serve = journal, store, slots, load, serve
        self._loader = CandidateLoader(store, slots, load)
        self._on_probation = on_probation

    def start(self) -> None:
        """Load each model's active package, or its last known good one."""
        uncounted = self._journal.start()
        for model in self._journal.models():
            if uncounted:
                self._leave_unwatched(model, uncounted)
            self._judge_deaths(model, self._journal.get(model))  # another of its group may have been judged before
        for model in sorted(self._journal.models(), key=self._is_pipeline):  # whose steps must be there before it
            self._start(model)

    def collect(self) -> None:
        """Remove packages from the disk that nothing needs."""
        if not self._journal.is_new:  # else they spare a download when the server names them again
            self._store.collect(self._journal.packages())

    def collect_what_was_lost(self) -> None:
        """As :meth:`collect`, packages included that are here since before the journal was lost."""
        if self._journal.is_new:
            self._journal.is_new = False
            self.collect()

    def group(self, model: str) -> tuple[str, ...]:
        """The models that came with this one and are where it is, itself included."""
        record = self._journal.get(model)
        return tuple(each for each in record.group if self._journal.get(each).step is record.step) or (model,)

    def from_probation(self, model: str, reason: str, *, refuse: bool = True) -> None:
        """Put back what served before ``model`` and those that came with it; where there is nothing, they serve on.

        Args:
            refuse: Whether they are to blame, so that these releases do not try them again.
        """
        group = self.group(model)
        try:
            earlier, why_not = self._earlier(group), _NOTHING_EARLIER
        except MemberFailed as error:
            earlier, why_not = None, f"nor can the earlier package serve: {error.cause}"
        if earlier is None:  # answers that sometimes fail beat none
            for each in group:
                said = f"{_of(reason, each, model)}; {why_not}"
                self._journal.fail(each, self._journal.get(each), EventKind.UPDATE_FAILED, said, refuse=refuse)
            return
        self._put_back(group, model, reason, earlier, refuse=refuse)

    def let_serve(self, *models: LoadedModel, again: Sequence[LoadedModel] = ()) -> None:
        """Let models serve from now on, all at once.

        Args:
            again: Pipelines that serve already, loaded once more.
        Raises:
            DeviceError: They do not, and are closed; what served before serves on.
        """
        try:
            self._serve(*models, again=again)
        except Exception as error:
            if all(self._serves(loaded.name, loaded.digest) for loaded in models):
                _log.exception("%s: it serves; what was to follow failed", ", ".join(each.name for each in models))
                return
            for loaded in (*again, *models):
                loaded.close()
            raise DeviceError(f"could not be let serve: {_said(error)}") from error

    def can_go_back(self, model: str) -> bool:
        """Whether one of the models that came with this one has something earlier to go back to."""
        return bool(self._digests(self.group(model)))

    def _judge_deaths(self, model: str, record: SlotRecord) -> None:
        reason = transitions.blame(record)
        if not reason or record.step not in transitions.RISKY:
            return
        if record.step is UpdateStep.PROBATION:
            self._when_it_cannot_start(model, reason, refuse=True)
            return
        for each in self.group(model):
            one = self._journal.get(each)
            self._journal.fail(each, one, EventKind.UPDATE_FAILED, _of(reason, each, model), refuse=True)

    def _leave_unwatched(self, model: str, why: str) -> None:
        """On a disk that takes no count, what is on probation could take the agent down again and again.

        No package is blamed for it: it comes again when there is room.
        """
        group = self.group(model)
        if self._journal.get(model).step is not UpdateStep.PROBATION or not self._is_there(self._digests(group)):
            return
        reason = f"it cannot be watched, as deaths of the agent cannot be counted: {why}"
        records = {each: self._journal.get(each) for each in group}
        back = {each: transitions.rolled_back(record, reason, refuse=False) for each, record in records.items()}
        self._journal.note(back)
        for each, record in back.items():
            to, release = record.active, record.release
            self._journal.tell(EventKind.ROLLED_BACK, each, record.target, reason, to=to, release=release)

    def _start(self, model: str) -> None:
        record = self._journal.get(model)
        if not record.active:
            self._start_again(model, record)
            return
        if self._serves(model, record.active):
            return
        rot = functools.partial(told_from_rot, self._store.folder_of(record.active), record.active)
        try:
            with rot():
                package, spoilt = self._store.open_to_serve(record.active)
            if spoilt is not None:
                self._journal.tell(EventKind.STORAGE, model, record.active, f"{spoilt}; the model serves without it")
            try:
                with rot():
                    pipeline = bool(package.manifest.pipeline)
                    self.let_serve(self._load(package, slots=self._slots) if pipeline else self._load(package))
            except (BudgetExceeded, ModelUnavailable) as error:
                if record.step is UpdateStep.PROBATION:
                    raise
                # No package is to blame: a setting has changed, or a pipeline's steps are not there yet.
                _log.warning("%s: package %s is not loaded: %s", model, record.active[:12], error)
                version, unavailable = package.manifest.version, ModelState.UNAVAILABLE
                self._slots.mark(model, version, record.active, unavailable, str(error), installed=True)
                return
        except Exception as error:  # noqa: BLE001 - see below
            # Most likely the disk: the same package may be fetched again, and is refused then if it is to blame. And
            # whatever else it is, an agent that serves an older model is better than one that does not start.
            self._when_it_cannot_start(model, f"could not start: {error}", refuse=False)
            trace = None if isinstance(error, ShoalError) else error
            what, instead = record.active[:12], self._instead(model)
            _log.warning("%s: package %s could not start: %s; %s", model, what, error, instead, exc_info=trace)
        else:
            self._on_probation(model)

    def _instead(self, model: str) -> str:
        """What has become of a model that could not start, in words."""
        active = self._journal.get(model).active
        if active and self._serves(model, active):
            return f"package {active[:12]}, which served before it, serves in its place"
        return "nothing serves in its place until it is sent or installed again"

    def _start_again(self, model: str, record: SlotRecord) -> None:
        """At an earlier start nothing of this model could serve: that may have been the machine, not its packages."""
        for digest in transitions.to_start_again(record):
            try:
                found = self._loader.earlier({model: digest})
                self.let_serve(*found.models.values(), again=found.again)
            except (MemberFailed, DeviceError) as error:
                cause = error.cause if isinstance(error, MemberFailed) else error
                _log.warning("%s: package %s could not start either: %s", model, digest[:12], cause)
                continue
            found.beside.forget()
            self._journal.note({model: msgspec.structs.replace(record, active=digest)})
            return

    def _when_it_cannot_start(self, model: str, reason: str, *, refuse: bool) -> None:
        """Serve what was before ``model``, and those that came with it, or nothing where there is nothing."""
        group = self.group(model) if self._journal.get(model).step is UpdateStep.PROBATION else (model,)
        try:
            earlier, why_not = self._earlier(group), _NOTHING_EARLIER
        except MemberFailed as error:
            earlier, why_not = None, f"nor can the earlier package serve: {error.cause}"
        if earlier is None:
            group, reason = (model,), f"{reason}; {why_not}"
            if not refuse:
                self._give_up(model, reason)
                return
        self._put_back(group, model, reason, earlier, refuse=refuse)

    def _give_up(self, model: str, reason: str) -> None:
        """Nothing serves until the next start, or until the server sends something."""
        after = transitions.given_up(self._journal.get(model), reason)
        self._journal.note({model: after})
        with contextlib.suppress(UnknownModel):
            self._slots.remove(model)
        self._journal.tell(EventKind.ROLLED_BACK, model, after.target, reason, to="", release=after.release)
        self.collect()

    def _put_back(
        self, group: Sequence[str], model: str, reason: str, earlier: Candidates | None, *, refuse: bool
    ) -> None:
        """Write down that ``group`` is rolled back for the sake of ``model``, then do it."""
        bad = {each: self._journal.get(each).active for each in group}
        back = {
            each: transitions.rolled_back(self._journal.get(each), _of(reason, each, model), refuse=refuse)
            for each in group
        }
        served = earlier.models.keys() if earlier is not None else set[str]()
        for each in back.keys() - served:
            back[each] = msgspec.structs.replace(back[each], active="")
        self._journal.note(back)
        if earlier is not None:
            try:
                self.let_serve(*earlier.models.values(), again=earlier.again)
            except DeviceError as error:
                _log.exception("%s: what is gone back to serves after the agent's next start", ", ".join(served))
                because = f"; the earlier package, which {error}, is tried at the agent's next start"
                back = {each: msgspec.structs.replace(one, reason=one.reason + because) for each, one in back.items()}
                self._journal.note(back)
            earlier.beside.forget()
        for each in back.keys() - served:
            with contextlib.suppress(UnknownModel):
                self._slots.remove(each)
        for each, record in back.items():
            to, release = record.active, record.release
            self._journal.tell(EventKind.ROLLED_BACK, each, bad[each], record.reason, to=to, release=release)
        self.collect()

    def _earlier(self, group: Sequence[str]) -> Candidates | None:
        """The last known good packages of a group, loaded; None where there is none.

        Raises:
            MemberFailed: One of them cannot be loaded.
        """
        digests = self._digests(group)
        return self._loader.earlier(digests) if digests else None

    def _digests(self, group: Sequence[str]) -> dict[str, str]:
        earlier = {each: transitions.earlier(self._journal.get(each)) for each in group}
        return {each: digest for each, digest in earlier.items() if digest}

    def _is_there(self, digests: Mapping[str, str]) -> bool:
        """Whether there are packages to go back to, and all of them are whole."""
        try:
            for digest in digests.values():
                self._store.open(digest, verify=True)
        except ShoalError:
            return False
        return bool(digests)

    def _serves(self, model: str, digest: str) -> bool:
        try:
            return self._slots.get(model).digest == digest
        except (UnknownModel, ModelUnavailable):
            return False

    def _is_pipeline(self, model: str) -> bool:
        try:
            record = self._journal.get(model)
            digest = record.active or next(iter(transitions.to_start_again(record)), "")
            return bool(self._store.open(digest, verify=False).manifest.pipeline)
        except ShoalError:
            return False  # its start says what is wrong with it


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, ShoalError) else f"{type(error).__name__}: {error}"


def _of(reason: str, model: str, blamed: str) -> str:
    """The reason as it is told of one of a group."""
    return reason if model == blamed else f"came with '{blamed}': {reason}"
