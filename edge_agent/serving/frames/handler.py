"""Answers the requests in frames: at once where the model is quick, else later. Called in the event loop's thread."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakKeyDictionary

from edge_agent.contract import frames
from edge_agent.contract.errors import CallerError, ModelUnavailable, Unsupported
from edge_agent.contract.frame_messages import (
    VERSION,
    Accepted,
    Describe,
    Feedback,
    Infer,
    ListModels,
    Metadata,
    Models,
    Pong,
    Request,
    ServedModel,
)
from edge_agent.contract.frames import Buffer
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.serving.access import Access, App
from edge_agent.serving.admission import Admission, HeldRoom
from edge_agent.serving.frames.answer_templates import FrameTemplates
from edge_agent.serving.frames.lane import FrameLanes, Reply
from edge_agent.serving.frames.plans import FramePlans
from edge_agent.serving.frames.tensors import gives_much_text, has_much_text, inference_request
from edge_agent.serving.inference import Inference, Waker
from edge_agent.serving.labels import LabelSink, asked_model, keep_label
from edge_agent.serving.peer import Peer
from edge_agent.serving.request import InferenceAnswer, InferenceRequest
from edge_agent.serving.shared_memory import Regions
from edge_agent.serving.waking import lease_awake

Parts = list[Buffer]
Later = Coroutine[Any, Any, Parts]


class FrameHandler:
    """Answers requests of all connections.

    Args:
        feedback: Takes labels.
        regions: Shared memory that applications have registered (over HTTP).
        admission: Room for large frames and for requests that leave the event loop.
        max_rows: Rows that one request may hold.
    """

    def __init__(
        self,
        *,
        slots: Slots,
        repository: Waker,
        inference: Inference,
        feedback: LabelSink,
        regions: Regions,
        access: Access,
        admission: Admission,
        agent_version: str,
        max_rows: int,
    ) -> None:
        self._slots, self._inference = slots, inference
        self._lease_awake = functools.partial(lease_awake, slots, repository, inference)
        self._feedback, self._regions = feedback, regions
        self._access, self._admission = access, admission
        self._agent_version, self._max_rows = agent_version, max_rows
        # They go with their model.
        self._templates: WeakKeyDictionary[LoadedModel, FrameTemplates] = WeakKeyDictionary()
        # Those looked for last: mostly the ones that are looked for next, and then found in a tenth of the time.
        self._latest: tuple[Callable[[], LoadedModel | None], FrameTemplates] = (_no_model, FrameTemplates(regions))
        read = functools.partial(inference_request, max_rows=max_rows, regions=regions)
        self._lanes = FrameLanes(slots, inference, decode=read, templates=self._templates_of)
        #: Answers now what :meth:`join` has left for the end of the turn.
        self.answer_joined = self._lanes.answer_now

    def identify(self, peer: Peer) -> App:
        """The application at the other end.

        Raises:
            Unauthenticated: Nobody here knows it.
        """
        return self._access.identify(peer, None)

    def room(self, size: int) -> HeldRoom:
        """Room for a small frame whose request leaves the event loop.

        Raises:
            Busy: There is none.
        """
        return self._admission.admit(size)

    def hold(self, size: int) -> HeldRoom:
        """Room for a large frame on its way.

        Raises:
            Busy: There is none.
        """
        return self._admission.hold(size)

    def reader(self) -> FramePlans:
        """What reads the frames of a new connection."""
        return FramePlans(self._max_rows)

    def answer(self, request: Request, app: App, decoded: InferenceRequest | None = None) -> Parts | Later:
        """The answer's frame at once, or a coroutine that gives it.

        Args:
            decoded: What it asks of its model, where the reader has found that out.
        Raises:
            ShoalError: The request is refused, or failed; the coroutine may raise it too.
        """
        if request.v != VERSION:
            raise Unsupported(f"frames of version {request.v} are not known here; this agent speaks {VERSION}")
        if isinstance(request, Infer):
            return self._infer(request, app, decoded)
        if isinstance(request, Feedback):
            self._access.enter(app, request.model)
            return self._take_feedback(request)
        if isinstance(request, ListModels):
            self._access.enter(app, None)
            return [self._models(request, app)]
        if isinstance(request, Describe):
            return self._metadata(request, app)
        return [frames.encode(Pong(id=request.id, agent=self._agent_version))]

    def join(self, request: Request, app: App, reply: Reply, decoded: InferenceRequest | None = None) -> int:
        """Have a request answered with others, at the end of this turn of the loop; how many wait for that now.

        0 where it cannot be.

        Args:
            decoded: See :meth:`answer`.
            reply: Takes the request's number, and its answer's frame or why there is none.
        Raises:
            ShoalError: The application may not ask.
        """
        if not isinstance(request, Infer) or request.v != VERSION:
            return 0
        return self._lanes.join(request, functools.partial(self._access.enter, app, request.model), reply, decoded)

    def _infer(self, request: Infer, app: App, decoded: InferenceRequest | None) -> Parts | Later:
        self._access.enter(app, request.model)
        try:
            lease = self._slots.lease(request.model, request.version or None)
        except ModelUnavailable as error:
            if not error.asleep:
                raise
            return self._infer_later(request, decoded)
        with lease as loaded:
            if not self._inference.inline(loaded) or (decoded is None and has_much_text(request)):
                return self._infer_later(request, decoded)
            if decoded is None:
                decoded = self._decode(loaded, request)
            if self._inference.is_long(loaded, decoded):
                return self._infer_later(request, decoded)
            return self._encode(loaded, request, decoded, self._inference.answer(loaded, decoded))

    async def _infer_later(self, request: Infer, decoded: InferenceRequest | None) -> Parts:
        in_thread = self._inference.in_thread
        with await self._lease_awake(request.model, request.version or None) as loaded:
            if decoded is None and has_much_text(request):
                decoded = await in_thread(self._decode, loaded, request)
            elif decoded is None:
                decoded = self._decode(loaded, request)
            answer = await self._inference.answer_later(loaded, decoded)
            if gives_much_text(answer):
                return await in_thread(self._encode, loaded, request, decoded, answer)
            return self._encode(loaded, request, decoded, answer)

    def _decode(self, loaded: LoadedModel, request: Infer) -> InferenceRequest:
        try:
            return inference_request(request, loaded.signature, max_rows=self._max_rows, regions=self._regions)
        except CallerError as error:
            if request.monitor:
                self._inference.refused(loaded, error)
            raise

    def _encode(self, loaded: LoadedModel, request: Infer, decoded: InferenceRequest, answer: InferenceAnswer) -> Parts:
        return self._templates_of(loaded).encode(request.id, decoded, answer)

    def _templates_of(self, loaded: LoadedModel) -> FrameTemplates:
        latest, templates = self._latest
        if latest() is loaded:
            return templates
        found = self._templates.get(loaded)
        if found is None:
            found = self._templates[loaded] = FrameTemplates(self._regions)
        self._latest = weakref.ref(loaded), found
        return found

    async def _take_feedback(self, request: Feedback) -> Parts:
        loaded = asked_model(self._slots, request.model)
        sampled = await self._inference.in_thread(
            keep_label,
            self._feedback,
            loaded,
            request.request,
            request.label,
            source=request.source,
            row=request.row,
        )
        return [frames.encode(Accepted(id=request.id, model=request.model, request=request.request, sampled=sampled))]

    def _models(self, request: ListModels, app: App) -> bytes:
        found = [
            ServedModel(
                entry.name, entry.version, entry.digest, self._slots.default_version(entry.name) == entry.version
            )
            for entry in self._slots.models()
            if app.permits(entry.name)
        ]
        return frames.encode(Models(id=request.id, models=found))

    def _metadata(self, request: Describe, app: App) -> Parts | Later:
        self._access.enter(app, request.model)
        try:
            return self._described(request, self._slots.get(request.model, request.version or None))
        except ModelUnavailable as error:
            if not error.asleep:
                raise
            return self._wake_and_describe(request)

    async def _wake_and_describe(self, request: Describe) -> Parts:
        with await self._lease_awake(request.model, request.version or None) as loaded:
            return self._described(request, loaded)

    def _described(self, request: Describe, loaded: LoadedModel) -> Parts:
        metadata = Metadata(
            id=request.id,
            model=loaded.name,
            version=loaded.version,
            package=loaded.digest,
            platform=loaded.backend.platform,
            signature=loaded.signature,
        )
        return [frames.encode(metadata)]


def _no_model() -> LoadedModel | None:
    return None
