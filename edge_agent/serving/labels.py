"""Labels for earlier requests, whatever brought them."""

from __future__ import annotations

from typing import Protocol

from edge_agent.contract.errors import MalformedRequest
from edge_agent.runtime.slots import LoadedModel, Slots

_LONGEST_SOURCE = 64


class LabelSink(Protocol):
    """Who takes labels; may block on the disk."""

    def feedback(
        self, loaded: LoadedModel, request_id: str, label: str | int, source: str, *, row: int | None = None
    ) -> bool:
        """Keep a label for an earlier request; it is safe when this returns.

        Args:
            row: Of a request of several rows; 0 of a request of one may be named or not.
        Returns:
            Whether the request's row was sampled, so that the label can teach something.
        Raises:
            UnknownRequest: Nobody remembers the request.
            MalformedRequest: The model has no such class.
            StorageFull: It could not be kept.
        """


def asked_model(slots: Slots, model: str) -> LoadedModel:
    """The model that earlier requests were answered by; a label may come when it is asleep, and need not wake it.

    Raises:
        UnknownModel, ModelUnavailable: None has served under this name.
    """
    return slots.last_served(model) or slots.get(model)


def keep_label(
    sink: LabelSink, loaded: LoadedModel, request_id: str, label: str | int, *, source: str, row: int | None
) -> bool:
    """Keep a label for a request, or for one row of it.

    A request of one row is remembered by its name alone; its application may name row 0 all the same.

    Returns:
        Whether the row was sampled, so that the label can teach something; counted.
    Raises:
        UnknownRequest, MalformedRequest, StorageFull: See :class:`LabelSink`.
    """
    if row is not None and row < 0:
        raise MalformedRequest(f"the feedback's row is {row}: rows count from 0")
    if len(source) > _LONGEST_SOURCE:
        raise MalformedRequest(f"the feedback's source: at most {_LONGEST_SOURCE} characters, got {len(source)}")
    sampled = sink.feedback(loaded, request_id, label, source, row=row)
    loaded.statistics.labelled(sampled)
    return sampled
