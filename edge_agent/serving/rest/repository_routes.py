"""The protocol's model-repository extension: which packages this device holds, and loading and unloading them."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import msgspec

from edge_agent.contract.errors import (
    CallerError,
    MalformedRequest,
    ModelUnavailable,
    PackageError,
    TrustError,
    UnknownModel,
    Unsupported,
)
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.slots import ModelState, Slots
from edge_agent.serving.access import App
from edge_agent.serving.http.message import HttpRequest, HttpResponse, document
from edge_agent.serving.rest.route import Target

log = logging.getLogger(__name__)


class LoadRefused(CallerError):
    """The package that was to be loaded is wrong; the model that served before goes on serving."""


class _IndexRequest(msgspec.Struct, forbid_unknown_fields=True):
    ready: bool = False


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    parameters: dict[str, Any] = {}


class RepositoryRoutes:
    """Answers ``/v2/repository/...``; each method is the answer of one route.

    Args:
        threads: Where models are loaded: seconds of work that must not keep inference waiting.
        disk: Where the disk is looked at.
    """

    def __init__(self, slots: Slots, repository: Repository, threads: Executor, disk: Executor) -> None:
        self._slots, self._repository, self._threads, self._disk = slots, repository, threads, disk
        self._index_decoder = msgspec.json.Decoder(_IndexRequest)
        self._decoder = msgspec.json.Decoder(_Body)

    async def index(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002 - a route's
        """``POST /v2/repository/index``: every package, with ``{"ready": true}`` those that serve.

        Raises:
            MalformedRequest: The body is no such request.
        """
        wanted = _decode(self._index_decoder, request) if request.body else _IndexRequest()
        entries = await asyncio.get_running_loop().run_in_executor(self._disk, self._repository.index)
        return document(
            [
                {"name": entry.name, "version": entry.version, "state": entry.state.value, "reason": entry.reason}
                for entry in entries
                if app.permits(entry.name) and (entry.state is ModelState.READY or not wanted.ready)
            ]
        )

    async def load(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002
        """``POST /v2/repository/models/M/load``: load it, or load it again; what served before serves until then.

        Raises:
            Unsupported: The request brings a model or a configuration of its own.
            LoadRefused: The package is wrong.
            BudgetExceeded: There is no memory for it.
        """
        parameters = self._parameters(request)
        for name in parameters:
            if name == "config" or name.startswith("file:"):
                raise Unsupported(
                    f"parameter '{name}': a device serves signed packages as they are; put another package where the "
                    "fleet or the folder runtime.models brings it from"
                )
        version = _version(parameters, {"version"})
        try:
            loaded = await self._in_thread(lambda: self._repository.load(target.model, version))
        except (PackageError, TrustError) as error:
            log.warning("model %s could not be loaded on request: %s", target.model, error)
            raise LoadRefused(f"model '{target.model}' was not loaded: {error}") from error
        return document({"name": loaded.name, "version": loaded.version, "state": ModelState.READY.value})

    async def unload(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:
        """``POST /v2/repository/models/M/unload``: no new requests; its memory comes back with the last one's end.

        With ``unload_dependents`` the models that a pipeline runs go too, those that ``app`` may ask.
        """
        parameters = self._parameters(request)
        version = _version(parameters, {"version", "unload_dependents"})
        dependents = parameters.get("unload_dependents", False)
        if not isinstance(dependents, bool):
            raise MalformedRequest(f"parameter 'unload_dependents' is true or false, got {dependents!r:.40}")
        steps = self._steps(target.model, version) if dependents else []
        await self._in_thread(lambda: self._repository.unload(target.model, version))
        for model, of_version in steps:
            if app.permits(model):
                await self._in_thread(functools.partial(self._unload_step, model, of_version))
        return document({"name": target.model, "state": ModelState.UNLOADED.value})

    def _steps(self, model: str, version: str | None) -> list[tuple[str, str | None]]:
        try:
            manifest = self._slots.get(model, version).manifest
        except ModelUnavailable:
            return []  # not loaded: the unloading itself says so
        return [(step.model, step.version) for step in manifest.pipeline]

    def _unload_step(self, model: str, version: str | None) -> None:
        try:
            self._repository.unload(model, version)
        except (UnknownModel, ModelUnavailable) as error:
            log.info("nothing to unload: %s", error)

    def _parameters(self, request: HttpRequest) -> dict[str, Any]:
        return _decode(self._decoder, request).parameters if request.body else {}

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        doing = self._threads.submit(work)
        waiting = asyncio.wrap_future(doing)
        waiting.add_done_callback(_take_note)
        try:
            # Shielded: an application that hangs up leaves no half-loaded model behind.
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            doing.cancel()  # where it has not begun: else whoever asks and hangs up keeps all others waiting
            raise


def _take_note(done: asyncio.Future[Any]) -> None:
    """Where the application has gone, nobody else asks how it went; the index knows."""
    if not done.cancelled():
        done.exception()


def _decode(decoder: msgspec.json.Decoder[Any], request: HttpRequest) -> Any:
    try:
        return decoder.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        members: dict[Any, str] = {_Body: '{"parameters": {...}}', _IndexRequest: '{"ready": true}'}
        hint = f"; it takes {members[decoder.type]}" if isinstance(error, msgspec.ValidationError) else ""
        raise MalformedRequest(f"{request.path}: the request's JSON: {error}{hint}") from error


def _version(parameters: dict[str, Any], known: set[str]) -> str | None:
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise MalformedRequest(f"no such parameter: {unknown[0]!r:.60}; there are: {', '.join(sorted(known))}")
    version = parameters.get("version")
    if version is not None and (isinstance(version, bool) or not isinstance(version, str | int)):
        raise MalformedRequest(f"parameter 'version' is a version as the index names it, got {version!r:.40}")
    return None if version is None else str(version)
