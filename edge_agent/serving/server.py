"""Runs the event loop that accepts connections on all sockets, and ends it so that nobody loses an answer."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from edge_agent.serving.connections import Connections

_log = logging.getLogger(__name__)
# Connections that are accepted before others get their turn.
_ACCEPTED_AT_ONCE = 64
# After a failure to accept (no file descriptor left): the waiting connection would wake the loop at once again.
_ACCEPT_PAUSE_S = 0.5


class Listener(NamedTuple):
    """A socket that listens, and what is spoken on it.

    Args:
        factory: Makes the protocol of one accepted connection.
        address: As :func:`edge_agent.serving.listen.address_of` writes it.
        path: Of a unix socket, to remove it at the end; empty for TCP.
    """

    socket: socket.socket
    factory: Callable[[], asyncio.BaseProtocol]
    address: str
    path: str = ""


class Service(Protocol):
    """What listens by itself in the same event loop, such as gRPC."""

    async def start(self) -> None:
        """Take requests from now on.

        Raises:
            AddressInUse: Somebody listens there already.
        """

    async def stop(self, grace_s: float) -> None:
        """Take no more, and let those in progress end within ``grace_s`` seconds."""


class Server:
    """One event loop for all listeners, uvloop where it is installed.

    Args:
        connections: Those that the listeners' protocols add themselves to.
        services: What listens beside them.
        grace_s: What requests in flight may take once the server stops.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        connections: Connections,
        *,
        services: Sequence[Service] = (),
        grace_s: float = 10.0,
    ) -> None:
        self._listeners, self._connections, self._grace_s = tuple(listeners), connections, grace_s
        self._services = tuple(services)
        self._files = {listener.path: _identity(listener.path) for listener in listeners if listener.path}
        self._thread: threading.Thread | None = None
        self._began = threading.Event()
        self._failure: BaseException | None = None  # why it never began
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_requests = 0
        self._wake: asyncio.Event | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, in the listeners' order."""
        return tuple(listener.address for listener in self._listeners)

    def run(self) -> None:
        """Serve in this thread until :meth:`stop`, or in the main thread until SIGINT or SIGTERM; then return.

        The caller stops its other parts, in order, after that. A second signal ends the grace.

        Raises:
            AddressInUse: A service cannot have its address; nothing is left behind.
        """
        loop = _new_loop()
        try:
            with self._lock:
                self._loop = loop
            asyncio.set_event_loop(loop)
            try:
                loop.run_until_complete(self._serve(loop))
            finally:
                _finish(loop)
        except BaseException as error:
            self._failure = None if self._began.is_set() else error
            raise
        finally:
            with self._lock:
                self._loop = None
            self._began.set()
            asyncio.set_event_loop(None)
            loop.close()
            self.close()

    def start(self) -> None:
        """Serve in a thread of its own; connections are taken when this returns.

        Raises:
            AddressInUse: See :meth:`run`.
        """
        self._thread = threading.Thread(target=self._run_apart, name="serving", daemon=True)
        self._thread.start()
        self._began.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self, timeout_s: float = 15.0) -> None:
        """Answer what is in flight, then stop; harmless where it has stopped already.

        Raises:
            TimeoutError: The thread that :meth:`start` made is still alive after ``timeout_s``.
        """
        with self._lock:
            if self._loop is None:
                self._stop_requests += 1
            else:
                self._loop.call_soon_threadsafe(self._request_stop)
        if self._thread is None:
            self.close()
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{', '.join(self.addresses)}: the server did not stop within {timeout_s} s")

    def close(self) -> None:
        """Give the addresses back; :meth:`run` does so itself."""
        for listener in self._listeners:
            listener.socket.close()
        # Later a path may be another's: only the very file that this server listens on is removed.
        for path, identity in self._files.items():
            if identity is not None and _identity(path) == identity:
                Path(path).unlink(missing_ok=True)
        self._files = {}

    def _run_apart(self) -> None:
        try:
            self.run()
        except BaseException as error:
            if error is not self._failure:  # which start() raises
                raise

    async def _start_services(self) -> None:
        """All of them, or none."""
        async with contextlib.AsyncExitStack() as started:
            for service in self._services:
                await service.start()
                started.push_async_callback(service.stop, 0.0)
            started.pop_all()

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not before the loop runs: uvloop takes a signal that comes between and wakes up for the next one alone. Until
        # here whoever called minds them.
        with self._signals(loop):
            await self._serve_until_told(loop)

    async def _serve_until_told(self, loop: asyncio.AbstractEventLoop) -> None:
        wake = self._wake = asyncio.Event()
        if self._stop_requests:
            return
        await self._start_services()
        acceptors = [_Acceptor(loop, listener) for listener in self._listeners]
        self._began.set()
        sweeping = loop.create_task(self._sweep(loop))
        await wake.wait()
        for acceptor in acceptors:
            acceptor.close()
        self.close()
        self._connections.drain()
        stopping = [loop.create_task(service.stop(self._grace_s)) for service in self._services]
        if not await self._drained(wake):
            _log.warning("%d connections did not end in time and are closed", len(self._connections))
            self._connections.abort()
            await self._connections.emptied(1.0)
        await asyncio.gather(*stopping)
        sweeping.cancel()

    async def _drained(self, wake: asyncio.Event) -> bool:
        """Wait for the last answers, at most the grace, or until somebody asks to stop once more."""
        wake.clear()
        empty = asyncio.ensure_future(self._connections.emptied(self._grace_s))
        again = asyncio.ensure_future(wake.wait())
        await asyncio.wait([empty, again], return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if empty.done():
            return empty.result()
        empty.cancel()
        return False

    async def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            await asyncio.sleep(self._connections.sweep_s)
            self._connections.sweep(loop.time())

    def _request_stop(self) -> None:
        self._stop_requests += 1
        if self._wake is not None:
            self._wake.set()

    def _signalled(self, number: int) -> None:
        _log.info("%s: no more requests are taken, those in progress are answered", signal.Signals(number).name)
        self._request_stop()

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


class _Acceptor:
    """Accepts connections on one socket.

    The loops' own servers differ in what a failure to accept does to them (uvloop closes the listening socket for
    good on some); here it pauses, the connection waits in the backlog, and both loops behave alike.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        self._loop, self._listener = loop, listener
        self._pause: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[None]] = set()
        listener.socket.setblocking(False)
        self._fd = listener.socket.fileno()
        loop.add_reader(self._fd, self._accept)

    def close(self) -> None:
        """Accept no more."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        else:
            self._loop.remove_reader(self._fd)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._listener.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.error("%s: cannot accept connections now: %s", self._listener.address, error)
                self._loop.remove_reader(self._fd)
                self._pause = self._loop.call_later(_ACCEPT_PAUSE_S, self._resume)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._fd, self._accept)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._listener.factory, connection)
        except OSError as error:  # it has gone already
            connection.close()
            _log.debug("%s: %s", self._listener.address, error)


def _new_loop() -> asyncio.AbstractEventLoop:
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    return loop


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """Let cancelled work end, so that rooms and leases are given back."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - one call, no Path needed
    except OSError:
        return None
    return found.st_dev, found.st_ino
