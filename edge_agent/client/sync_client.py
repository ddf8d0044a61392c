"""The client for programs that wait for each answer, and for batches of pipelined requests."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import final

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
from edge_agent.client.connection import Connection, ConnectionEnded
from edge_agent.contract import frame_messages, frames
from edge_agent.contract.errors import DeadlineExceeded, ShoalError
from edge_agent.contract.frame_messages import (
    VERSION,
    Accepted,
    Describe,
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

ANSWER_LIMIT_BYTES = 256 * 1024 * 1024
# Fewer than the agent lets wait on one connection, so that it never has to stop reading.
_WINDOW = 32


@final
class Client:
    """Asks the agent's models over its frames socket, and waits for the answer.

    It connects with the first request, and once more where the agent has restarted since the last one. Several threads
    may use one client: they take turns, so each waits for the others' answers; for requests side by side give each
    thread its own, or use :meth:`infer_many` or :class:`edge_agent.client.AsyncClient`. A forked process needs its own.

    Args:
        path: Of the socket: ``frames_socket`` under ``[api]`` in the agent's settings.
        timeout_s: How long to wait for an answer, where a request says nothing else.
        answer_limit_bytes: Largest answer.
    """

    def __init__(self, path: str, *, timeout_s: float = 30.0, answer_limit_bytes: int = ANSWER_LIMIT_BYTES) -> None:
        self._path, self._timeout_s, self._limit_bytes = str(path), timeout_s, answer_limit_bytes
        self._connection: Connection | None = None
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a later request opens another."""
        with self._lock:
            self._drop()

    def infer(
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
        """The model's answer to one request.

        Args:
            inputs: By name; axis 0 is N, the same for all.
            version: Of the model; empty asks the one that serves by default.
            id: Name of the request for feedback; the agent makes one where it is empty.
            group: What the rows of one subject share.
            outputs: Names of those wanted, or where in shared memory they are wanted; None for all.
            priority: 1 is the most urgent; 0 ranks below all others.
            timeout_s: When the answer is not wanted any more; the agent then need not run the model at all.
            monitor: False for a probe, which is neither counted nor sampled.
        Raises:
            CallerError: The request is wrong; a SignatureMismatch names tensor, rule and row.
            DeadlineExceeded: No answer in time.
            Busy, ModelUnavailable, ModelFailed: The device cannot answer (all of them are DeviceError).
            NetworkError: No agent listens on the socket.
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
        return answer_of(expect(self._ask(number, parts, timeout_s), Inferred))

    def infer_many(
        self, model: str, many: Iterable[Tensors], *, version: str = "", monitor: bool = True
    ) -> list[Answer | ShoalError]:
        """The answers to many requests, in their order, sent without waiting for each other's answers.

        A request that is refused has its error in its place; the others are answered all the same.

        Raises:
            NetworkError, DeadlineExceeded: The agent went away, or was silent for the client's ``timeout_s``.
        """
        numbered = ((next(self._numbers), inputs) for inputs in many)
        answers: dict[int, Answer | ShoalError | None] = {}
        with self._lock:
            if self._connection is not None and self._connection.has_ended:
                self._drop()
            connection = self._connected()
            connection.set_timeout(self._timeout_s)
            missing = 0
            try:
                for number, inputs in numbered:
                    while missing >= _WINDOW:
                        missing -= _take(connection, answers)
                    answers[number] = None
                    message = infer_message(number, model, version=version, monitor=monitor)
                    connection.send_or_receive(infer_frame(message, inputs))
                    missing += 1
                while missing:
                    missing -= _take(connection, answers)
            except BaseException:
                self._drop()  # answers on their way are nobody's any more
                raise
        return [answer for answer in answers.values() if answer is not None]

    def feedback(
        self, model: str, request_id: str, label: str | int, *, source: str = "application", row: int | None = None
    ) -> bool:
        """Tell the true label of an earlier request; it is safe on the device when this returns.

        Args:
            label: A class by name or by index.
            row: Of a request of several rows.
        Returns:
            Whether the row itself goes home: only then can models learn from the label.
        Raises:
            UnknownRequest: The device does not remember the request.
            MalformedRequest: The model has no such class.
        """
        number = next(self._numbers)
        told = Feedback(v=VERSION, id=number, model=model, request=request_id, label=label, source=source, row=row)
        # Not sent again where the connection ends meanwhile: it may have been taken already.
        return expect(self._ask(number, [frames.encode(told)], None, again=False), Accepted).sampled

    def models(self) -> list[ServedModel]:
        """The models that serve, each with its version, its package's digest, and whether it is the default."""
        number = next(self._numbers)
        request = ListModels(v=VERSION, id=number)
        return expect(self._ask(number, [frames.encode(request)], None), Models).models

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """A model's signature: what it takes and gives.

        Raises:
            UnknownModel: It does not serve here.
        """
        number = next(self._numbers)
        request = Describe(v=VERSION, id=number, model=model, version=version)
        return metadata_of(expect(self._ask(number, [frames.encode(request)], None), Metadata))

    def ping(self) -> str:
        """The agent's version, if it is there."""
        number = next(self._numbers)
        return expect(self._ask(number, [frames.encode(Ping(v=VERSION, id=number))], None), Pong).agent

    def _ask(
        self, number: int, parts: Sequence[Buffer], timeout_s: float | None, *, again: bool = True
    ) -> frame_messages.Answer:
        """The answer with this number; on a new connection where the old one had ended.

        Args:
            again: Whether the request may be sent again once it has been sent whole.
        """
        with self._lock:
            reused = self._connection is not None
            try:
                return self._ask_once(number, parts, timeout_s)
            except ConnectionEnded as error:
                if not reused or (error.sent and not again):
                    raise
            return self._ask_once(number, parts, timeout_s)

    def _ask_once(self, number: int, parts: Sequence[Buffer], timeout_s: float | None) -> frame_messages.Answer:
        connection = self._connected()
        connection.set_timeout(self._timeout_s if timeout_s is None else timeout_s)
        sent = False
        try:
            connection.send(parts)
            sent = True
            while True:
                for answer in connection.receive():
                    if answer.id == number:
                        return answer
                    # Else it is late: its request was given up.
        except DeadlineExceeded:
            if not sent:  # half a request is on its way
                self._drop()
            raise
        except ConnectionEnded as error:
            error.sent = sent
            self._drop()
            raise
        except BaseException:
            self._drop()
            raise

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self._path, timeout_s=self._timeout_s, limit_bytes=self._limit_bytes)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _take(connection: Connection, answers: dict[int, Answer | ShoalError | None]) -> int:
    """Put the answers that come next in their places; how many of them there were."""
    taken = 0
    for answer in connection.receive():
        if answer.id in answers:
            answers[answer.id] = _answer_or_error(answer)
            taken += 1
    return taken


def _answer_or_error(answer: frame_messages.Answer) -> Answer | ShoalError:
    try:
        return answer_of(expect(answer, Inferred))
    except ShoalError as error:
        return error
