"""Reading from a server that may dawdle on purpose (TUF's slow retrieval attack): every wait has an end.

A socket's own timeout starts anew with each byte, so one byte every few seconds keeps a reader for days. Here the whole
of an answer, its head included, has a deadline or a least rate, and whoever waits can be asked to stop meanwhile.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import time
from collections.abc import Callable
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from edge_agent.contract.errors import NetworkError

_LOOK_EVERY_S = 0.5


class Pace:
    """How long one answer may take. Time counts only while nothing is there to read: who reads slowly is not punished.

    Args:
        url: For errors.
        stall_s: Longest wait for the next byte.
        deadline_s: Longest wait in all; None where the length is not known to be small.
        least_bytes_per_s: What must come on average over each ``window_s`` of waiting.
        while_waiting: Called about twice a second; what it raises ends the wait.
    """

    def __init__(
        self,
        url: str,
        *,
        stall_s: float,
        deadline_s: float | None,
        least_bytes_per_s: float,
        window_s: float,
        while_waiting: Callable[[], object] | None = None,
    ) -> None:
        self._url, self._stall_s, self._deadline_s = url, stall_s, deadline_s
        self._least_bytes_per_s, self._window_s = least_bytes_per_s, window_s
        self._while_waiting = while_waiting
        self._waited_s = self._window_waited_s = 0.0
        self._bytes = self._window_bytes = 0

    def receive(self, connection: socket.socket, buffer: Any) -> int:
        """Bytes received into ``buffer``; 0 at the end.

        Raises:
            NetworkError: They did not come in time.
            OSError: The connection broke.
        """
        still_s = 0.0
        while True:
            connection.settimeout(max(0.001, min(_LOOK_EVERY_S, self._left_s(still_s))))
            began = time.monotonic()
            try:
                count = connection.recv_into(buffer)
            except TimeoutError:
                count = -1
            passed_s = time.monotonic() - began
            self._note(passed_s, max(count, 0))
            if count >= 0:
                return count
            still_s += passed_s
            if self._while_waiting is not None:
                self._while_waiting()

    def _left_s(self, still_s: float) -> float:
        left_s = self._stall_s - still_s
        if left_s <= 0:
            raise NetworkError(f"{self._url}: timed out, nothing came for {self._stall_s:g} s")
        if self._deadline_s is not None:
            left_s = min(left_s, self._deadline_s - self._waited_s)
            if left_s <= 0:
                raise NetworkError(
                    f"{self._url}: {self._bytes} bytes in {self._deadline_s:.0f} s; the connection is too slow"
                )
        return left_s

    def _note(self, passed_s: float, count: int) -> None:
        self._waited_s += passed_s
        self._bytes += count
        self._window_waited_s += passed_s
        self._window_bytes += count
        if self._window_waited_s < self._window_s:
            return
        if self._window_bytes < self._least_bytes_per_s * self._window_waited_s:
            raise NetworkError(
                f"{self._url}: {self._window_bytes} bytes in {self._window_waited_s:.0f} s; the connection is too slow"
            )
        self._window_waited_s, self._window_bytes = 0.0, 0


class _PacedReader(io.RawIOBase):
    """What http.client reads answers from: the socket's own reader refuses to go on after a timeout."""

    def __init__(self, connection: socket.socket, reader: io.RawIOBase, pace: Pace) -> None:
        super().__init__()
        self._connection, self._reader, self._pace = connection, reader, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._pace.receive(self._connection, buffer)

    def close(self) -> None:
        if not self.closed:
            self._reader.close()  # counts as one user of the socket less
        super().close()


class _PacedAnswer(http.client.HTTPResponse):
    def __init__(self, pace: Callable[[], Pace], sock: socket.socket, *args: Any, **named: Any) -> None:
        super().__init__(sock, *args, **named)
        self.fp: io.BufferedReader = io.BufferedReader(_PacedReader(sock, self.fp.detach(), pace()))


def connections(pace: Callable[[], Pace], *, stall_s: float) -> urllib3.PoolManager:
    """Connections to HTTP servers.

    Args:
        pace: Gives the pace of the answer that is about to be read.
        stall_s: Longest wait for a connection, and while a request is sent.
    """

    class Plain(HTTPConnection):
        response_class = staticmethod(functools.partial(_PacedAnswer, pace))  # type: ignore[assignment]

    class Encrypted(HTTPSConnection):
        response_class = staticmethod(functools.partial(_PacedAnswer, pace))  # type: ignore[assignment]

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Encrypted

    timeout = urllib3.Timeout(connect=stall_s, read=stall_s)
    manager = urllib3.PoolManager(num_pools=2, maxsize=1, timeout=timeout)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": EncryptedPool}
    return manager
