"""Slots: which models serve under which names and versions, and how one replaces another without a request noticing.

A slot is one reference. A request leases the model that it finds there and keeps it to the end; the replaced model is
closed when the last lease on it ends. Names whose model is known, but not loaded, say why.

Leases take no lock: there are as many as requests, and a thread that loses the processor while it holds a lock stops
all others. Who takes a lease notes it first and then looks whether the model was retired; who retires a model marks it
first and then looks for leases. So at least one of the two sees the other, and the last one out closes the model.
"""

from __future__ import annotations

import dataclasses
import enum
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from edge_agent.contract.errors import ModelLoadFailed, ModelUnavailable, ShoalError, UnknownModel
from edge_agent.runtime.loaded import INLINE_LIMIT_US, LARGE_BYTES, LoadedModel, load
from edge_agent.runtime.versions import natural_order

__all__ = ["INLINE_LIMIT_US", "IndexEntry", "Lease", "LoadedModel", "ModelState", "Slots", "load"]

# What every advice to load begins with, so that one is enough.
_CURE = "; load it"


class ModelState(str, enum.Enum):
    """What a version of a model is; written as the protocol's repository index has it."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNLOADED = "UNLOADED"
    UNAVAILABLE = "UNAVAILABLE"


class IndexEntry(NamedTuple):
    """One version of a model that is known here.

    Args:
        reason: Why it is not loaded; of a version that serves, why loading it again failed, else what there is to say
            of the runtime that it runs on.
        default: Whether requests that name no version get this one.
    """

    name: str
    version: str
    digest: str
    state: ModelState
    reason: str
    default: bool


@dataclasses.dataclass(eq=False)
class _Slot:
    """One version of a model.

    Args:
        loaded: What serves; ``earlier``: what did last, for its counts; ``leaving``: closed when its leases end.
        asleep: Not loaded because nobody asked; unless it is unavailable meanwhile, the next request wakes it.
    """

    digest: str
    state: ModelState = ModelState.UNLOADED
    reason: str = ""
    asleep: bool = False
    loaded: LoadedModel | None = None
    earlier: LoadedModel | None = None
    leaving: LoadedModel | None = None

    @property
    def wakes(self) -> bool:
        return self.asleep and self.state is not ModelState.UNAVAILABLE

    @property
    def usable(self) -> bool:
        return self.loaded is not None or self.wakes


class Slots:
    """The models of this device, by name and version. Every method may be called from any thread.

    Args:
        when_empty: What to do where there is no model at all; said to those who ask for one.
    """

    def __init__(self, *, when_empty: str = "") -> None:
        self._when_empty = when_empty
        self._slots: dict[str, dict[str, _Slot]] = {}
        self._defaults: dict[str, str] = {}
        self._installed: dict[str, str] = {}
        # What requests look into: the same once more, flat.
        self._serving: dict[str, LoadedModel] = {}
        self._serving_versions: dict[tuple[str, str], LoadedModel] = {}
        self._versions_asked: dict[tuple[str, str], None] = {}
        self._lock = threading.Lock()

    def get(self, model: str, version: str | None = None) -> LoadedModel:
        """The model that serves under this name; it may be replaced any time: to run it, take a lease.

        Args:
            version: None takes the default one.
        Raises:
            UnknownModel: There is none, or not in this version.
            ModelUnavailable: It is known, but not loaded; ``asleep`` where the next request should wake it.
        """
        loaded = self._serving.get(model) if version is None else self._serving_versions.get((model, version))
        if loaded is None:
            raise self._missing(model, version)
        return loaded

    def lease(self, model: str, version: str | None = None) -> Lease:
        """Hold the model for the length of a ``with`` block: it is not closed before.

        Raises:
            UnknownModel, ModelUnavailable: See :meth:`get`.
        """
        while True:
            loaded = self._serving.get(model) if version is None else self._by_name(model, version)
            if loaded is None:
                raise self._missing(model, version)
            loaded.leases.append(None)
            lease: Lease = loaded.lease
            if not loaded.retired:
                return lease
            lease.__exit__(None, None, None)  # replaced this very moment: take the one in its place

    def take_versions_asked(self) -> list[tuple[str, str]]:
        """Which (model, version) were leased by the version's name since the last call."""
        asked, self._versions_asked = self._versions_asked, {}
        return list(asked)

    def install(self, loaded: LoadedModel, *, default: bool = True) -> LoadedModel | None:
        """Let ``loaded`` serve under its name and version from now on; atomic.

        Args:
            default: It takes the place of the one that was installed so before, in whatever version, and is the
                default of its name. Else it serves beside other versions, in place of the same one.
        Returns:
            The model that it replaces, if any: closed when its last request ends, so load it again to go back.
        Raises:
            ModelLoadFailed: It was replaced before, and so closed.
        """
        with self._lock:
            replaced = self._install(loaded, default=default)
        for old in replaced:
            self._retire(old)
        return replaced[-1] if replaced else None

    def install_together(self, models: Sequence[LoadedModel], again: Sequence[LoadedModel] = ()) -> None:
        """As :meth:`install`, of several at once: no request that begins finds some of them and not the others.

        Args:
            again: Packages that serve already, loaded once more: they keep their places.
        Raises:
            ModelLoadFailed: One was replaced before, and so closed; none is installed.
        """
        with self._lock:
            for loaded in (*models, *again):
                self._refuse_retired(loaded)
            replaced = [old for loaded in models for old in self._install(loaded, default=True)]
            for loaded in again:
                replaced += self._install(loaded, default=self._installed.get(loaded.name) == loaded.version)
        for old in replaced:
            self._retire(old)

    def leaving_for(self, loaded: LoadedModel, *, default: bool) -> list[LoadedModel]:
        """What :meth:`install` of ``loaded`` would replace."""
        with self._lock:
            return self._leaving_for(loaded, default=default)

    def replace(self, old: LoadedModel | None, loaded: LoadedModel, *, default: bool) -> bool:
        """As :meth:`install`, but only where its version is still what it was when somebody began to load it.

        Args:
            old: What served then in this version; None where it was not loaded.
        Returns:
            Whether ``loaded`` serves now; else it is still the caller's to close.
        """
        with self._lock:
            slot = self._slots.get(loaded.name, {}).get(loaded.version)
            serving = slot.loaded if slot is not None else None
            overtaken = default and self._installed.get(loaded.name, loaded.version) != loaded.version
            if serving is not old or overtaken:
                return False
            replaced = self._install(loaded, default=default)
        for each in replaced:
            self._retire(each)
        return True

    def exchange(self, old: LoadedModel, loaded: LoadedModel) -> bool:
        """Let the same package serve on another runtime, where ``old`` serves still; counts go on, defaults stay.

        Returns:
            Whether ``loaded`` serves now; else it is still the caller's to close.
        """
        with self._lock:
            slot = self._slots.get(old.name, {}).get(old.version)
            if slot is None or slot.loaded is not old or loaded.digest != old.digest:
                return False
            reason = slot.reason
            self._install(loaded, default=self._installed.get(old.name) == old.version)
            slot.reason = reason  # that loading it again failed is no less true
        self._retire(old)
        return True

    def remove(self, model: str, version: str | None = None) -> None:
        """Know no such model, or version of it, any more; it is closed when its last request ends.

        Args:
            version: None takes the default one.
        Raises:
            UnknownModel: There is none.
        """
        with self._lock:
            version, slot = self._slot(model, version)
            old = slot.loaded
            self._forget(model, version)
        if old is not None:
            self._retire(old)

    def unload(
        self, model: str, version: str | None = None, *, reason: str, idle_since: float | None = None
    ) -> LoadedModel | None:
        """Let a version no longer serve, but stay known; it is closed when its last request ends.

        Args:
            reason: Why; said to those who ask for it.
            idle_since: Only where nobody has used it since then (``time.monotonic``) or uses it now; the next request
                shall wake it.
        Returns:
            What has served; None where nothing did, or it was not idle.
        Raises:
            UnknownModel: There is no such model.
        """
        with self._lock:
            version, slot = self._slot(model, version)
            old = slot.loaded
            if idle_since is not None and (old is None or old.leases or old.last_used > idle_since):
                return None
            slot.state, slot.reason, slot.asleep = ModelState.UNLOADED, reason, idle_since is not None
            if old is None:
                self._settle(model)
                return None
            slot.loaded, slot.earlier = None, old
            self._settle(model)
            old.retired = True
            slot.leaving = old if old.leases else None
        self._retire(old)
        return old

    def mark(
        self, model: str, version: str, digest: str, state: ModelState, reason: str = "", *, installed: bool = False
    ) -> None:
        """Say what a version is that does not serve; of one that serves, only why loading it again failed.

        Args:
            installed: Whether it is the default of its name, loaded or not.
        """
        with self._lock:
            slot = self._slots.setdefault(model, {}).setdefault(version, _Slot(digest))
            slot.reason = reason
            if slot.loaded is None:
                slot.state, slot.digest = state, digest
            if installed:
                self._installed[model] = version
            self._settle(model)

    def forget(self, model: str, version: str) -> None:
        """Know a version no more that does not serve."""
        with self._lock:
            slot = self._slots.get(model, {}).get(version)
            if slot is not None and slot.loaded is None:
                self._forget(model, version)

    def models(self) -> list[LoadedModel]:
        """The models that serve, by name and version."""
        with self._lock:
            return [
                slot.loaded
                for _, slots in sorted(self._slots.items())
                for _, slot in sorted(slots.items(), key=lambda item: natural_order(item[0]))
                if slot.loaded is not None
            ]

    def default_version(self, model: str) -> str:
        """The version that requests get which name none.

        Raises:
            UnknownModel: There is no such model.
        """
        with self._lock:
            return self._slot(model, None)[0]

    def versions(self, model: str) -> list[str]:
        """The versions that answer requests, those asleep included.

        Raises:
            UnknownModel: There is no such model.
        """
        with self._lock:
            self._slot(model, None)
            return sorted((version for version, slot in self._slots[model].items() if slot.usable), key=natural_order)

    def last_served(self, model: str) -> LoadedModel | None:
        """What serves under this name by default, or did until it was unloaded: for its manifest and counts."""
        with self._lock:
            slot = self._slots.get(model, {}).get(self._defaults.get(model, ""))
            return (slot.loaded or slot.earlier) if slot is not None else None

    def index(self) -> list[IndexEntry]:
        """All that is known, by name and version."""
        with self._lock:
            return [
                IndexEntry(
                    name=name,
                    version=version,
                    digest=slot.digest,
                    state=ModelState.UNLOADING if slot.leaving is not None and slot.loaded is None else slot.state,
                    reason=slot.reason or (slot.loaded.runtime_text if slot.loaded is not None else ""),
                    default=self._defaults.get(name) == version,
                )
                for name, slots in sorted(self._slots.items())
                for version, slot in sorted(slots.items(), key=lambda item: natural_order(item[0]))
            ]

    def close(self) -> None:
        """Know and serve nothing any more."""
        with self._lock:
            serving = list(self._serving_versions.values())
            self._slots, self._defaults, self._installed = {}, {}, {}
            self._serving, self._serving_versions = {}, {}
        for loaded in serving:
            self._retire(loaded)

    # What follows is called under the lock, but for _by_name, _missing, _retire and _close.

    def _by_name(self, model: str, version: str) -> LoadedModel | None:
        key = (model, version)
        loaded = self._serving_versions.get(key)
        if loaded is not None:
            self._versions_asked[key] = None
        return loaded

    def _install(self, loaded: LoadedModel, *, default: bool) -> list[LoadedModel]:
        """What it replaces; the last of them in the same place."""
        name, version = loaded.name, loaded.version
        self._refuse_retired(loaded)
        replaced = self._leaving_for(loaded, default=default)
        slot = self._slots.setdefault(name, {}).setdefault(version, _Slot(loaded.digest))
        earlier = slot.loaded or slot.earlier
        if earlier is not None and earlier is not loaded and earlier.digest == loaded.digest:
            loaded.go_on_from(earlier)
        slot.digest, slot.state, slot.reason, slot.asleep = loaded.digest, ModelState.READY, "", False
        slot.loaded, slot.earlier = loaded, None
        loaded.lease = Lease(self, loaded)  # one for all requests: it holds no state of its own
        if default:
            before = self._installed.get(name, version)
            if before != version:
                self._forget(name, before)
            self._installed[name] = version
        self._settle(name)
        return replaced

    def _refuse_retired(self, loaded: LoadedModel) -> None:
        if loaded.retired:
            raise ModelLoadFailed(f"model '{loaded.name}' {loaded.version} is closed: load its package again")

    def _leaving_for(self, loaded: LoadedModel, *, default: bool) -> list[LoadedModel]:
        """What it will replace; the last of them in the same place."""
        versions = [loaded.version]
        if default:
            versions += {self._installed.get(loaded.name, loaded.version)} - {loaded.version}
        slots = self._slots.get(loaded.name, {})
        found = [slots[version].loaded for version in versions if version in slots]
        return [old for old in found if old is not None and old is not loaded]

    def _forget(self, model: str, version: str) -> None:
        slots = self._slots.get(model, {})
        slots.pop(version, None)
        if self._installed.get(model) == version:
            del self._installed[model]
        if not slots:
            self._slots.pop(model, None)
        self._serving_versions.pop((model, version), None)
        self._settle(model)

    def _settle(self, model: str) -> None:
        """Bring the default and the tables for requests in line with the slots."""
        slots = self._slots.get(model, {})
        default = self._installed.get(model)
        if default is None:
            candidates = [version for version, slot in slots.items() if slot.usable] or list(slots)
            default = max(candidates, key=natural_order, default=None)
        if default is None:
            self._defaults.pop(model, None)
        else:
            self._defaults[model] = default
        for version, slot in slots.items():
            if slot.loaded is not None:
                self._serving_versions[model, version] = slot.loaded
            else:
                self._serving_versions.pop((model, version), None)
        served = slots[default].loaded if default in slots else None
        if served is not None:
            self._serving[model] = served
        else:
            self._serving.pop(model, None)

    def _slot(self, model: str, version: str | None) -> tuple[str, _Slot]:
        slots = self._slots.get(model)
        if not slots:
            known = ", ".join(sorted(self._slots)) or f"none yet{self._when_empty and ': '}{self._when_empty}"
            raise UnknownModel(f"model '{model:.100}' is not served here; served are: {known}")
        wanted = self._defaults[model] if version is None else version
        if wanted not in slots:
            known = ", ".join(f"'{each}'" for each in sorted(slots, key=natural_order))
            raise UnknownModel(f"model '{model}' has no version '{version:.100}' here; it is at version {known}")
        return wanted, slots[wanted]

    def _missing(self, model: str, version: str | None) -> ShoalError:
        """Why nothing serves under this name."""
        with self._lock:
            try:
                wanted, slot = self._slot(model, version)
            except UnknownModel as error:
                return error
            if slot.loaded is not None:
                return ModelUnavailable(f"model '{model}' was loaded this very moment: ask again", asleep=True)
            state, reason = slot.state.value.lower(), slot.reason or "not loaded"
            cure = self._cure(model, slot)
            if _CURE not in reason and not reason.endswith(cure):  # that of a pipeline may have its step's
                reason += cure
            missing = ModelUnavailable(f"model '{model}' version '{wanted}' is {state}: {reason}", asleep=slot.wakes)
            missing.waiting_helps = slot.wakes or slot.state is ModelState.LOADING
            return missing

    def _cure(self, model: str, slot: _Slot) -> str:
        """What to do about a version that is not loaded."""
        if slot.wakes:
            return "; the next request loads it"
        if slot.state is ModelState.LOADING:
            return "; ask again in a moment"
        others = [f"'{version}'" for version, other in self._slots[model].items() if other.usable]
        instead = f", or ask for a version that answers: {', '.join(sorted(others))}" if others else ""
        # What is unavailable has said already what must be mended first.
        return f"{_CURE}{' again then' if slot.state is ModelState.UNAVAILABLE else ''}{instead}"

    def _retire(self, old: LoadedModel) -> None:
        old.retired = True
        if not old.leases:
            old.close()

    def _left(self, loaded: LoadedModel) -> None:
        """The last lease on a retired model has ended, in the thread of a request."""
        with self._lock:
            slot = self._slots.get(loaded.name, {}).get(loaded.version)
            if slot is not None and slot.leaving is loaded:
                slot.leaving = None
        if loaded.memory_bytes < LARGE_BYTES:
            loaded.close()
        else:  # takes milliseconds, in which an event loop would answer nobody
            threading.Thread(target=loaded.close, name="close-model", daemon=True).start()


class Lease:
    """A model held for one request, from :meth:`Slots.lease` to the end of the ``with`` block."""

    __slots__ = ("_loaded", "_slots")

    def __init__(self, slots: Slots, loaded: LoadedModel) -> None:
        self._slots, self._loaded = slots, loaded

    def __enter__(self) -> LoadedModel:
        return self._loaded

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loaded = self._loaded
        loaded.last_used = time.monotonic()
        loaded.leases.pop()
        if loaded.retired and not loaded.leases:
            self._slots._left(loaded)  # noqa: SLF001 - the other half of lease()
