"""What the agent's log says of loads and unloads: the operator's answer to "what serves here, and since when?"."""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterable

from edge_agent.runtime.loaded import LoadedModel
from edge_agent.runtime.slots import IndexEntry, ModelState

_log = logging.getLogger(__name__)


class WhatFor(str, enum.Enum):
    """Why a model was loaded."""

    START = "at the start"
    REQUEST = "on request"
    WOKEN = "asked for after it was unloaded as idle"
    STEP = "a step of a pipeline"
    STEPS_CAME = "its steps are here now"
    INSTALLED = "installed by the fleet or by hand"


class LoadLog:
    """Tells loads and unloads, and which version serves by default when that changes. For one thread at a time.

    Requests never come here: it is told of loads alone, and looks at the index when they are over.
    """

    def __init__(self) -> None:
        self._defaults: dict[str, str] = {}

    def loaded(self, model: LoadedModel, what_for: WhatFor, *, again: bool = False) -> None:
        """A model serves."""
        _log.info("model %s %s loaded%s: %s", model.name, model.version, " again" if again else "", what_for.value)

    def unloaded(self, model: LoadedModel, why: str) -> None:
        """A model serves no longer."""
        _log.info("model %s %s unloaded: %s", model.name, model.version, why)

    def settled(self, index: Iterable[IndexEntry]) -> None:
        """A change is over: name the versions that serve by default now and did not before."""
        for entry in index:
            if not entry.default or entry.state is not ModelState.READY:
                continue
            before = self._defaults.get(entry.name, entry.version)
            self._defaults[entry.name] = entry.version
            if before != entry.version:
                _log.info("model %s: version %s serves by default now, before %s", entry.name, entry.version, before)
