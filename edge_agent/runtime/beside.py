"""Models that are loaded beside those that serve, seen as one with them: to test and swap what belongs together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from edge_agent.runtime.loaded import LoadedModel
from edge_agent.runtime.pipeline import PipelineBackend
from edge_agent.runtime.slots import Slots


class Beside:
    """Where a pipeline finds its steps before they serve: first among the candidates, then in the slots.

    Args:
        slots: Where models serve.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._candidates: dict[str, LoadedModel] = {}

    def add(self, loaded: LoadedModel) -> None:
        """Know a candidate; the caller closes it, or lets it serve."""
        self._candidates[loaded.name] = loaded

    def forget(self) -> None:
        """The candidates serve, or are closed: from now on only the slots count."""
        self._candidates = {}

    def get(self, model: str, version: str | None = None) -> LoadedModel:
        """The candidate of that name, or what serves.

        Raises:
            UnknownModel, ModelUnavailable: See :meth:`Slots.get`.
        """
        return self._candidate(model, version) or self._slots.get(model, version)

    def lease(self, model: str, version: str | None = None) -> contextlib.AbstractContextManager[LoadedModel]:
        """Hold it for the length of a ``with`` block; a candidate is its owner's to keep open so long.

        Raises:
            UnknownModel, ModelUnavailable: See :meth:`Slots.get`.
        """
        candidate = self._candidate(model, version)
        return self._slots.lease(model, version) if candidate is None else contextlib.nullcontext(candidate)

    def _candidate(self, model: str, version: str | None) -> LoadedModel | None:
        found = self._candidates.get(model)
        return found if found is not None and version in (None, found.version) else None


def swap_together(slots: Slots, *models: LoadedModel, again: Sequence[LoadedModel] = ()) -> None:
    """Let models serve that belong together, in one step; a pipeline that leaves ends its requests on its own steps.

    Args:
        again: Pipelines that serve already, loaded once more with their new steps: they keep their places.
    Raises:
        ModelLoadFailed: One was closed before; none is installed.
    """
    for default, group in ((True, models), (False, again)):
        for loaded in group:
            for old in slots.leaving_for(loaded, default=default):
                if isinstance(old.backend, PipelineBackend):
                    old.backend.hold()
    slots.install_together(models, again)
