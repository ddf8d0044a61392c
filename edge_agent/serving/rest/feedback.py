"""Feedback: what the answer to an earlier request should have been."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol

import msgspec

from edge_agent.contract.errors import MalformedRequest, UnknownRequest
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.serving.access import App
from edge_agent.serving.http.message import HttpRequest, HttpResponse, document
from edge_agent.serving.rest.route import Target


class FeedbackSink(Protocol):
    """Who takes labels; may block on the disk."""

    def feedback(self, loaded: LoadedModel, request_id: str, label: str | int, source: str) -> None:
        """Keep a label for an earlier request; it is safe when this returns.

        Raises:
            UnknownRequest: Nobody remembers the request.
            MalformedRequest: The model has no such class.
            StorageFull: It could not be kept.
        """


class _Feedback(msgspec.Struct, forbid_unknown_fields=True):
    request_id: str
    label: str | int
    source: str = "application"
    row: int | None = None


class FeedbackRoute:
    """Answers ``POST /v2/models/M/feedback``.

    Args:
        threads: Where the disk may be waited for.
    """

    def __init__(self, slots: Slots, sink: FeedbackSink, threads: Executor) -> None:
        self._slots, self._sink, self._threads = slots, sink, threads
        self._decoder = msgspec.json.Decoder(_Feedback)

    async def __call__(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002 - a route's
        """Keep the label; it is on disk before the answer.

        Raises:
            MalformedRequest, UnknownModel, UnknownRequest, StorageFull: See :class:`FeedbackSink`.
        """
        # A label may come when the model is asleep: it is told by what it served as, and need not wake up.
        loaded = self._slots.last_served(target.model) or self._slots.get(target.model)
        try:
            told = self._decoder.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedRequest(f"the feedback's JSON: {error}") from error
        keep = self._sink.feedback
        await asyncio.get_running_loop().run_in_executor(self._threads, _keep, keep, loaded, told)
        return document({"model_name": target.model, "request_id": told.request_id, "accepted": True})


def _keep(keep: Callable[[LoadedModel, str, str | int, str], None], loaded: LoadedModel, told: _Feedback) -> None:
    """A request of one row is remembered by its id alone; its application may name row 0 all the same."""
    row = told.row
    if row is None:
        keep(loaded, told.request_id, told.label, told.source)
        return
    if row < 0:
        raise MalformedRequest(f"the feedback's row is {row}: rows count from 0")
    try:
        keep(loaded, f"{told.request_id}/{row}", told.label, told.source)
    except UnknownRequest:
        if row:
            raise
        keep(loaded, told.request_id, told.label, told.source)
