"""Inference requests whose head is that of the request before: all that the head decides was decided then.

An application sends the same head again and again. Who it is, which path it asks, where its JSON ends and how it wants
its answer need not be looked at each time; what may differ from one request to the next is: permission and quota, the
model that serves, whether it still runs in the event loop, and the body. A third less work for a small request.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.contract.errors import CallerError, ShoalError
from edge_agent.runtime.slots import LoadedModel
from edge_agent.serving.access import App
from edge_agent.serving.http.message import Buffer, Reply
from edge_agent.serving.json_request import names_text_elsewhere
from edge_agent.serving.request import InferenceRequest
from edge_agent.serving.rest.lane import Lane, framed


class Express:
    """Answers the requests of one connection that have one head; called in the event loop's thread.

    Args:
        app: Who asks.
        count: Told of every request that is refused or fails.
    """

    __slots__ = ("_app", "_count", "_lane")

    def __init__(self, lane: Lane, *, app: App, count: Callable[[ShoalError], None]) -> None:
        self._lane, self._app, self._count = lane, app, count

    def answer(self, body: bytes | memoryview) -> bytes | list[Buffer] | None:
        """The bytes of the response, with its head; None where it has to go the ordinary way, nothing counted yet.

        Raises:
            ShoalError: The request is refused, or failed.
        """
        return self._answer(body, None)

    def join(self, body: bytes, reply: Reply) -> int:
        """See :meth:`edge_agent.serving.http.message.Express.join`."""
        lane = self._lane
        if not lane.takes(body):
            return 0
        try:
            self._app.enter(lane.model, control=False)
        except ShoalError as error:
            self._count(error)
            raise
        return lane.join(self, body, reply)

    def answer_entered(self, body: bytes, came_ns: int) -> bytes | list[Buffer] | None:
        """See :class:`edge_agent.serving.rest.lane.Asker`."""
        answer = self._answer(body, came_ns)
        if answer is None:
            self._app.leave()
        return answer

    def _answer(self, body: bytes | memoryview, entered_ns: int | None) -> bytes | list[Buffer] | None:
        """See :meth:`answer`.

        Args:
            entered_ns: When the request was let in; None where it is to be.
        """
        lane = self._lane
        inference, model = lane.inference, lane.model
        try:
            lease = lane.slots.lease(model, lane.version)
        except ShoalError:
            return None
        with lease as loaded:
            if lane.loaded() is not loaded:
                lane.adopt(loaded)
            if not loaded.inline:
                lane.joins = False  # it was thought to be quick
                return None
            if len(body) > lane.limit_bytes:
                return None
            if lane.takes_text and names_text_elsewhere(loaded.signature, body):
                return None
            try:
                if entered_ns is None:
                    self._app.enter(model, control=False)
                request = self._decode(loaded, body)
                if inference.is_long(loaded, request):  # a short body may name much in shared memory
                    if entered_ns is None:
                        self._app.leave()
                    return None
                parts, length = lane.templates.encode(request, inference.answer(loaded, request, entered_ns))
            except ShoalError as error:
                self._count(error)
                raise
        return framed(parts, length)

    def _decode(self, loaded: LoadedModel, body: Buffer) -> InferenceRequest:
        try:
            return self._lane.plans.decode(body, self._lane.json_length)
        except CallerError as error:
            self._lane.inference.refused(loaded, error)
            raise
