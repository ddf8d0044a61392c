"""The repository: every package on this device, loaded and unloaded while requests go on.

A model is loaded, warmed up and tested beside the one that it replaces, and only then takes its place. What fails
leaves the old one serving, and its reason in the index. All loading happens under one lock: one model at a time, so
that its memory can be measured, and so that many who wait for a model wait for one load.

What serves at the start: what the fleet wants, and of the folder ``runtime.models`` what ``runtime.load`` says. The
default version of a model is the fleet's; where the fleet has none, the highest that is loaded. A model that a person
unloaded stays unloaded until it is loaded again, or the fleet sends a new version, or the agent starts anew.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from edge_agent.contract.errors import BudgetExceeded, ModelUnavailable, ShoalError, UnknownModel
from edge_agent.contract.manifest import FULL_PRECISION, PipelineStep
from edge_agent.runtime.beside import swap_together
from edge_agent.runtime.budget import MemoryBudget, ThreadBudget
from edge_agent.runtime.catalogue import Catalogue, FleetPackages, Known, highest, is_pipeline
from edge_agent.runtime.guard import RunGuard
from edge_agent.runtime.idle import IdleUnloader
from edge_agent.runtime.load_log import LoadLog, WhatFor
from edge_agent.runtime.loaded import LoadedModel, OtherRuntime, load
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.optimised import OptimisedModels
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import prove
from edge_agent.runtime.slots import IndexEntry, ModelState, Slots
from edge_agent.runtime.variants import Precision, Variants

if TYPE_CHECKING:
    from edge_agent.runtime.acceleration import Acceleration
    from edge_agent.runtime.backend import InferenceBackend
    from edge_agent.runtime.pipeline import ModelSource

_log = logging.getLogger(__name__)

Policy = Literal["latest", "all", "none"]
_NOT_ASKED = "not loaded yet"
_KEPT = "an earlier package, kept to go back to"
_BY_HAND = "unloaded on request"
_IDLE = "idle"


class Repository:
    """Loads and unloads. Every method may be called from any thread; loading blocks.

    Args:
        slots: Where models serve.
        catalogue: Which packages there are.
        policy: Which versions of the folder's models are loaded by :meth:`start`.
        threads: Within one inference, and for all.
        memory: What models may take.
        cache: Where optimised models are kept; None keeps none.
        idle_unload_s: After so long without a request a model's memory is given back; 0 keeps it loaded.
        acceleration: Finds models a faster runtime; None where there is no accelerator. Closed with the repository.
        precision: In which form models run on the processors.
    """

    def __init__(
        self,
        slots: Slots,
        catalogue: Catalogue,
        *,
        policy: Policy = "latest",
        threads: ThreadBudget | None = None,
        memory: MemoryBudget | None = None,
        cache: OptimisedModels | None = None,
        idle_unload_s: float = 0.0,
        acceleration: Acceleration | None = None,
        precision: Precision = "auto",
    ) -> None:
        self._slots, self._catalogue, self._policy = slots, catalogue, policy
        self._threads = threads or ThreadBudget(1, 1)
        self._memory, self._cache = memory or MemoryBudget(), cache
        # Held while a model is loaded; a pipeline wakes its steps meanwhile, in the same thread.
        self._loading = threading.RLock()
        self._looking = threading.Lock()
        self._guard = RunGuard()
        self._variants = Variants(precision, guard=self._guard)
        self._broken: Collection[tuple[str, str]] = ()
        self._idle = IdleUnloader(slots, idle_unload_s, self._idle_out) if idle_unload_s else None
        self._acceleration = acceleration
        if acceleration is not None:
            acceleration.follow(self)
        # What load() was asked for by version: it stays when a newer version comes.
        self._wanted: set[tuple[str, str]] = set()
        self._told = LoadLog()

    def follow(self, fleet: FleetPackages) -> None:
        """Know the packages too that the fleet has installed here."""
        self._catalogue.follow(fleet)

    def start(self) -> None:
        """Load what serves from the start beside the fleet's models, which the installer has loaded; pipelines last.

        A package that cannot be loaded says so in the log and the index, and keeps no other from serving.
        """
        with self._loading:
            self._refresh()
            wanted = [known for known in self._chosen() if not self._serves(known)]
            for known in sorted(wanted, key=is_pipeline):
                self._load_steps(known)
                self._try(known, WhatFor.START)
            self._load_waiting()
            self._collect()
        if self._idle is not None:
            self._idle.start()

    def close(self) -> None:
        """End the idle unloader, and what is being loaded; what serves goes on until the slots are closed."""
        self._guard.close()
        if self._idle is not None:
            self._idle.close()
        if self._acceleration is not None:
            self._acceleration.close()

    def load(self, model: str, version: str | None = None) -> LoadedModel:
        """Load a package of this device, or load it again as it now lies on the disk; of a pipeline, its steps first.

        Args:
            version: None takes the version that the fleet wants, else the highest there is; one that was loaded so
                before, and is not the one any more, is unloaded.
        Raises:
            UnknownModel: There is no such package here.
            PackageError, DigestMismatch, BudgetExceeded, ModelUnavailable: It cannot be loaded; what served goes on.
        """
        with self._loading:
            self._refresh()
            known = self._catalogue.find(model, version)
            self._load_steps(known)
            loaded = self._load(known, WhatFor.REQUEST)
            if version is not None:
                self._wanted.add((model, version))
            else:
                self._unload_others(known, loaded)
            self._load_waiting()
            self._collect()
            return loaded

    def unload(self, model: str, version: str | None = None) -> None:
        """Let a model serve no longer, and give its memory back when its last request ends.

        Args:
            version: None unloads all its versions.
        Raises:
            UnknownModel: There is no such model or version here.
        """
        with self._loading:
            self._refresh()
            entries = [
                entry for entry in self._slots.index() if entry.name == model and version in (None, entry.version)
            ]
            if not entries:
                raise self._catalogue.unknown(model, version)
            for entry in entries:
                self._wanted.discard((model, entry.version))
                # What is broken goes on saying why; a pipeline that waits for its steps waits no longer.
                was_broken = entry.state is ModelState.UNAVAILABLE and not self._is_pipeline(entry)
                reason = f"{_BY_HAND}; before, {entry.reason}" if was_broken else _BY_HAND
                again = entry.state is ModelState.UNLOADED and entry.reason.startswith(_BY_HAND)
                old = self._slots.unload(model, entry.version, reason=entry.reason if again else reason)
                if old is not None:
                    self._told.unloaded(old, "on request")
            self._told.settled(self._slots.index())

    def wake(self, model: str, version: str | None = None) -> LoadedModel:
        """Load what was unloaded because nobody asked for it; many who wait here wait for one load.

        Raises:
            UnknownModel: There is no such model.
            ModelUnavailable: It is not loaded for another reason.
            PackageError, DigestMismatch, BudgetExceeded: It cannot be loaded any more.
        """
        with self._loading:
            try:
                return self._slots.get(model, version)
            except ModelUnavailable as error:
                if not error.asleep:
                    raise
            wanted = self._slots.default_version(model) if version is None else version
            known = self._catalogue.known.get((model, wanted))
            if known is None:
                self._refresh()
                known = self._catalogue.find(model, wanted)
            return self._load(known, WhatFor.WOKEN)

    def prepare(self, package: Package, *, slots: ModelSource | None = None) -> LoadedModel:
        """Load and warm up a package that the installer will test and let serve, within the budgets.

        Args:
            slots: Where a pipeline finds its steps; None for those that serve.
        Raises:
            PackageError: The package lacks a part, or the runtime refuses it.
            BudgetExceeded, ModelUnavailable: This device cannot load it now; the package is not to blame.
        """
        name, version = package.manifest.name, package.manifest.version
        with self._loading:
            known = self._catalogue.known.get((name, version))
            # Going back to the last known good package is refused for nothing: the one that serves is worse.
            is_refuge = known is not None and known.installed and not known.active
            earlier = self._slots.last_served(name)
            loaded = self._prepare(package, earlier, is_refuge=is_refuge, slots=slots)
        # Not under the lock: to refit an engine takes seconds.
        return loaded if self._acceleration is None else self._acceleration.as_earlier(loaded, earlier)

    def serve(self, *models: LoadedModel, again: Sequence[LoadedModel] = ()) -> None:
        """Let models of the fleet serve, all at once, and load the pipelines that waited for them.

        Args:
            again: Pipelines that serve already, loaded once more with their new steps.
        """
        swap_together(self._slots, *models, again=again)
        for loaded in models:
            self._consider(loaded)
        with self._loading:
            for loaded in models:
                self._told.loaded(loaded, WhatFor.INSTALLED)
            self._refresh()
            self._load_waiting()
            self._collect()

    def load_on(self, package: Package, runtime: OtherRuntime | None, *, beside: LoadedModel) -> LoadedModel:
        """A package that serves, once more on another runtime, tested; the caller lets it serve, or closes it.

        Args:
            runtime: None for ONNX Runtime on the CPU.
            beside: What serves; both are there until one is closed.
        Raises:
            BudgetExceeded: There is no room for both.
            SelfTestFailed: It answers otherwise than the golden samples, beyond the runtime's tolerance.
            Exception: Whatever else the runtime raises.
        """
        with self._loading:
            self._memory.check(package, replaces=beside)
            loaded = self._on(package, runtime)
            try:
                self._memory.hold(loaded, replaces=beside)
            except BudgetExceeded:
                loaded.close()
                raise
            return loaded

    def exchange(self, old: LoadedModel, loaded: LoadedModel) -> bool:
        """As :meth:`Slots.exchange`, but not while a package is loaded to replace ``old``: it would be turned away."""
        with self._loading:
            return self._slots.exchange(old, loaded)

    def open_on_cpu(self, package: Package) -> InferenceBackend:
        """A package on ONNX Runtime, on the CPU, neither tested nor counted: for one that serves already."""
        return OnnxBackend(package, threads=self._threads.per_model, cache=self._cache)

    def index(self) -> list[IndexEntry]:
        """Every package of this device, as it lies on the disk now, with its state."""
        self._refresh()
        return self._slots.index()

    def _refresh(self) -> None:
        """Look at the disk, and bring the states of what does not serve in line with it."""
        with self._looking:
            self._catalogue.refresh()
            before = {(entry.name, entry.version): entry for entry in self._slots.index()}
            broken = {(each.name, each.version): each.reason for each in self._catalogue.broken}
            for key, known in self._catalogue.known.items():
                entry = before.get(key)
                if entry is None or (key in self._broken and key not in broken):
                    self._slots.mark(*key, known.package.digest, ModelState.UNLOADED, self._why_not(known))
                elif entry.state is ModelState.UNLOADED and entry.digest != known.package.digest:
                    self._slots.mark(*key, known.package.digest, ModelState.UNLOADED, entry.reason)
            for key, reason in broken.items():
                self._slots.mark(*key, before[key].digest if key in before else "", ModelState.UNAVAILABLE, reason)
            for key in before.keys() - self._catalogue.known.keys() - broken.keys():
                self._slots.forget(*key)
            self._broken = broken.keys()

    def _chosen(self) -> Iterable[Known]:
        """Of the folder's packages those that are loaded at the start, and pipelines of the fleet that lacked steps."""
        if self._policy == "none":
            return []
        everything = self._catalogue.known.values()
        folder = [known for known in everything if not known.installed]
        waiting = [known for known in everything if known.installed and known.active and is_pipeline(known)]
        if self._policy == "all":
            return [*folder, *waiting]
        names = {each.name for each in folder}
        return [*(highest(known for known in folder if known.name == name) for name in names), *waiting]

    def _serves(self, known: Known) -> bool:
        try:
            return self._slots.get(known.name, known.version).digest == known.package.digest
        except (UnknownModel, ModelUnavailable):
            return False

    def _why_not(self, known: Known) -> str:
        """Why a package that nobody has tried to load does not serve; empty where it does."""
        if self._serves(known):
            return ""
        return _KEPT if known.installed and not known.active else _NOT_ASKED

    def _load_steps(self, pipeline: Known) -> None:
        """Load the steps of a pipeline that are not loaded; nothing where it is none."""
        for step in pipeline.package.manifest.pipeline:
            if self._answers(step):
                continue
            # What is wrong with a step is said by load(), which looks for it, and never blamed on the pipeline.
            with contextlib.suppress(ShoalError):
                self._try(self._catalogue.find(step.model, step.version), WhatFor.STEP)

    def _answers(self, step: PipelineStep) -> bool:
        """Whether a step is loaded, or would be by its next request."""
        try:
            self._slots.get(step.model, step.version)
        except UnknownModel:
            return False
        except ModelUnavailable as error:
            return error.asleep
        return True

    def _try(self, known: Known, what_for: WhatFor) -> bool:
        try:
            self._load(known, what_for)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one package, the others must serve
            _log.warning("model %s %s is not loaded: %s", known.name, known.version, error)
            return False
        return True

    def _load(self, known: Known, what_for: WhatFor) -> LoadedModel:
        """Load, test and let serve; a failure is noted in the index."""
        name, version, digest = known.name, known.version, known.package.digest
        try:
            old: LoadedModel | None = self._slots.get(name, version)
        except (UnknownModel, ModelUnavailable):
            old = None
        asleep = version in self._versions(name) and old is None
        if old is None:
            self._slots.mark(name, version, digest, ModelState.LOADING)
        try:
            loaded = self._tested(known.package, old)
        except Exception as error:
            # A full budget may be empty again when the next request comes; a broken package will not mend itself.
            again = asleep and isinstance(error, BudgetExceeded)
            state = ModelState.UNLOADED if again else ModelState.UNAVAILABLE
            self._slots.mark(name, version, digest, state, str(error) or type(error).__name__)
            raise
        fleets = known.installed and known.active
        if not self._slots.replace(old, loaded, default=fleets):
            loaded.close()  # the fleet has installed another one meanwhile, which is newer than what was asked for
            return self._slots.get(name)
        self._told.loaded(loaded, what_for, again=old is not None)
        self._consider(loaded)
        return loaded

    def _versions(self, model: str) -> list[str]:
        try:
            return self._slots.versions(model)
        except UnknownModel:
            return []

    def _tested(self, package: Package, old: LoadedModel | None) -> LoadedModel:
        package.verify()
        loaded = self._prepare(package, old)
        try:
            prove(loaded, guard=self._guard)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def _prepare(
        self,
        package: Package,
        replaces: LoadedModel | None,
        *,
        is_refuge: bool = False,
        slots: ModelSource | None = None,
    ) -> LoadedModel:
        if not is_refuge:
            self._memory.check(package, replaces=replaces)
        for step in package.manifest.pipeline:
            # What is wrong with a step is said by load(), which looks for it, and never blamed on this package.
            with contextlib.suppress(ShoalError):
                self.wake(step.model, step.version)
        loaded = self._as_before(package) or self._load_package(package, slots=slots)
        try:
            self._memory.hold(loaded, replaces=replaces, refuse=not is_refuge)
        except BudgetExceeded:
            loaded.close()
            raise
        return loaded

    def _load_package(
        self, package: Package, runtime: OtherRuntime | None = None, *, slots: ModelSource | None = None
    ) -> LoadedModel:
        def load_as(variant: str) -> LoadedModel:
            threads, models, guard = self._threads.per_model, slots or self._slots, self._guard
            return load(
                package, variant=variant, threads=threads, cache=self._cache, slots=models, guard=guard, runtime=runtime
            )

        return load_as(FULL_PRECISION) if runtime is not None else self._variants.load(package, load_as)

    def _on(self, package: Package, runtime: OtherRuntime | None) -> LoadedModel:
        """Loaded and tested, whoever is to blame."""
        loaded = self._load_package(package, runtime)
        try:
            prove(loaded, guard=self._guard)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def _as_before(self, package: Package) -> LoadedModel | None:
        """On the runtime that it ran on best before; None where there is none, or it does not work any more."""
        acceleration = self._acceleration
        before = acceleration.remembered(package) if acceleration is not None else None
        if acceleration is None or before is None:
            return None
        try:
            loaded = self._on(package, before)
        except ModelUnavailable:  # the agent stops
            acceleration.interrupted(package)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the package is not to blame: ONNX Runtime runs it
            acceleration.refused(package, error)
            return None
        acceleration.proved(loaded)
        return loaded

    def _consider(self, loaded: LoadedModel) -> None:
        if self._acceleration is not None:
            self._acceleration.consider(loaded)

    def _unload_others(self, latest: Known, loaded: LoadedModel) -> None:
        """Versions that were loaded as the latest, and are not any more; those whose package is gone."""
        pinned = {(step.model, step.version) for each in self._in_memory() for step in each.manifest.pipeline}
        for each in self._slots.models():
            key = (each.name, each.version)
            if each.name != loaded.name or each is loaded:
                continue
            known = self._catalogue.known.get(key)
            if known is None:
                self._slots.remove(*key)
                self._told.unloaded(each, "its package is gone")
            elif (
                self._policy != "all"
                and key not in self._wanted
                and key not in pinned
                and known.installed == latest.installed
            ):
                reason = f"version {loaded.version} took its place"
                self._slots.unload(*key, reason=reason)
                self._told.unloaded(each, reason)

    def _load_waiting(self) -> None:
        """Load the pipelines whose steps were not there, the fleet's too; one may be the step of another."""
        progress = True
        while progress:
            progress = False
            packages = self._catalogue.known  # whoever looks at the disk meanwhile puts another in its place
            waiting = [entry for entry in self._slots.index() if entry.state is ModelState.UNAVAILABLE]
            for known in [packages[entry[:2]] for entry in waiting if entry[:2] in packages]:
                if known.package.manifest.pipeline and self._has_steps(known.package):
                    progress = self._try(known, WhatFor.STEPS_CAME) or progress

    def _is_pipeline(self, entry: IndexEntry) -> bool:
        known = self._catalogue.known.get((entry.name, entry.version))
        return known is not None and bool(known.package.manifest.pipeline)

    def _has_steps(self, pipeline: Package) -> bool:
        steps = pipeline.manifest.pipeline
        return all(step.version in (None, *self._versions(step.model)) and self._versions(step.model) for step in steps)

    def _collect(self) -> None:
        """A change is over: say which versions serve by default now, and drop what nothing needs any more."""
        self._told.settled(self._slots.index())
        packages = [*self._catalogue.packages(), *(each.package for each in self._in_memory())]
        if self._cache is not None:
            self._cache.collect(packages)
        if self._acceleration is not None:
            self._acceleration.collect([package.digest for package in packages])

    def _in_memory(self) -> set[LoadedModel]:
        """What serves, and what is loaded and about to."""
        return {*self._slots.models(), *self._memory.models()}

    def _idle_out(self, loaded: LoadedModel, idle_since: float) -> bool:
        """Unload a model for lack of requests, unless something needs it; whether it was."""
        with self._loading:  # not between the moment when a pipeline wakes its steps and that when it is one itself
            steps = {(step.model, step.version) for each in self._in_memory() for step in each.manifest.pipeline}
            if (loaded.name, loaded.version) in steps | self._catalogue.watched() or (loaded.name, None) in steps:
                return False
            return self._slots.unload(loaded.name, loaded.version, reason=_IDLE, idle_since=idle_since) is not None
