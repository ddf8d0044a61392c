"""The synchronous client's socket: sends frames, receives answers; knows nothing of models."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Sequence

from edge_agent.contract import frames
from edge_agent.contract.errors import DeadlineExceeded, MessageError, NetworkError
from edge_agent.contract.failures import error_of
from edge_agent.contract.frame_messages import Answer, Failure
from edge_agent.contract.frames import Buffer
from edge_agent.contract.framing import FrameBuffer

# More would have to fit the kernel's limit of parts in one call (IOV_MAX, 1024).
_PARTS = 512


class ConnectionEnded(NetworkError):
    """The agent closed the connection, or has gone.

    Args:
        sent: Whether the request had been sent whole, so that it may have been taken.
    """

    sent = False


class Connection:
    """One connected socket; used by one thread at a time.

    Args:
        path: Of the agent's frames socket.
        limit_bytes: Largest answer.
    Raises:
        NetworkError: Nobody listens there.
    """

    def __init__(self, path: str, *, timeout_s: float, limit_bytes: int) -> None:
        self._path = path
        self._buffer = FrameBuffer(limit_bytes)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._timeout_s = 0.0
        self._arrived: list[Answer] = []
        try:
            self.set_timeout(timeout_s)
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise NetworkError(
                f"{path}: {os.strerror(error.errno or 0)}: does the agent run, and is frames_socket under [api] in its "
                "settings this path?"
            ) from error

    def close(self) -> None:
        """Close; answers that are still to come are lost."""
        self._socket.close()

    @property
    def has_ended(self) -> bool:
        """Whether the agent has closed it, as far as one can tell without asking."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def set_timeout(self, timeout_s: float) -> None:
        """Wait at most so long for the next bytes to go or come.

        The kernel keeps the time (SO_RCVTIMEO): Python's own timeouts cost a call of poll(2) before each other call.
        """
        if timeout_s == self._timeout_s:
            return
        seconds = int(timeout_s)
        packed = struct.pack("ll", seconds, max(1, int((timeout_s - seconds) * 1e6)))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, packed)
        self._timeout_s = timeout_s

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send one frame.

        Raises:
            ConnectionEnded: The agent is not there any more; it may say why (another error of ours).
            DeadlineExceeded: It did not take the frame in time: this connection is of no more use.
        """
        try:
            sent = self._socket.send(parts[0]) if len(parts) == 1 else self._socket.sendmsg(parts)
            if sent < sum(map(len, parts)):
                self._send_rest(parts, sent)
        except BlockingIOError as error:
            raise DeadlineExceeded(
                f"{self._path}: the agent did not take a request in {self._timeout_s:g} s"
            ) from error
        except OSError as error:
            raise self._last_words() or self._ended(error) from error

    def send_or_receive(self, parts: Sequence[Buffer]) -> None:
        """Send one frame; answers that stand in the way of that are received meanwhile, for :meth:`receive`.

        The agent stops reading while a client leaves its answers unread: who only sends then, sends for ever.
        """
        left = list(parts)
        until = time.monotonic() + self._timeout_s
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        try:
            while left:
                with contextlib.suppress(BlockingIOError):
                    left = _rest(left, self._socket.sendmsg(left[:_PARTS], [], socket.MSG_DONTWAIT))
                    continue
                ready = poll.poll(max(0.0, until - time.monotonic()) * 1000)
                if not ready:
                    raise DeadlineExceeded(f"{self._path}: the agent did not take a request in {self._timeout_s:g} s")
                if ready[0][1] & ~select.POLLOUT:
                    self._arrived += self._read()
        except OSError as error:
            raise self._last_words() or self._ended(error) from error

    def receive(self) -> list[Answer]:
        """The next answers; at least one.

        Raises:
            ConnectionEnded: The agent is not there any more.
            DeadlineExceeded: None came in time; they may still come later.
            MessageError: What came is no answer.
            ShoalError: The agent's reason to close the connection.
        """
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            return arrived
        until = time.monotonic() + self._timeout_s
        try:
            while not (answers := self._read()) and time.monotonic() < until:
                pass
        except BlockingIOError:
            answers = []
        except OSError as error:
            raise self._ended(error) from error
        if not answers:
            raise DeadlineExceeded(f"{self._path}: no answer in {self._timeout_s:g} s")
        return answers

    def _read(self) -> list[Answer]:
        count = self._socket.recv_into(self._buffer.room())
        if count == 0:
            raise ConnectionResetError(errno.ECONNRESET, "closed")
        answers = [frames.decode_answer(frame) for frame in self._buffer.received(count)]
        if self._buffer.refusal is not None:
            raise MessageError(f"{self._path}: {self._buffer.refusal}")
        for answer in answers:
            if isinstance(answer, Failure) and answer.id == 0:
                raise error_of(answer)
        return answers

    def _send_rest(self, parts: Sequence[Buffer], sent: int) -> None:
        left = _rest(list(parts), sent)
        while left:
            left = _rest(left, self._socket.sendmsg(left[:_PARTS]))

    def _last_words(self) -> BaseException | None:
        """Why the agent has closed the connection, where it said so before."""
        self._socket.setblocking(False)
        try:
            while True:
                self._read()
        except OSError:
            return None
        except Exception as error:  # noqa: BLE001 - it is raised by the caller
            return error

    def _ended(self, error: OSError) -> ConnectionEnded:
        return ConnectionEnded(f"{self._path}: the agent has closed the connection: {error.strerror}")


def _rest(parts: list[Buffer], sent: int) -> list[Buffer]:
    """What is left of parts when their first ``sent`` bytes are gone."""
    for index, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[index + 1 :]]
        sent -= len(part)
    return []
