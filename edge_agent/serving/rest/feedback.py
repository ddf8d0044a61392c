"""Feedback: what the answer to an earlier request should have been."""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import Executor

import msgspec

from edge_agent.contract.errors import MalformedRequest
from edge_agent.runtime.slots import Slots
from edge_agent.serving.access import App
from edge_agent.serving.http.message import HttpRequest, HttpResponse, document
from edge_agent.serving.labels import LabelSink, asked_model, keep_label
from edge_agent.serving.rest.route import Target


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

    def __init__(self, slots: Slots, sink: LabelSink, threads: Executor) -> None:
        self._slots, self._sink, self._threads = slots, sink, threads
        self._decoder = msgspec.json.Decoder(_Feedback)

    async def __call__(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002 - a route's
        """Keep the label; it is on disk before the answer.

        Raises:
            MalformedRequest, UnknownModel, UnknownRequest, StorageFull: See :mod:`edge_agent.serving.labels`.
        """
        loaded = asked_model(self._slots, target.model)
        try:
            told = self._decoder.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedRequest(f"the feedback's JSON: {error}") from error
        keep = functools.partial(
            keep_label, self._sink, loaded, told.request_id, told.label, source=told.source, row=told.row
        )
        sampled = await asyncio.get_running_loop().run_in_executor(self._threads, keep)
        answer = {"model_name": target.model, "request_id": told.request_id, "accepted": True, "sampled": sampled}
        return document(answer)
