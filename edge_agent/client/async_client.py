"""The client for asyncio programs: any number of requests side by side on one connection."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import cast, final

from edge_agent.client.answers import (
    Answer,
    ModelMetadata,
    Outputs,
    Tensors,
    answer_of,
    expect,
    infer_frame,
    infer_message,
    metadata_of,
)
from edge_agent.client.connection import ConnectionEnded
from edge_agent.client.sync_client import ANSWER_LIMIT_BYTES
from edge_agent.contract import frame_messages, frames
from edge_agent.contract.errors import DeadlineExceeded, MessageError, NetworkError, ShoalError
from edge_agent.contract.failures import error_of
from edge_agent.contract.frame_messages import (
    VERSION,
    Accepted,
    Describe,
    Failure,
    Feedback,
    Inferred,
    ListModels,
    Metadata,
    Models,
    Ping,
    Pong,
    ServedModel,
)
from edge_agent.contract.frames import Buffer
from edge_agent.contract.framing import FrameBuffer


@final
class AsyncClient:
    """Asks the agent's models over its frames socket; coroutines of one event loop share the connection.

    It connects with the first request, and once more where the agent has restarted since. A cancelled request is
    forgotten here; the agent may still answer it, for nobody.

    Args:
        path: Of the socket: ``frames_socket`` under ``[api]`` in the agent's settings.
        timeout_s: How long to wait for an answer, where a request says nothing else.
        answer_limit_bytes: Largest answer.
    """

    def __init__(self, path: str, *, timeout_s: float = 30.0, answer_limit_bytes: int = ANSWER_LIMIT_BYTES) -> None:
        self._path, self._timeout_s, self._limit_bytes = str(path), timeout_s, answer_limit_bytes
        self._stream: _Stream | None = None
        self._connecting = asyncio.Lock()
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; requests that are not answered fail, a later one opens another."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.transport.abort()  # not close(): that waits for an agent that reads no more
            await stream.closed

    async def infer(
        self,
        model: str,
        inputs: Tensors,
        *,
        version: str = "",
        id: str = "",  # noqa: A002 - the protocol's name for it
        group: str = "",
        outputs: Outputs | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        monitor: bool = True,
    ) -> Answer:
        """The model's answer; arguments and errors as in :meth:`edge_agent.client.Client.infer`.

        The arrays must stay as they are until the answer is there.
        """
        number = next(self._numbers)
        message = infer_message(
            number,
            model,
            version=version,
            id=id,
            group=group,
            outputs=outputs,
            priority=priority,
            timeout_s=timeout_s,
            monitor=monitor,
        )
        parts = infer_frame(message, inputs)
        return answer_of(expect(await self._ask(number, parts, timeout_s), Inferred))

    async def feedback(
        self, model: str, request_id: str, label: str | int, *, source: str = "application", row: int | None = None
    ) -> bool:
        """Tell the true label of an earlier request; as :meth:`edge_agent.client.Client.feedback`."""
        number = next(self._numbers)
        told = Feedback(v=VERSION, id=number, model=model, request=request_id, label=label, source=source, row=row)
        return expect(await self._ask(number, [frames.encode(told)], None, again=False), Accepted).sampled

    async def models(self) -> list[ServedModel]:
        """The models that serve."""
        number = next(self._numbers)
        request = ListModels(v=VERSION, id=number)
        return expect(await self._ask(number, [frames.encode(request)], None), Models).models

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """A model's signature: what it takes and gives."""
        number = next(self._numbers)
        request = Describe(v=VERSION, id=number, model=model, version=version)
        return metadata_of(expect(await self._ask(number, [frames.encode(request)], None), Metadata))

    async def ping(self) -> str:
        """The agent's version, if it is there."""
        number = next(self._numbers)
        return expect(await self._ask(number, [frames.encode(Ping(v=VERSION, id=number))], None), Pong).agent

    async def _ask(
        self, number: int, parts: Sequence[Buffer], timeout_s: float | None, *, again: bool = True
    ) -> frame_messages.Answer:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        reused = self._stream is not None
        try:
            return await (await self._connected()).ask(number, parts, timeout_s)
        except ConnectionEnded as error:
            if not reused or (error.sent and not again):
                raise
        return await (await self._connected()).ask(number, parts, timeout_s)

    async def _connected(self) -> _Stream:
        if self._stream is not None and not self._stream.closed.done():
            return self._stream
        async with self._connecting:
            if self._stream is None or self._stream.closed.done():
                self._stream = await self._connect()
            return self._stream

    async def _connect(self) -> _Stream:
        loop = asyncio.get_running_loop()
        try:
            _, stream = await asyncio.wait_for(
                loop.create_unix_connection(lambda: _Stream(self._path, self._limit_bytes), self._path),
                self._timeout_s,
            )
        except (OSError, asyncio.TimeoutError) as error:
            why = getattr(error, "strerror", None) or "cannot connect"
            raise NetworkError(
                f"{self._path}: {why}: does the agent run, and is frames_socket under [api] in its settings this path?"
            ) from error
        return stream


class _Stream(asyncio.BufferedProtocol):
    """One connection: numbers out, answers in, in whatever order."""

    transport: asyncio.Transport

    def __init__(self, path: str, limit_bytes: int) -> None:
        self._path = path
        self._buffer = FrameBuffer(limit_bytes)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[frame_messages.Answer]] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._reason: ShoalError | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        why = self._reason or ConnectionEnded(
            f"{self._path}: the agent has closed the connection: {exc or 'at its end'}"
        )
        if isinstance(why, ConnectionEnded):
            why.sent = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(why)
        self._waiting.clear()
        self._writable.set()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the frames' sizes say more
        return self._buffer.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._buffer.received(nbytes):
                self._take(frames.decode_answer(frame))
            if self._buffer.refusal is not None:
                raise MessageError(f"{self._path}: {self._buffer.refusal}")
        except ShoalError as error:
            self._reason = error
            self.transport.abort()

    async def ask(self, number: int, parts: Sequence[Buffer], timeout_s: float) -> frame_messages.Answer:
        """Send a request and wait for the answer with its number."""
        until = self._loop.time() + timeout_s
        if not self._writable.is_set():
            try:
                await asyncio.wait_for(self._writable.wait(), timeout_s)
            except asyncio.TimeoutError:
                raise DeadlineExceeded(f"{self._path}: the agent did not take a request in {timeout_s:g} s") from None
        if self.closed.done() or self.transport.is_closing():
            raise ConnectionEnded(f"{self._path}: the agent has closed the connection")
        future: asyncio.Future[frame_messages.Answer] = self._loop.create_future()
        self._waiting[number] = future
        if len(parts) == 1:
            self.transport.write(parts[0])
        else:
            self.transport.writelines(parts)
        timer = self._loop.call_at(until, self._give_up, future, timeout_s)
        try:
            return await future
        finally:
            timer.cancel()
            self._waiting.pop(number, None)

    def _take(self, answer: frame_messages.Answer) -> None:
        if isinstance(answer, Failure) and answer.id == 0:
            raise error_of(answer)
        future = self._waiting.get(answer.id)
        if future is not None and not future.done():  # else its request was given up
            future.set_result(answer)

    def _give_up(self, future: asyncio.Future[frame_messages.Answer], timeout_s: float) -> None:
        if not future.done():
            future.set_exception(DeadlineExceeded(f"{self._path}: no answer in {timeout_s:g} s"))
